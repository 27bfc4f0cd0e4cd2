"""What signed metadata name: all that devices may need, and of the past nothing."""

import hashlib
import re
from pathlib import Path

import pytest
from custody_calls import updater
from fastapi import FastAPI
from fleet_calls import TABLE, TestDevice, held_after, join, made, published
from http_calls import Api
from lineage_calls import bring_to
from sqlalchemy import insert, select

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import live, upkeep
from sprat_server.publish import repository
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Graph, Publication, Release, UpdateFile
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict
from sprat_shared.protocol.poll import HeldMetadata, PollAnswer
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.targets import WIRE_VERSION, graph_path
from sprat_shared.wire.tensors import release_id

MAX_PLAIN_BYTES = 4000


def named(app: FastAPI, model: str = "mnist") -> set[str]:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        paths = live.signed_paths(session, registry.get_model(session, model))
    return {path for path in paths if "/graph/" not in path}


def history(app: FastAPI, count: int) -> None:
    """Add so many releases after release 1, each made from the one before, as rows; the last one is not signed yet."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        model = registry.get_model(session, "mnist")
        graph = session.scalars(select(Graph)).one()
        (first,) = session.scalars(select(Release))
        numbers = range(2, count + 2)
        digests = {n: "sha256:" + hashlib.sha256(str(n).encode()).hexdigest() for n in numbers}
        session.execute(
            insert(Release),
            [
                {
                    "model_id": model.id,
                    "number": n,
                    "release_id": release_id(graph.digest, digests[n]),
                    "graph_digest": graph.digest,
                    "weights_digest": digests[n],
                    "weights_blob": first.weights_blob,
                    "model_bytes": first.model_bytes,
                    "origin": "created",
                    "base_number": n - 1,
                    "metrics": {},
                    "tensor_table": [[spec.name, spec.dtype, list(spec.shape)] for spec in TABLE.specs],
                }
                for n in numbers
            ],
        )
        session.execute(
            insert(UpdateFile),
            [
                {
                    "model_id": model.id,
                    "number": n,
                    "base_number": b,
                    "blob": digests[n],
                    "bytes": size,
                    "wire": WIRE_VERSION,
                }
                for n in numbers
                for b, size in ((None, 2000), (n - 1, 100))
            ],
        )
        session.execute(insert(Publication), [{"model_id": model.id, "number": n} for n in numbers])


def sign(app: FastAPI) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        image = open_repository(session, app.state.settings)
        live.sign(session, image, registry.get_model(session, "mnist"), reason="test")


def plain_bytes(device: TestDevice, held: dict[HeldMetadata, bytes]) -> tuple[int, list[str]]:
    """Return the bytes of the metadata that a device lacks, as they are signed, and their names without versions."""
    answer = PollAnswer.from_bytes(device.poll(held=list(held)).content, b"".join(held.values()))
    parts = [part for part in answer.parts if part.kind == "metadata"]
    return sum(len(part.data) for part in parts), [re.sub(r"/[0-9]+\.", "/", part.name) for part in parts]


def test_after_a_thousand_releases_an_update_costs_no_more_metadata_than_after_one(app: FastAPI, operator: Api) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    history(app, 999)
    bring_to(app, 1000, [device])
    held = held_after(PollAnswer.from_bytes(device.poll().content))
    assert published(app, base=1000).number == 1001
    bring_to(app, 1001, [device], commit=False)
    size, names = plain_bytes(device, held)
    assert names == [
        f"{repository}/{role}.json"
        for repository, roles in (
            ("image", ("timestamp", "snapshot", "m.mnist")),
            ("director", ("timestamp", "snapshot", "targets")),
        )
        for role in roles
    ]
    assert named(app) == {"mnist/1000/full", "mnist/1001/full", "mnist/1001/from-1000"}
    assert size <= MAX_PLAIN_BYTES


def test_a_device_far_behind_has_its_whole_chain_signed(app: FastAPI, operator: Api) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    history(app, 5)
    sign(app)
    chain = {f"mnist/{n}/from-{n - 1}" for n in range(2, 7)}
    assert named(app) == {"mnist/1/full", "mnist/6/full"} | chain
    bring_to(app, 6, [device], commit=False)
    wish = device.wish()
    assert wish is not None
    assert set(wish.path) == chain


def test_a_revoked_device_keeps_nothing_alive(app: FastAPI, operator: Api) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    history(app, 3)
    made(operator.post(f"/api/v1/devices/{device.id}/revoke", json={"reason": "lost"}))
    sign(app)
    assert named(app) == {"mnist/4/full"}


def test_what_a_halt_leads_back_to_stays_signed_until_the_rollout_is_over(app: FastAPI, operator: Api) -> None:
    published(app)
    one, two = join(app, operator, 2)
    bring_to(app, 1, [one, two])
    history(app, 2)
    bring_to(app, 3, [one, two], commit=False)
    one.tell(Outcome.COMMITTED)
    sign(app)
    assert "mnist/1/full" in named(app)
    two.tell(Outcome.FAILED)
    wish = one.wish()
    assert wish is not None
    assert (wish.release, wish.assigned.full in named(app)) == (1, True)


def test_an_old_release_that_is_rolled_out_again_is_signed_back_in_before_it_is_assigned(
    app: FastAPI, operator: Api, tmp_path: Path
) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    history(app, 4)
    bring_to(app, 5, [device])
    sign(app)
    assert named(app) == {"mnist/5/full"}
    bring_to(app, 2, [device], commit=False)
    wish = device.wish()
    assert wish is not None
    client = updater(app, tmp_path / "trust")
    client.refresh()
    for path in (*wish.path, wish.assigned.full, graph_path("mnist", wish.target.graph)):
        assert client.get_targetinfo(path) is not None, path


def test_where_people_hold_the_key_a_pruned_release_asks_for_them_before_anything_is_assigned(
    app: FastAPI, operator: Api
) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    history(app, 4)
    sign(app)
    app.state.settings = Settings(
        database_url=app.state.settings.database_url, data_dir=app.state.settings.data_dir, auto_sign="none"
    )
    with pytest.raises(Conflict, match="sprat release sign mnist@2"):
        bring_to(app, 2, [device], commit=False)
    assert device.wish() is None


def test_the_periodic_look_prunes_when_most_of_what_is_named_is_past_and_else_leaves_devices_alone(
    app: FastAPI,
) -> None:
    published(app)
    published(app, base=1)
    assert named(app) == {"mnist/1/full", "mnist/2/full", "mnist/2/from-1"}
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        before = repository.newest_versions(session)
        upkeep.sign_due(session, app.state.settings)
        assert repository.newest_versions(session) == before, "half of it is past: not worth a version"
    history_after = published(app, base=2)
    published(app, base=history_after.number)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        upkeep.sign_due(session, app.state.settings)
    assert "mnist/1/full" not in named(app)


def test_the_periodic_look_signs_what_devices_turned_out_to_need(app: FastAPI, operator: Api) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    bring_to(app, 1, [device])
    history(app, 2)  # published behind the back of the metadata
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        upkeep.sign_due(session, app.state.settings)
    assert named(app) >= {"mnist/3/full", "mnist/2/from-1", "mnist/3/from-2"}
