"""The director: what each device should run, signed for it alone, once, and never with an older version."""

import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import TestDevice, device_of, enrol, held_after, join, made, published, signed_in
from http_calls import Api
from securesystemslib.signer import CryptoSigner
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from tuf_calls import directed

from sprat_server.app import create_app
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet
from sprat_server.flows import live
from sprat_server.flows import poll as flow
from sprat_server.flows import rollout as rollout_flow
from sprat_server.publish import director_root
from sprat_server.publish.image import open_repository
from sprat_server.publish.keys import KeysUnusable
from sprat_server.publish.models import DirectorMetadata
from sprat_server.registry import service as registry
from sprat_server.settings import Settings
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.signed_time import NONCE_HEADER, SignedTime

NONCE = "AAAAAAAAAAAAAAAAAAAAAA"


@pytest.fixture
def device(app: FastAPI, operator: Api) -> TestDevice:
    """A device of a fleet whose model has two releases; it runs none."""
    published(app)
    published(app, base=1)
    return join(app, operator, 1)[0]


def assign(app: FastAPI, release: int | None, *devices: TestDevice) -> None:
    """Assign a release of the model, as a rollout does."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        model = registry.get_model(session, "mnist")
        reason = "return" if release is None else "rollout"
        fleet.assign(session, model.id, {device.id: release for device in devices}, reason)


def kept(app: FastAPI, device: TestDevice) -> list[tuple[str, int]]:
    """Return role and version of everything that is kept of a device."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        rows = select(DirectorMetadata.role, DirectorMetadata.version).where(DirectorMetadata.device_id == device.id)
        return sorted((role, version) for role, version in session.execute(rows))


