"""The registry's rows are facts: the database itself refuses wrong ones, and changes of right ones."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from fleet_calls import TABLE, publish
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.flows.release_files import BaseRelease
from sprat_server.registry import service as registry
from sprat_server.registry.models import Dataset, DirectBuild, Graph, Model, Publication, Release, UpdateFile
from sprat_server.registry.service import NewUpdate
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict, InvalidInput, NotFound

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def model_at_2(database: Database, blobs: Blobs, settings: Settings) -> Model:
    """A model with two releases."""
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings)
        publish(session, blobs, settings, base=1)
        return registry.get_model(session, "mnist")


def a_release(model: Model, **changes: Any) -> Release:
    fields = {
        "model_id": model.id,
        "number": 3,
        "release_id": DIGEST,
        "graph_digest": "",
        "weights_digest": DIGEST,
        "weights_blob": DIGEST,
        "model_bytes": 2000,
        "origin": "created",
        "base_number": 2,
        "metrics": {},
        "tensor_table": [],
    }
    return Release(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"number": 4}, "the next release of this model is 3"),
        ({"number": 2, "base_number": 1}, "the next release of this model is 3"),
        ({"base_number": 3}, "base_came_before"),
        ({"base_number": None}, "only_the_first_has_no_base"),
        ({"origin": "registered"}, "only_the_first_is_registered"),
        ({"origin": "found"}, "origin_is_known"),
        ({"weights_digest": "sha256:AB"}, "weights_digest_is_sha256"),
        ({"weights_blob": "ab" * 32}, "weights_blob_is_sha256"),
        ({"release_id": "x"}, "release_id_is_sha256"),
        ({"model_bytes": 0}, "model_is_not_empty"),
        ({"tensor_table": {}}, "tensor_table_is_a_list"),
        ({"graph_digest": DIGEST}, "fk_release_graph_digest"),
        ({}, "release 3 has no full update"),
    ],
)
def test_the_database_refuses_a_release_that_cannot_be(
    database: Database, model_at_2: Model, changes: dict[str, Any], constraint: str
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        graph = session.scalars(select(Graph.digest)).one()
    with pytest.raises(IntegrityError, match=constraint), database.transaction(DEFAULT_PROJECT) as session:
        session.add(a_release(model_at_2, **({"graph_digest": graph} | changes)))


def test_a_release_has_one_full_update_and_not_two(database: Database, model_at_2: Model) -> None:
    second = UpdateFile(model_id=model_at_2.id, number=2, base_number=None, blob=DIGEST, bytes=5, wire=1)
    with pytest.raises(IntegrityError, match="uq_update_file"), database.transaction(DEFAULT_PROJECT) as session:
        session.add(second)


def test_an_update_starts_at_a_release_that_exists(database: Database, model_at_2: Model) -> None:
    stray = UpdateFile(model_id=model_at_2.id, number=2, base_number=9, blob=DIGEST, bytes=5, wire=1)
    with pytest.raises(IntegrityError, match="base_exists"), database.transaction(DEFAULT_PROJECT) as session:
        session.add(stray)


@pytest.mark.parametrize("table", [Model, Graph, Release, UpdateFile])
@pytest.mark.parametrize("statement", [delete, lambda table: update(table).values(created_at=table.created_at)])
@pytest.mark.usefixtures("model_at_2")
def test_facts_are_never_changed_or_deleted(
    database: Database, table: type[Any], statement: Callable[[type[Any]], Any]
) -> None:
    with pytest.raises(IntegrityError, match="are facts"), database.transaction(DEFAULT_PROJECT) as session:
        session.execute(statement(table))


def test_what_was_found_out_about_a_direct_update_stays_and_is_of_a_newer_release(
    database: Database, model_at_2: Model
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        registry.add_direct_build(session, model_at_2, base=1, number=2, blob=DIGEST, length=80)
    for statement in (delete(DirectBuild), update(DirectBuild).values(bytes=1)):
        with pytest.raises(IntegrityError, match="are facts"), database.transaction(DEFAULT_PROJECT) as session:
            session.execute(statement)
    with (
        pytest.raises(IntegrityError, match="leads_to_a_newer_release"),
        database.transaction(DEFAULT_PROJECT) as session,
    ):
        registry.add_direct_build(session, model_at_2, base=2, number=1, blob=None, length=None)
    with (
        pytest.raises(IntegrityError, match="what_is_kept_has_a_length"),
        database.transaction(DEFAULT_PROJECT) as session,
    ):
        session.add(DirectBuild(model_id=model_at_2.id, base_number=1, number=2, blob=DIGEST, bytes=None))


def test_a_dataset_counts_every_sample_once(database: Database) -> None:
    dataset = Dataset(
        digest=DIGEST,
        name="n",
        bytes=1,
        format="npz",
        samples=10,
        input_shape=[2],
        input_dtype="float32",
        classes=2,
        train=5,
        validation=3,
        test=3,
        given_split=False,
    )
    with (
        pytest.raises(IntegrityError, match="every_sample_is_in_one_split"),
        database.transaction(DEFAULT_PROJECT) as session,
    ):
        session.add(dataset)


SHARES = {"base": 2, "weights": DIGEST, "donor": "face", "budget_ppm": 50_000}


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"shares": SHARES}, "only_shared_ones_share"),
        ({"origin": "shared"}, "only_shared_ones_share"),
        ({"origin": "shared", "shares": SHARES | {"base": 1}}, "what_shares_was_made_from_its_base"),
        ({"origin": "shared", "shares": {"base": 2}}, "what_shares_was_made_from_its_base"),
        ({"origin": "shared", "shares": [SHARES]}, "what_shares_was_made_from_its_base"),
    ],
)
def test_the_database_refuses_a_release_that_shares_without_saying_what(
    database: Database, model_at_2: Model, changes: dict[str, Any], constraint: str
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        graph = session.scalars(select(Graph.digest)).one()
    with pytest.raises(IntegrityError, match=constraint), database.transaction(DEFAULT_PROJECT) as session:
        session.add(a_release(model_at_2, graph_digest=graph, **changes))


def test_work_goes_on_from_the_newest_release_that_shares_nothing(database: Database, model_at_2: Model) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        digest = session.scalars(select(Graph.digest)).first()
        session.add(a_release(model_at_2, graph_digest=digest, origin="shared", shares=SHARES))
        session.add(UpdateFile(model_id=model_at_2.id, number=3, base_number=None, blob=DIGEST, bytes=5, wire=1))
        session.flush()
        session.add(Publication(model_id=model_at_2.id, number=3))
        session.flush()
        assert registry.latest_release(session, model_at_2).number == 2
        assert registry.newest_numbers(session, [model_at_2]) == {model_at_2.id: 2}
        assert BaseRelease.of(session, "mnist", None).number == 2
        with pytest.raises(Conflict, match=r"mnist@3 shares layers with face .* take mnist@2"):
            BaseRelease.of(session, "mnist", 3)


def test_the_same_release_is_not_made_twice(database: Database, model_at_2: Model) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        newest = registry.latest_release(session, model_at_2)
        graph = session.get_one(Graph, newest.graph_digest)
        with pytest.raises(Conflict, match="mnist@2 has exactly this graph and these weights"):
            registry.add_release(
                session,
                model=model_at_2,
                graph=graph,
                weights_blob=newest.weights_blob,
                table=TABLE,
                weights_digest=newest.weights_digest,
                updates=[NewUpdate(None, newest.weights_blob, 2000)],
                metrics={},
                origin="created",
                base=2,
            )


@pytest.mark.parametrize("bases", [[], [1], [None, None], [None, 1, 1]])
def test_a_release_is_offered_with_exactly_one_full_update(
    database: Database, model_at_2: Model, bases: list[int | None]
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session, pytest.raises(InvalidInput, match="exactly one full update"):
        registry.add_release(
            session,
            model=model_at_2,
            graph=session.scalars(select(Graph)).one(),
            weights_blob=DIGEST,
            table=TABLE,
            weights_digest=DIGEST,
            updates=[NewUpdate(base, DIGEST, 5) for base in bases],
            metrics={},
            origin="created",
            base=1,
        )


def test_two_writers_at_once_get_two_numbers(
    database: Database, blobs: Blobs, settings: Settings, model_at_2: Model
) -> None:
    def add() -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            publish(session, blobs, settings, base=1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.transaction(DEFAULT_PROJECT) as session:
        numbers = session.scalars(select(Release.number).where(Release.model_id == model_at_2.id)).all()
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]


def test_what_does_not_exist_is_named(database: Database, model_at_2: Model) -> None:
    def of(session: Session) -> None:
        with pytest.raises(NotFound, match="no model called 'nope'"):
            registry.get_model(session, "nope")
        with pytest.raises(NotFound, match="mnist has no release 9"):
            registry.get_release(session, model_at_2, 9)
        with pytest.raises(NotFound, match="no dataset"):
            registry.get_dataset(session, DIGEST)

    with database.transaction(DEFAULT_PROJECT) as session:
        of(session)
