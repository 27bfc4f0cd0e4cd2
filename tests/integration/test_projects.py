"""Projects: made with keys of their own; what a session sees and adds is its project's, whatever the query says."""

from pathlib import Path
from uuid import UUID

import pytest
from fastapi import FastAPI
from fleet_calls import join, made, published
from http_calls import Api, as_scope
from sqlalchemy import delete, exists, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import aliased

from sprat_server.access import audit
from sprat_server.access.models import OperatorToken
from sprat_server.access.tokens import Scope
from sprat_server.db.base import Base
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT, SERVER, ProjectOwned, enter, project_of
from sprat_server.db.session import Database
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Assignment, Device, DeviceSlots
from sprat_server.observe.actors import SYSTEM
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release
from sprat_server.settings import Settings

SHARED = {
    "project": "it is what others belong to",
    "graph": "named by the digest of its bytes, reached through releases; who may read the bytes is in owned_blob",
}
"""Tables whose rows belong to no project, and why that tells nobody anything."""


@pytest.fixture
def other(server_admin: Api) -> UUID:
    """Another project than the default one."""
    return UUID(made(server_admin.post("/api/v1/projects", json={"name": "other"}))["id"])


def test_every_table_belongs_to_projects_or_is_on_the_list_with_a_reason() -> None:
    tables = {mapper.local_table.name: mapper.class_ for mapper in Base.registry.mappers}
    assert set(tables) == set(Base.metadata.tables)
    assert {name for name, mapped in tables.items() if not issubclass(mapped, ProjectOwned)} == set(SHARED)


def test_every_reference_between_rows_of_projects_names_the_project_too() -> None:
    owned = {mapper.local_table for mapper in Base.registry.mappers if issubclass(mapper.class_, ProjectOwned)}
    by_unique_parent = {"model_id", "rollout_id", "device_id", "created_by"}
    for table in owned:
        for key in table.foreign_key_constraints:
            if key.referred_table in owned and "project_id" not in key.column_keys:
                # of another key, such as (model_id, number): its first column is held to the project by a key beside it
                first = key.column_keys[0]
                assert first in by_unique_parent, (table.name, key.name)
                beside = [set(one.column_keys) for one in table.foreign_key_constraints]
                assert {"project_id", first} in beside or table.name in {"rollout_event", "operator_token"}, (
                    table.name,
                    key.name,
                )


def test_a_session_sees_and_changes_its_project_alone(app: FastAPI, operator: Api, other: UUID) -> None:
    published(app)
    published(app, project_id=other)
    there = as_scope(app, Scope.OPERATOR, other)
    device = join(app, operator, 1)[0]
    stranger = join(app, there, 1, other)[0]
    named = aliased(Device)
    newest = select(Assignment.device_id, func.max(Assignment.counter).label("n")).group_by(Assignment.device_id)
    counted = newest.subquery()
    database: Database = app.state.database
    for project_id, mine in ((DEFAULT_PROJECT, device), (other, stranger)):
        with database.transaction(project_id) as session:
            fleet.assign(session, registry.get_model(session, "mnist").id, {mine.id: 1}, "rollout")
            assert session.scalars(select(Device.id)).all() == [mine.id]
            assert session.scalar(select(func.count()).select_from(Device)) == 1
            assert session.scalars(select(named.id)).all() == [mine.id]
            assert session.scalars(select(Device.id).where(Device.id.in_(select(Assignment.device_id)))).all() == [
                mine.id
            ]
            assert session.scalars(select(Device.id).where(exists().where(Model.name == "mnist"))).all() == [mine.id]
            assert session.execute(
                select(Device.id, counted.c.n).join(counted, Device.id == counted.c.device_id)
            ).all() == [(mine.id, 1)]
            assert [row.project_id for row in session.scalars(select(Release))] == [project_id]
    with database.transaction(other) as session:
        assert session.get(Device, device.id) is None
        assert session.execute(update(Device).values(agent="9.9.9")).rowcount == 1
        assert session.execute(delete(DeviceSlots)).rowcount == 0
        assert session.execute(update(Device).where(Device.id == device.id).values(agent="x")).rowcount == 0
    with database.across_projects() as session:
        assert session.scalar(select(Device.agent).where(Device.id == device.id)) == "0.1.0"


def test_two_projects_may_have_a_model_of_one_name_and_rows_of_two_cannot_be_joined(
    app: FastAPI, operator: Api, other: UUID
) -> None:
    published(app)
    published(app, project_id=other)
    device = join(app, operator, 1)[0]
    database: Database = app.state.database
    with database.across_projects() as session:
        models = {row.project_id: row.id for row in session.scalars(select(Model).where(Model.name == "mnist"))}
    assert set(models) == {DEFAULT_PROJECT, other}
    for project_id in (DEFAULT_PROJECT, other):
        with pytest.raises(IntegrityError), database.transaction(project_id) as session:
            session.add(Assignment(device_id=device.id, counter=9, model_id=models[other], number=1, reason="rollout"))


def test_a_session_that_knows_no_project_refuses_to_read_and_to_add(database: Database) -> None:
    with database.transaction(None) as session:
        with pytest.raises(RuntimeError, match="in which project"):
            session.scalars(select(Device))
        with pytest.raises(RuntimeError, match="in which project"):
            session.get(Model, UUID(int=1))
        with pytest.raises(RuntimeError, match="acts in no project"):
            project_of(session)
    with pytest.raises(StatementError, match="model is added by a session"), database.transaction(None) as session:
        session.add(Model(name="mnist"))
    with pytest.raises(StatementError, match="model is added by a session"), database.across_projects() as session:
        session.add(Model(name="mnist"))