def newest(app: FastAPI, device: TestDevice, now: datetime | None = None) -> dict[str, int]:
    """Have what is due signed; return the versions."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        settings: Settings = app.state.settings
        wishes = lambda: flow.wishes_of(session, device.id)  # noqa: E731
        return dict(flow.director.current(session, settings, device.id, wishes, now=now).versions)


def everything(device: TestDevice) -> PollAnswer:
    return PollAnswer.from_bytes(device.poll().content)


def test_python_tufs_client_accepts_what_the_director_signs(app: FastAPI, device: TestDevice, tmp_path: Path) -> None:
    assign(app, 2, device)
    client = directed(device, tmp_path / "trust")
    client.refresh()
    info = client.get_targetinfo("mnist/2/full")
    assert info is not None
    said = Assigned.from_custom(info.path, info.custom)
    assert said == Assigned(device=device.id, model="mnist", release=2, assignment=1, path=("mnist/2/full",))
    info.verify_length_and_hashes(device.api.get(f"/blobs/sha256/{info.hashes['sha256']}").content)
    assert client.get_targetinfo("mnist/1/full") is None


def test_a_client_follows_from_assignment_to_assignment_and_back(
    app: FastAPI, device: TestDevice, tmp_path: Path
) -> None:
    counters = []
    for release in (1, 2, 1):
        assign(app, release, device)
        client = directed(device, tmp_path / "trust")
        client.refresh()
        (info,) = [info for n in (1, 2) if (info := client.get_targetinfo(f"mnist/{n}/full")) is not None]
        said = Assigned.from_custom(info.path, info.custom)
        assert said.release == release
        counters.append(said.assignment)
        device.tell(Outcome.COMMITTED)
    assert counters == [1, 2, 3], "going back to an older release is a newer assignment"


def test_where_nothing_is_assigned_or_the_wish_is_withdrawn_the_targets_are_empty(
    app: FastAPI, device: TestDevice
) -> None:
    assert signed_in(everything(device))["director", "targets"]["targets"] == {}
    assign(app, 1, device)
    assert list(signed_in(everything(device))["director", "targets"]["targets"]) == ["mnist/1/full"]
    assign(app, None, device)
    assert signed_in(everything(device))["director", "targets"]["targets"] == {}


def test_the_profile_that_a_device_said_at_enrolment_is_signed_and_shown(
    app: FastAPI, operator: Api, viewer: Api, device: TestDevice
) -> None:
    token = made(operator.post("/api/v1/enrolment-tokens", json={}))["token"]
    key = Ed25519PrivateKey.generate()
    camera = device_of(app, enrol(app, token, "press-7", key, profile="camera-s"), "press-7", key)
    assign(app, 1, camera)
    wish = camera.wish()
    assert wish is not None
    assert wish.assigned.profile == "camera-s"
    assert made(viewer.get(f"/api/v1/devices/{camera.id}"))["profile"] == "camera-s"
    assert made(viewer.get(f"/api/v1/devices/{device.id}"))["profile"] is None


def test_a_device_has_its_own_files_only(app: FastAPI, operator: Api, viewer: Api, device: TestDevice) -> None:
    (other,) = join(app, operator, 1)
    for release in (1, 2, 1):
        assign(app, release, device)
        device.poll()
    assert other.api.get("/tuf/director/1.targets.json").status_code == 404, "nothing is signed for it yet"
    assert other.api.get("/tuf/director/timestamp.json").status_code == 200
    mine, others = (one.api.get("/tuf/director/3.targets.json") for one in (device, other))
    assert (mine.status_code, others.status_code) == (200, 404)
    assert others.json()["code"] == "metadata.unknown"
    assert device.api.get("/tuf/director/1.root.json").content == device.answer.director_root
    for stranger in (viewer, Api(app, None)):
        assert stranger.get("/tuf/director/timestamp.json").status_code == 401


@pytest.mark.parametrize(
    "file", ["1.timestamp.json", "snapshot.json", "9.root.json", "root.json", "x", "1.m.mnist.json"]
)
def test_a_file_that_is_not_there_is_a_clear_404(device: TestDevice, file: str) -> None:
    device.poll()
    answer = device.api.get(f"/tuf/director/{file}")
    assert (answer.status_code, answer.json()["code"]) == (404, "metadata.unknown")


def test_a_revoked_device_is_refused_at_once(app: FastAPI, operator: Api, device: TestDevice) -> None:
    device.poll()
    made(operator.post(f"/api/v1/devices/{device.id}/revoke", json={"reason": "stolen"}))
    for path in ("/device/v1/poll", "/tuf/director/timestamp.json", "/tuf/director/1.targets.json"):
        assert device.api.get(path).status_code == 401
    assert newest(app, device)["timestamp"] == 1, "nothing was signed for it"


def test_what_does_not_change_is_signed_once(app: FastAPI, device: TestDevice) -> None:
    assign(app, 1, device)
    first = everything(device)
    assert everything(device) == first
    device.tell(Outcome.COMMITTED)
    published(app, base=2)
    again = signed_in(everything(device))
    assert {role: again["director", role]["version"] for role in ("timestamp", "snapshot", "targets")} == {
        "timestamp": 1,
        "snapshot": 1,
        "targets": 1,
    }


def test_the_path_that_brought_a_device_stays_signed_only_while_the_image_repository_signs_its_steps(
    app: FastAPI, device: TestDevice
) -> None:
    def path() -> tuple[str, ...]:
        wish = device.wish()
        assert wish is not None
        return wish.path

    assign(app, 1, device)
    device.tell(Outcome.COMMITTED)
    assign(app, 2, device)
    assert path() == ("mnist/2/from-1",)
    device.tell(Outcome.COMMITTED)
    assert path() == ("mnist/2/from-1",)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        image, model = open_repository(session, app.state.settings), registry.get_model(session, "mnist")
        files = live.target_files(session, model, live.needed(session, model))
        image.set_targets("mnist", [one for one in files if one.path != "mnist/2/from-1"], reason="test")
    assert path() == ()


def test_metadata_that_change_while_a_poll_is_answered_are_looked_at_once_more(
    app: FastAPI, device: TestDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    assign(app, 1, device)
    device.tell(Outcome.COMMITTED)
    assign(app, 2, device)
    current, looks = flow.directed, []

    def meanwhile(*given: Any, **named: Any) -> Any:
        """Have the metadata pruned after the path was read, the first time."""
        found = current(*given, **named)
        looks.append([wish.assigned.path for wish in found.wishes.releases])
        if len(looks) == 1:
            with app.state.database.transaction(DEFAULT_PROJECT) as session:
                image, model = open_repository(session, app.state.settings), registry.get_model(session, "mnist")
                files = live.target_files(session, model, live.needed(session, model))
                image.set_targets("mnist", [one for one in files if one.path != "mnist/2/from-1"], reason="test")
        return found

    monkeypatch.setattr(flow, "directed", meanwhile)
    wish = device.wish()
    assert looks == [[("mnist/2/from-1",)], [("mnist/2/full",)]]
    assert wish is not None
    assert wish.path == ("mnist/2/full",)


def test_replicas_that_are_asked_at_the_same_time_sign_one_version(
    app: FastAPI, operator: Api, device: TestDevice
) -> None:
    devices = [device, *join(app, operator, 5)]
    replicas = [create_app(app.state.settings) for _ in range(2)]
    try:
        for round_ in (1, 2):
            assign(app, round_, *devices)
            asking = [replace(one, api=Api(replica, one.api.token)) for one in devices for replica in replicas * 2]
            with ThreadPoolExecutor(max_workers=12) as pool:
                answers = list(pool.map(everything, asking))
            told = {(one.id, answer.parts) for one, answer in zip(asking, answers, strict=True)}
            assert len(told) == len(devices), "every replica gives the same bytes"
            with app.state.database.transaction(DEFAULT_PROJECT) as session:
                rows = session.execute(
                    select(DirectorMetadata.device_id, func.max(DirectorMetadata.version)).group_by(
                        DirectorMetadata.device_id, DirectorMetadata.role
                    )
                )
                assert Counter(version for _, version in rows) == {round_: 3 * len(devices)}
    finally:
        for replica in replicas:
            replica.state.database.close()


@pytest.mark.parametrize(
    ("days", "signed"),
    [
        (1, {}),
        (4, {"timestamp": 2}),
        (16, {"timestamp": 2, "snapshot": 2}),
        (200, {"timestamp": 2, "snapshot": 2, "targets": 2}),
    ],
)
def test_metadata_are_signed_again_at_half_of_their_life(
    app: FastAPI, device: TestDevice, days: int, signed: dict[str, int]
) -> None:
    before = newest(app, device)
    later = datetime.now(UTC) + timedelta(days=days)
    assert newest(app, device, later) == before | signed
    assert newest(app, device, later) == before | signed, "once"


def test_old_versions_are_kept_while_they_can_be_a_dictionary_and_then_forgotten(
    app: FastAPI, device: TestDevice
) -> None:
    assign(app, 1, device)
    held = held_after(everything(device))
    for release in (2, 1, 2):
        assign(app, release, device)
        lost = device.poll(held=list(held))
        PollAnswer.from_bytes(lost.content, b"".join(held.values()))
    assert kept(app, device) == [(role, n) for role in ("snapshot", "targets", "timestamp") for n in (1, 4)]
    held = held_after(PollAnswer.from_bytes(lost.content, b"".join(held.values())), held)
    assign(app, 1, device)
    device.poll(held=list(held))
    assert kept(app, device) == [(role, n) for role in ("snapshot", "targets", "timestamp") for n in (4, 5)]
    forgotten = [*(item for item in held if item.repository == "image"), HeldMetadata("director", "timestamp", 1)]
    assert PollAnswer.from_bytes(device.poll(held=forgotten).content).parts, "plain, for the dictionary is gone"


def test_the_database_refuses_versions_that_are_not_the_next_and_keeps_the_newest(
    app: FastAPI, device: TestDevice
) -> None:
    assign(app, 1, device)
    device.poll()
    now = datetime.now(UTC)
    row = {"device_id": device.id, "role": "targets", "body": b"{}", "created_at": now}
    changes = [
        (insert(DirectorMetadata).values(**row, version=version, expires_at=now + timedelta(days=1)), "next version")
        for version in (1, 3)
    ]
    changes += [
        (delete(DirectorMetadata).where(DirectorMetadata.role == "targets"), "stays"),
        (update(DirectorMetadata).values(body=b"{}"), "are facts"),
    ]
    for change, words in changes:
        with pytest.raises(IntegrityError, match=words), app.state.database.transaction(DEFAULT_PROJECT) as session:
            session.execute(change)
    assert newest(app, device)["targets"] == 1


def test_a_device_that_joins_while_a_rollout_runs_is_assigned_when_it_ends(
    app: FastAPI, operator: Api, device: TestDevice, tmp_path: Path
) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        one = rollout_flow.create(session, model="mnist", release=1, reaches=["100%"], devices=None, by="test")
        rollout_flow.start(session, one.id, app.state.settings)
    (late,) = join(app, operator, 1)
    client = directed(late, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("mnist/1/full") is None
    device.tell(Outcome.COMMITTED)
    client = directed(late, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("mnist/1/full") is not None


def test_the_timestamp_says_when_it_was_signed_and_repeats_a_nonce(device: TestDevice) -> None:
    def signed_time(headers: dict[str, str]) -> SignedTime | None:
        answer = device.api.get("/device/v1/poll", headers=headers)
        return SignedTime.from_fields(signed_in(PollAnswer.from_bytes(answer.content))["director", "timestamp"])

    first = signed_time({})
    assert first is not None
    assert abs(datetime.now(UTC) - first.at) < timedelta(seconds=60)
    assert first.nonce is None
    asked = signed_time({NONCE_HEADER: NONCE})
    assert asked is not None
    assert asked.nonce == NONCE
    assert asked.at >= first.at
    refused = device.api.get("/device/v1/poll", headers={NONCE_HEADER: "now"})
    assert (refused.status_code, NONCE_HEADER in refused.json()["detail"]) == (422, True)


def test_the_keys_are_files_that_only_their_owner_reads(app: FastAPI, device: TestDevice) -> None:
    device.poll()
    files = [path for path in app.state.settings.keys_dir.iterdir() if path.name.startswith("director-")]
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def online_key(database: Database, settings: Settings) -> Path:
    with database.transaction(DEFAULT_PROJECT) as session:
        root = director_root.newest(session).body
    return director_root.online_key_path(settings.keys_dir, director_root.online_keyid(root))


def test_a_missing_or_foreign_online_key_is_named_with_what_to_do(database: Database, settings: Settings) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        director_root.ensure(session, settings)
    path = online_key(database, settings)
    for content, words in ((None, "is missing; copy"), (CryptoSigner.generate_ed25519().private_bytes, "not the key")):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(KeysUnusable, match=f"{path} .*{words}"), database.transaction(DEFAULT_PROJECT) as session:
            director_root.ensure(session, settings)


def test_a_poll_that_needs_a_signature_and_finds_no_key_is_an_error_that_names_it(
    app: FastAPI, device: TestDevice, caplog: pytest.LogCaptureFixture
) -> None:
    device.poll()
    path = online_key(app.state.database, app.state.settings)
    path.unlink()
    assert device.poll().status_code == 200, "what is signed is served"
    assign(app, 1, device)
    answer = device.poll()
    assert (answer.status_code, answer.json()["code"]) == (500, "publish.keys-unusable")
    assert path.name in answer.json()["detail"]
    assert "request.failed" in caplog.text
    assert kept(app, device) == [("snapshot", 1), ("targets", 1), ("timestamp", 1)]


def test_the_director_works_without_its_root_key_which_is_asked_for_when_it_is_due(
    app: FastAPI, device: TestDevice
) -> None:
    settings, later = app.state.settings, datetime.now(UTC) + timedelta(days=400)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert not director_root.sign_again(session, settings)
    root_key = director_root.root_key_path(settings.keys_dir)
    taken_away = root_key.rename(root_key.with_suffix(".away"))
    assign(app, 1, device)
    assert device.wish() is not None
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert not director_root.sign_again(session, settings, later)
        with pytest.raises(KeysUnusable, match="bring it back"):
            director_root.rotate_online_key(session, settings)
    taken_away.rename(root_key)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert director_root.sign_again(session, settings, later)
        assert director_root.newest(session).version == 2


def rotated(app: FastAPI) -> Path:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        return director_root.rotate_online_key(session, app.state.settings)[0]


@pytest.mark.parametrize("times", [1, 3])
def test_a_device_follows_rotations_of_the_online_key_and_versions_go_on(
    app: FastAPI, device: TestDevice, tmp_path: Path, times: int
) -> None:
    assign(app, 1, device)
    directed(device, tmp_path / "trust").refresh()
    held = held_after(everything(device))
    for _ in range(times):
        rotated(app).unlink()
    answer = PollAnswer.from_bytes(device.poll(held=list(held)).content, b"".join(held.values()))
    assert [part.name for part in answer.parts] == [
        *(f"director/{n}.root.json" for n in range(2, 2 + times)),
        "director/timestamp.json",
        "director/2.snapshot.json",
        "director/2.targets.json",
    ]
    client = directed(device, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("mnist/1/full") is not None


def test_a_device_follows_a_new_root_key_which_then_replaces_the_online_key(
    app: FastAPI, device: TestDevice, tmp_path: Path
) -> None:
    assign(app, 1, device)
    directed(device, tmp_path / "trust").refresh()
    held = held_after(everything(device))
    for _ in range(2):
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            old, new = director_root.rotate_root_key(session, app.state.settings)
        assert stat.S_IMODE(new.stat().st_mode) == 0o600
        old.unlink()
    rotated(app).unlink()
    answer = PollAnswer.from_bytes(device.poll(held=list(held)).content, b"".join(held.values()))
    assert [part.name for part in answer.parts][:3] == [f"director/{n}.root.json" for n in (2, 3, 4)]
    client = directed(device, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("mnist/1/full") is not None
    new.unlink()
    with (
        app.state.database.transaction(DEFAULT_PROJECT) as session,
        pytest.raises(KeysUnusable, match="not in the keys folder"),
    ):
        director_root.rotate_root_key(session, app.state.settings)


def test_a_rotation_that_is_not_committed_leaves_the_key_that_devices_trust(app: FastAPI, device: TestDevice) -> None:
    before = online_key(app.state.database, app.state.settings)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        director_root.rotate_online_key(session, app.state.settings)
        session.rollback()
    assert online_key(app.state.database, app.state.settings) == before
    assign(app, 1, device)
    assert device.wish() is not None
