"""The poll: nothing when nothing changed, else one body with all that the device lacks."""

import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, held_after, join, published
from http_calls import Api
from poll_calls import bring_to, names

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.registry import service as registry
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(app: FastAPI, operator: Api) -> TestDevice:
    """A device of a fleet whose model has two releases; it runs none."""
    published(app)
    published(app, base=1)
    return join(app, operator, 1)[0]


def held_by(device: TestDevice) -> dict[HeldMetadata, bytes]:
    """Return what the device holds once it has read everything."""
    return held_after(PollAnswer.from_bytes(device.poll().content))


def test_a_device_that_holds_the_newest_gets_304_and_nothing_else(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    answer = device.poll(held=list(held_by(device)))
    assert (answer.status_code, answer.content, dict(answer.headers)) == (304, b"", {})


def test_what_a_device_holds_beyond_its_needs_is_no_reason_for_an_answer(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    held = [*held_by(device), HeldMetadata("image", "m.former", 12)]
    assert device.poll(held=held).status_code == 304


def test_each_file_that_is_older_or_not_there_is_sent_by_itself(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    held = held_by(device)
    for missing in held:
        answer = device.poll(held=[item for item in held if item != missing])
        ((name, data),) = [
            (part.name, part.data)
            for part in PollAnswer.from_bytes(
                answer.content, b"".join(data for item, data in held.items() if item != missing)
            ).parts
        ]
        assert name.startswith(missing.repository)
        assert name.endswith(f"{missing.role}.json")
        assert data == held[missing]


def test_the_first_answer_carries_all_metadata_in_the_order_of_reading(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 2)
    got = device.poll()
    assert set(got.headers) == {"content-type", "content-length"}
    answer = PollAnswer.from_bytes(got.content)
    assert names(answer, "metadata") == [
        "image/1.root.json",
        "image/timestamp.json",
        "image/3.snapshot.json",
        "image/2.targets.json",
        "image/2.m.mnist.json",
        "director/1.root.json",
        "director/timestamp.json",
        "director/1.snapshot.json",
        "director/1.targets.json",
    ]
    for part in answer.parts:
        assert device.api.get(f"/tuf/{part.name}").content == part.data
    assert answer.poll_interval_s == app.state.settings.poll_interval_s


def test_an_answer_packed_with_what_the_device_holds_is_small_and_reads_the_same(
    app: FastAPI, device: TestDevice
) -> None:
    bring_to(app, 1)
    held = held_by(device)
    device.tell(Outcome.COMMITTED)
    published(app, base=2)
    bring_to(app, 3)
    packed = device.poll(held=list(held))
    answer = PollAnswer.from_bytes(packed.content, b"".join(held.values()))
    assert names(answer, "metadata") == [
        "image/timestamp.json",
        "image/4.snapshot.json",
        "image/3.m.mnist.json",
        "director/timestamp.json",
        "director/2.snapshot.json",
        "director/2.targets.json",
    ]
    assert set(answer.parts) <= set(PollAnswer.from_bytes(device.poll().content).parts)
    assert device.poll(held=list(held_after(answer, held))).status_code == 304
    assert len(packed.content) <= 700, "six signatures, an update's digests, and little else"
    assert len(device.poll().content) <= 4000


def test_metadata_that_the_server_never_made_mean_a_plain_answer(device: TestDevice) -> None:
    answer = device.poll(held=[HeldMetadata("image", "root", 1), HeldMetadata("image", "snapshot", 77)])
    assert names(PollAnswer.from_bytes(answer.content), "metadata")[0] == "image/timestamp.json"


def test_payloads_that_fit_come_with_the_answer(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    wish = device.wish()
    assert wish is not None
    full = f"/blobs/sha256/{_blob_of(app, 1)[7:]}"
    inline = PollAnswer.from_bytes(device.poll(inline=100_000).content)
    (update, graph) = [part for part in inline.parts if part.kind == "blob"]
    assert update.data == device.api.get(full).content
    assert graph.data == b"the graph of mnist"
    some = PollAnswer.from_bytes(device.poll(inline=100).content)
    assert [part.data for part in some.parts if part.kind == "blob"] == [b"the graph of mnist"]
    assert names(PollAnswer.from_bytes(device.poll().content), "blob") == []
    unsaid = PollAnswer.from_bytes(device.api.get("/device/v1/poll").content)
    assert unsaid == inline


def test_a_payload_comes_with_its_assignment_and_not_again_with_later_metadata(
    app: FastAPI, device: TestDevice
) -> None:
    held = held_by(device)
    bring_to(app, 1)
    lost = device.poll(held=list(held), inline=100_000)
    again = device.poll(held=list(held), inline=100_000)
    assert again.content == lost.content
    answer = PollAnswer.from_bytes(again.content, b"".join(held.values()))
    assert len(names(answer, "blob")) == 2
    held = held_after(answer, held)
    published(app, base=2)
    later = PollAnswer.from_bytes(device.poll(held=list(held), inline=100_000).content, b"".join(held.values()))
    assert names(later, "metadata")
    assert names(later, "blob") == []


def _blob_of(app: FastAPI, number: int) -> str:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        release = registry.get_release(session, registry.get_model(session, "mnist"), number)
        return registry.updates_of(session, release)[0].blob


def test_a_device_that_has_the_graph_is_sent_the_update_alone(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    device.tell(Outcome.COMMITTED)
    bring_to(app, 2)
    answer = PollAnswer.from_bytes(device.poll(inline=1000).content)
    (payload,) = [part for part in answer.parts if part.kind == "blob"]
    assert payload.data.startswith(b"update ")
    assert len(payload.data) == 100


def test_after_the_commit_is_reported_nothing_is_sent_again(app: FastAPI, device: TestDevice) -> None:
    bring_to(app, 1)
    held = list(held_by(device))
    device.tell(Outcome.COMMITTED)
    assert device.poll(held=held).status_code == 304
    everything = PollAnswer.from_bytes(device.poll(inline=100_000).content)
    assert names(everything, "blob") == []


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"Authorization": "Basic x"}, 401, "Authorization: Bearer"),
        ({"Authorization": "Bearer spratd_wrong"}, 401, "not valid"),
        ({"If-None-Match": '"what/is=this"'}, 422, "If-None-Match"),
        ({"Sprat-Inline": "-5"}, 422, "Sprat-Inline"),
    ],
)
def test_a_poll_that_cannot_be_read_says_what_is_wrong(
    device: TestDevice, headers: dict[str, str], status: int, words: str
) -> None:
    answer = device.api.get("/device/v1/poll", headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]


def test_an_operators_token_does_not_poll(admin: Api, device: TestDevice) -> None:
    assert device.poll().status_code == 200
    assert admin.get("/device/v1/poll").status_code == 401