def test_sql_that_cannot_be_narrowed_is_refused_unless_it_says_that_it_sees_all(database: Database) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        for statement in (text("SELECT count(*) FROM device"), select(Device.__table__)):
            with pytest.raises(RuntimeError, match="device: SQL that is not the ORM's"):
                session.execute(statement)
        assert session.scalar(text("SELECT count(*) FROM device"), execution_options=ACROSS) == 0


def test_a_connection_that_goes_back_to_the_pool_forgets_its_project(database: Database) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        session.add(Model(name="one"))
    with pytest.raises(StatementError, match="acts in no project"), database.engine.begin() as connection:
        connection.execute(insert(Model.__table__).values(name="two"))  # type: ignore[arg-type]


def test_entering_another_project_changes_what_is_seen_at_once(database: Database, other: UUID) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        session.add(Model(name="here"))
        enter(session, other)
        session.add(Model(name="there"))
        session.flush()
        assert session.scalars(select(Model.name)).all() == ["there"]


def test_a_project_has_keys_of_its_own_and_metadata_that_name_no_other_s_models(
    app: FastAPI, settings: Settings, server_admin: Api, other: UUID
) -> None:
    published(app, model="secret-one")
    folder: Path = settings.keys_dir / "projects" / str(other)
    assert {path.name for path in folder.glob("image-*")} >= {"image-root.pem", "image-timestamp.pem"}
    assert not {path.read_bytes() for path in folder.glob("*.pem")} & {
        path.read_bytes() for path in settings.keys_dir.glob("*.pem")
    }
    shown = server_admin.get("/api/v1/keys", headers={"Sprat-Project": "other"})
    assert [role["role"] for role in made(shown)["roles"]] == ["root", "targets", "snapshot", "timestamp"]
    assert "secret-one" not in shown.text


def test_a_token_of_the_whole_server_acts_in_the_project_that_it_names(
    app: FastAPI, server_admin: Api, admin: Api, other: UUID
) -> None:
    published(app, project_id=other)
    there = {"Sprat-Project": "other"}
    assert made(server_admin.get("/api/v1/models"))["items"] == []
    assert [one["name"] for one in made(server_admin.get("/api/v1/models", headers=there))["items"]] == ["mnist"]
    for headers in (there, {"Sprat-Project": "no-such"}):
        answer = admin.get("/api/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "project.unknown")
    assert made(admin.get("/api/v1/models", headers={"Sprat-Project": "default"}))["items"] == []


def test_a_project_s_admin_makes_tokens_of_that_project_only(app: FastAPI, server_admin: Api, other: UUID) -> None:
    chief = as_scope(app, Scope.ADMIN, other)
    token = made(chief.post("/api/v1/tokens", json={"name": "ci", "scopes": ["viewer"]}))
    assert token["whole_server"] is False
    with app.state.database.transaction(other) as session:
        assert session.get_one(OperatorToken, UUID(token["id"])).project_id == other
    refused = chief.post("/api/v1/tokens", json={"name": "all", "scopes": ["viewer"], "whole_server": True})
    assert (refused.status_code, refused.json()["code"]) == (403, "access.whole-server")
    for path in ("/api/v1/tokens", "/api/v1/audit", "/api/v1/audit/chain"):
        assert chief.get(path, params={"of_server": True}).status_code == 403
        assert server_admin.get(path, params={"of_server": True}).status_code == 200
    mine = {one["id"] for one in made(chief.get("/api/v1/tokens"))["items"]}
    for one in made(server_admin.get("/api/v1/tokens", params={"of_server": True}))["items"]:
        assert one["id"] not in mine
        assert chief.delete(f"/api/v1/tokens/{one['id']}").status_code == 404


def test_each_project_has_an_audit_chain_of_its_own(
    app: FastAPI, server_admin: Api, operator: Api, other: UUID, database: Database
) -> None:
    there = as_scope(app, Scope.OPERATOR, other)
    for api in (operator, there, operator, there, there):
        made(api.post("/api/v1/enrolment-tokens", json={"uses": 1}))
    assert [one["seq"] for one in made(there.get("/api/v1/audit"))["items"]] == [3, 2, 1]
    assert made(there.get("/api/v1/audit/chain")) == {"whole": True, "broken_at": None}
    server = made(server_admin.get("/api/v1/audit", params={"of_server": True}))["items"]
    assert [(one["seq"], one["action"]) for one in server] == [(1, "project.create")]
    assert '"sprat-audit-3"' in made(there.get("/api/v1/audit"))["items"][0]["sealed"]
    assert '"sprat-audit-2"' in made(operator.get("/api/v1/audit"))["items"][0]["sealed"]
    with database.transaction(other) as session:
        session.execute(text("ALTER TABLE audit DISABLE TRIGGER USER"), execution_options=ACROSS)
        moved = text("UPDATE audit SET project_id = :there WHERE project_id = :here AND seq = 3")
        session.execute(moved, {"there": SERVER, "here": other}, execution_options=ACROSS)
        assert audit.verify(session) is None
        assert audit.verify(session, of_server=True) == 3, "a record that was put into another chain breaks it"


def test_a_second_project_of_one_name_is_refused_and_a_title_can_change(server_admin: Api, other: UUID) -> None:
    again = server_admin.post("/api/v1/projects", json={"name": "other"})
    assert (again.status_code, again.json()["code"]) == (409, "project.exists")
    changed = made(server_admin.patch("/api/v1/projects/other", json={"title": "Line 3"}))
    assert (changed["title"], changed["id"]) == ("Line 3", str(other))
    assert changed["changed_at"] > changed["created_at"]


def test_what_the_server_records_of_itself_needs_no_project(database: Database) -> None:
    with database.transaction(SERVER) as session:
        audit.record(session, SYSTEM, "token.create", "token:x", of_server=True)
        assert audit.verify(session, of_server=True) is None
