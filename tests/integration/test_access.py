"""Tokens, scopes and the audit log, over HTTP and against the database itself."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from fastapi import FastAPI
from http_calls import Api
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from sprat_server.access import audit, tokens
from sprat_server.access.models import OperatorToken
from sprat_server.api.auth import Operator
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.db.session import Database, SessionDep
from sprat_server.observe.actors import SYSTEM
from sprat_shared.errors import Conflict


def test_healthz_needs_no_token_and_tells_no_detail(anonymous: Api) -> None:
    answer = anonymous.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_a_token_is_shown_once_kept_as_a_hash_and_works(admin: Api, app: FastAPI, database: Database) -> None:
    made = admin.post("/api/v1/tokens", json={"name": "ci", "scopes": ["viewer", "operator"], "expires_s": 60})
    assert made.status_code == 201
    shown = made.json()["token"]
    secret = shown.split("_", 2)[2]
    assert made.json()["scopes"] == ["viewer", "operator"]
    assert Api(app, shown).get("/api/v1/jobs").status_code == 200
    listed = admin.get("/api/v1/tokens")
    assert secret not in listed.text
    with database.transaction(DEFAULT_PROJECT) as session:
        kept = session.execute(text("SELECT t::text FROM operator_token t"), execution_options=ACROSS).scalars().all()
        written = session.execute(text("SELECT a::text FROM audit a"), execution_options=ACROSS).scalars().all()
    assert not any(secret in row for row in kept + written)


@pytest.mark.parametrize("damage", ["secret", "id", "prefix", "nothing-there"])
def test_a_wrong_token_is_refused_without_saying_what_is_wrong_with_it(admin: Api, app: FastAPI, damage: str) -> None:
    assert admin.token is not None
    prefix, id_, secret = admin.token.split("_", 2)
    shown = {
        "secret": f"{prefix}_{id_}_{secret[:-4]}AAAA",
        "id": f"{prefix}_{'0' * 32}_{secret}",
        "prefix": f"other_{id_}_{secret}",
        "nothing-there": "Bearer",
    }[damage]
    answer = Api(app, shown).get("/api/v1/jobs")
    assert answer.status_code == 401
    assert answer.json()["code"] == "access.unauthenticated"
    if damage in {"secret", "id"}:
        assert answer.json()["detail"] == "the token is not valid here; ask an admin for one"


def test_a_revoked_token_and_an_expired_one_are_refused_by_name(admin: Api, app: FastAPI, database: Database) -> None:
    revoked = admin.post("/api/v1/tokens", json={"name": "gone", "scopes": ["viewer"]}).json()
    assert admin.delete(f"/api/v1/tokens/{revoked['id']}").status_code == 204
    assert "was revoked" in Api(app, revoked["token"]).get("/api/v1/jobs").json()["detail"]
    expired = admin.post("/api/v1/tokens", json={"name": "late", "scopes": ["viewer"], "expires_s": 5}).json()
    with database.transaction(DEFAULT_PROJECT) as session:
        past = datetime.now(UTC) - timedelta(seconds=10)
        values = {"created_at": past - timedelta(seconds=5), "expires_at": past}
        session.execute(update(OperatorToken).where(OperatorToken.name == "late").values(values))
    assert "expired" in Api(app, expired["token"]).get("/api/v1/jobs").json()["detail"]


def test_the_last_admin_token_of_the_server_cannot_be_revoked(server_admin: Api, database: Database) -> None:
    with database.across_projects() as session:
        own = session.scalars(select(OperatorToken.id)).one()
    answer = server_admin.delete(f"/api/v1/tokens/{own}")
    assert (answer.status_code, answer.json()["code"]) == (409, "token.last-admin")


def test_the_first_admin_token_is_made_once_even_when_several_servers_start_together(database: Database) -> None:
    def start(_: int) -> bool:
        with database.transaction(DEFAULT_PROJECT) as session:
            return tokens.create_first_admin(session) is not None

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(start, range(8))) == 1


def test_one_of_several_tokens_of_one_name_is_made_and_the_others_are_told_why(database: Database) -> None:
    def make(_: int) -> str:
        try:
            with database.transaction(DEFAULT_PROJECT) as session:
                tokens.create(session, name="ci", scope=tokens.Scope.VIEWER, expires_s=None, by=None)
        except Conflict as told:
            return told.code
        return "made"

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(make, range(8)))
    assert sorted(outcomes) == ["made", *["token.exists"] * 7]


def test_the_database_refuses_an_unknown_scope(database: Database) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        tokens.create(session, name="x", scope=tokens.Scope.VIEWER, expires_s=None, by=None)
    with pytest.raises(IntegrityError, match="scope_is_known"), database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(OperatorToken).values(scope="root"))


def test_last_use_is_noted_to_the_minute(admin: Api) -> None:
    admin.get("/api/v1/jobs")
    (token,) = admin.get("/api/v1/tokens").json()["items"]
    assert token["last_used_at"] is not None


def test_mutating_calls_are_in_the_audit_log_with_who_what_and_which_request(admin: Api) -> None:
    made = admin.post("/api/v1/tokens", json={"name": "bot", "scopes": ["viewer"]}, headers={"X-Request-Id": "call-7"})
    admin.delete(f"/api/v1/tokens/{made.json()['id']}")
    newest, older = admin.get("/api/v1/audit").json()["items"]
    assert (newest["action"], older["action"]) == ("token.revoke", "token.create")
    assert older["subject"] == f"token:{made.json()['id']}"
    assert older["actor"].startswith("operator:test-")
    assert older["request_id"] == "call-7"
    assert newest["previous"] == older["digest"]
    assert admin.get("/api/v1/audit/chain").json() == {"whole": True, "broken_at": None}


def test_a_route_that_forgets_the_audit_record_answers_500_and_changes_nothing(
    app: FastAPI, operator: Api, database: Database
) -> None:
    @app.post("/forgetful")
    def forgetful(session: SessionDep, _operator: Operator) -> str:
        session.execute(text("UPDATE operator_token SET name = 'changed'"), execution_options=ACROSS)
        return "done"

    assert operator.post("/forgetful").status_code == 500
    with database.transaction(DEFAULT_PROJECT) as session:
        assert "changed" not in session.scalars(select(OperatorToken.name)).all()


@pytest.mark.parametrize(
    "statement", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "TRUNCATE audit", "TRUNCATE audit CASCADE"]
)
def test_the_database_refuses_to_change_the_audit_log(database: Database, statement: str) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        audit.record(session, SYSTEM, "thing.make", "thing:1")
    with pytest.raises(DBAPIError, match="append-only"), database.transaction(DEFAULT_PROJECT) as session:
        session.execute(text(statement), execution_options=ACROSS)


@pytest.mark.parametrize(
    ("damage", "seq"),
    [
        ("UPDATE audit SET after = '{\"share\": 2}' WHERE seq = 3", 3),
        ("UPDATE audit SET at = at - interval '1 microsecond' WHERE seq = 2", 2),
        ("DELETE FROM audit WHERE seq = 4", 5),
        ("DELETE FROM audit WHERE seq = 1", 2),
    ],
)
def test_a_record_changed_or_removed_behind_our_back_breaks_the_chain_there(
    database: Database, damage: str, seq: int
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        for number in range(1, 7):
            audit.record(session, SYSTEM, "thing.make", f"thing:{number}", None, {"share": 0.1, "name": "größer"})
    with database.transaction(DEFAULT_PROJECT) as session:
        assert audit.verify(session) is None
        session.execute(text("ALTER TABLE audit DISABLE TRIGGER USER"), execution_options=ACROSS)
        session.execute(text(damage), execution_options=ACROSS)
        assert audit.verify(session) == seq


def test_records_written_at_the_same_time_form_one_chain(database: Database) -> None:
    def write(number: int) -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            audit.record(session, SYSTEM, "thing.make", f"thing:{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(60)))
    with database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalar(text("SELECT max(seq) = 60 AND count(*) = 60 FROM audit"), execution_options=ACROSS)
        assert audit.verify(session) is None
