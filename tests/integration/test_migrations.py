"""The schema: what the migrations make is what the models say, and back."""

import threading
from importlib.metadata import version

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from procrastinate.schema import SchemaManager
from sqlalchemy import text

from sprat_server.db import migrate
from sprat_server.db.base import Base
from sprat_server.db.projects import ACROSS, DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_shared.errors import TryLater


@pytest.fixture
def empty(empty_database_url: str):
    opened = Database(empty_database_url)
    yield opened
    opened.close()


def revisions() -> list[str]:
    """All revisions, oldest first."""
    scripts = ScriptDirectory.from_config(migrate.alembic_config())
    return [script.revision for script in scripts.walk_revisions()][::-1]


def objects(database: Database) -> set[tuple[str, str]]:
    """Every table, function, type and trigger that is ours or the queue's."""
    queries = [
        "SELECT 'table', tablename::text FROM pg_tables WHERE schemaname = 'public'",
        "SELECT 'function', oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        "SELECT 'type', typname::text FROM pg_type WHERE typnamespace = 'public'::regnamespace",
        "SELECT 'trigger', tgrelid::regclass || '.' || tgname FROM pg_trigger WHERE NOT tgisinternal",
        "SELECT 'index', indexname::text FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT 'constraint', conrelid::regclass || '.' || conname FROM pg_constraint WHERE contype <> 'n'",
    ]
    with database.engine.connect() as connection:
        return {(row[0], row[1]) for query in queries for row in connection.execute(text(query))}


def test_migrations_are_numbered_and_linear() -> None:
    for number, revision in enumerate(revisions(), start=1):
        assert revision.startswith(f"{number:04}_"), revision


def test_the_upgraded_schema_equals_the_models(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": migrate.compared})
        assert compare_metadata(context, Base.metadata) == []


def test_constraints_and_indexes_are_the_same_word_for_word(database: Database, empty: Database) -> None:
    query = text(
        "SELECT 'constraint', conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND contype <> 't'"
        " UNION ALL SELECT 'index', indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    )

    def rules(of: Database) -> set[tuple[str, str, str]]:
        with of.engine.connect() as connection:
            return {
                (row[0], row[1], row[2])
                for row in connection.execute(query)
                if "procrastinate" not in row[1] and "alembic" not in row[1]
            }

    Base.metadata.create_all(empty.engine)
    assert rules(database) == rules(empty)


def test_each_downgrade_undoes_its_upgrade(empty: Database) -> None:
    after: dict[str, set[tuple[str, str]]] = {}
    for revision in revisions():
        migrate.upgrade(empty.engine, revision)
        after[revision] = objects(empty)
    for newer, older in reversed(list(zip(revisions()[1:], revisions(), strict=False))):
        migrate.downgrade(empty.engine, older)
        assert objects(empty) == after[older], f"downgrade of {newer}"
    migrate.downgrade(empty.engine, "base")
    assert {name for kind, name in objects(empty) if kind == "table"} == {"alembic_version"}
    assert migrate.upgrade(empty.engine) == (None, revisions()[-1])
    assert objects(empty) == after[revisions()[-1]]


def test_an_upgrade_that_cannot_have_its_lock_gives_up_and_says_so(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT_S", 1)
    migrate.upgrade(empty.engine, "0002_jobs")
    with empty.across_projects() as session:
        session.execute(text("SELECT * FROM job"), execution_options=ACROSS)  # a transaction that stays open
        with pytest.raises(TryLater, match="lock timeout"):
            migrate.downgrade(empty.engine, "0001_access")
    assert migrate.upgrade(empty.engine)[0] == "0002_jobs"


def test_upgrades_that_start_together_do_not_meet(empty: Database) -> None:
    results: list[tuple[str | None, str | None]] = []
    threads = [threading.Thread(target=lambda: results.append(migrate.upgrade(empty.engine))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    newest = revisions()[-1]
    assert sorted(results, key=str) == sorted([(None, newest), (newest, newest), (newest, newest)], key=str)


def test_a_database_of_a_newer_sprat_is_left_alone(empty: Database) -> None:
    migrate.upgrade(empty.engine)
    with empty.transaction(DEFAULT_PROJECT) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    for call in (migrate.upgrade, migrate.require_newest):
        with pytest.raises(migrate.SchemaMismatch, match="9999_future"):
            call(empty.engine)


def test_an_old_or_empty_database_is_refused_with_what_to_run(empty: Database) -> None:
    with pytest.raises(migrate.SchemaMismatch, match=r"no schema.*sprat-server db upgrade"):
        migrate.require_newest(empty.engine)


def test_the_queue_s_schema_is_the_one_of_the_installed_procrastinate() -> None:
    carried = migrate.migrations_dir() / "sql" / "procrastinate-3.10.0.sql"
    assert carried.read_text(encoding="utf-8") == SchemaManager.get_schema(), (
        f"procrastinate {version('procrastinate')} has another schema: write a migration"
    )
