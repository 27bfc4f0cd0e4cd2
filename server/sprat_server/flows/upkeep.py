"""What must be done although nobody asks: metadata signed again, direct updates asked for, what expired forgotten."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from sprat_server.access import idempotency, projects, webhooks
from sprat_server.db.session import Database
from sprat_server.fleet import drift_records
from sprat_server.fleet.authentication import forget_spent_assertions
from sprat_server.fleet.enrolment import forget_expired_requests
from sprat_server.flows import direct, drift, founding, live, rollout_upkeep, targeting
from sprat_server.observe import outbox
from sprat_server.publish import director_root, drafts, repository
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.settings import Settings
from sprat_shared.errors import SpratError
from sprat_shared.trust.targets import role_of_model

_SIGN_EVERY_S: Final = 300.0  # half-lives are days; but what devices reported may call for other targets
_FORGET_EVERY_S: Final = 3600.0  # what matters is forgotten where it is asked for; this is for rows nobody asks for
_DELIVER_EVERY_S: Final = 30.0
_GROUPS_EVERY_S: Final = 60.0
_DRIFT_EVERY_S: Final = 60.0  # devices speak once a day, but what a retrain began goes on
_LOOK_EVERY_S: Final = 300.0  # what a release, a rollout or a report sets off needs no look

_log = structlog.get_logger(__name__)


def prepare(database: Database, settings: Settings) -> None:
    """Make keys and first metadata where there are none, check the keys, sign what is due.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    for project_id in _projects(database):
        with database.transaction(project_id) as session:
            founding.found(session, settings, project_id)
    _sign_due(database, settings)


async def keep_signed(database: Database, settings: Settings) -> None:
    """Do what `sign_due` does, for ever; replicas may all do this, one signs."""
    while True:
        await asyncio.sleep(_SIGN_EVERY_S)
        try:
            await to_thread.run_sync(_sign_due, database, settings)
        except (SpratError, SQLAlchemyError) as error:
            _log.error("publish.not-signed-again", error=str(error))


async def keep_direct(database: Database) -> None:
    """Ask for direct updates that became worth having, for ever; replicas may all do this, one job is queued."""
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        try:
            await to_thread.run_sync(ask_for_direct, database)
        except (SpratError, SQLAlchemyError) as error:
            _log.error("direct-updates.not-asked-for", error=str(error))


async def keep_small(database: Database) -> None:
    """Forget what has expired (assertions that counted once, devices that nobody accepted), for ever."""
    while True:
        await asyncio.sleep(_FORGET_EVERY_S)
        try:
            await to_thread.run_sync(forget_expired, database)
        except SQLAlchemyError as error:
            _log.error("access.not-forgotten", error=str(error))


async def keep_rolling(database: Database, settings: Settings) -> None:
    """Do what rollouts do by the clock (starts, windows, retries, silence), for ever; replicas may all do this."""
    while True:
        await asyncio.sleep(settings.clock_interval_s)  # windows and starts are said to the minute
        try:
            await to_thread.run_sync(rollout_upkeep.look_after, database, settings)
        except (SpratError, SQLAlchemyError) as error:
            _log.error("rollouts.not-looked-after", error=str(error))


async def keep_groups(database: Database) -> None:
    """Look again at the saved groups whose devices come and go by themselves, for ever; replicas may all do this."""
    while True:
        await asyncio.sleep(_GROUPS_EVERY_S)
        try:
            await to_thread.run_sync(refill_groups, database)
        except (SpratError, SQLAlchemyError) as error:
            _log.error("groups.not-refilled", error=str(error))


def refill_groups(database: Database) -> None:
    """Have the devices in the groups that depend on time or on rollouts for which their filters hold now."""
    for project_id in _projects(database):
        with database.transaction(project_id) as session:
            moved = targeting.refill_moving(session)
        for name, change in moved.items():
            _log.info("groups.moved", group=name, joined=change.joined, left=change.left)


async def keep_watching(database: Database, settings: Settings) -> None:
    """Look at the drift of the models that are watched, for ever; replicas may all do this, one acts."""
    while True:
        await asyncio.sleep(_DRIFT_EVERY_S)
        try:
            await to_thread.run_sync(look_at_drift, database, settings)
        except (SpratError, SQLAlchemyError) as error:
            _log.error("drift.not-looked-at", error=str(error))


def look_at_drift(database: Database, settings: Settings) -> None:
    """Do about the drift of each watched model what its policy says; what fails for one leaves the others."""
    for project_id in _projects(database):
        with database.transaction(project_id) as session:
            watched = drift_records.watched(session)
        for model_id in watched:
            try:
                with database.transaction(project_id) as session:
                    drift.look(session, settings, model_id)
            except SpratError as error:
                _log.error("drift.not-looked-at", model=str(model_id), code=error.code, error=str(error))


async def keep_delivering(database: Database) -> None:
    """Queue deliveries again that a worker took and never made, for ever; replicas may all do this."""
    while True:
        await asyncio.sleep(_DELIVER_EVERY_S)
        try:
            await to_thread.run_sync(_queue_overdue, database)
        except SQLAlchemyError as error:
            _log.error("webhooks.not-queued", error=str(error))


def _queue_overdue(database: Database) -> None:
    with database.across_projects() as session:
        overdue = webhooks.queue_overdue(session)
    if overdue:
        _log.warning("webhooks.overdue", deliveries=overdue)


def forget_expired(database: Database) -> None:
    """Drop the rows that nothing can ask for any more."""
    with database.across_projects() as session:
        forget_spent_assertions(session)
        forget_expired_requests(session)
        outbox.forget_old(session)
        idempotency.forget_expired(session, datetime.now(UTC))


def ask_for_direct(database: Database) -> list[str]:
    """Have workers build the direct updates that are due; return the models for which a job was queued."""
    asked: list[str] = []
    for project_id in _projects(database):
        with database.transaction(project_id) as session:
            models = registry.all_models(session)
            asked += [model.name for model in models if direct.enqueue(session, model) is not None]
    if asked:
        _log.info("direct-updates.asked-for", models=asked)
    return asked


def sign_due(session: Session, settings: Settings, now: datetime | None = None) -> list[str]:
    """Sign again what is past half of its life, or does not name what devices need; return the roles signed.

    Where keys of people are needed a draft is made, which then waits for them, and each look says so in the log.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    image = open_repository(session, settings, now)
    before, due = repository.newest_versions(session), image.due()
    image.settle()
    for model in registry.all_models(session):
        role = role_of_model(model.name)
        if role in due and drafts.of_role(session, role) is None:
            live.sign(session, image, model, reason="half of its life is over")
        else:
            live.tidy(session, image, model)
    image.sign_again(due)
    waiting = {draft.role: draft.metadata.signed.version for draft in drafts.all_drafts(session)}
    for role in set(waiting) & set(due):
        advice = "it expires unless its keys sign it: sprat keys show"
        _log.warning("publish.waits-for-signatures", role=role, version=waiting[role], advice=advice)
    after = repository.newest_versions(session)
    return sorted(role for role in after if after[role] != before.get(role))


def drop_retired_keys(database: Database, settings: Settings, project_id: UUID) -> None:
    """Delete the files of a project's keys that a rotation retired; in a transaction of its own: what it sees holds.

    Raises:
        KeysUnusable: a key is missing, unreadable, or not the one that devices trust.
    """
    with database.transaction(project_id) as session:
        for path in open_repository(session, settings).drop_retired_keys():
            _log.warning("publish.key-deleted", file=str(path), why="signed metadata name another one now")


def _sign_due(database: Database, settings: Settings) -> None:
    for project_id in _projects(database):
        with database.transaction(project_id) as session:
            signed = sign_due(session, settings)
            signed += ["director's root"] * director_root.sign_again(session, settings)
        if signed:
            _log.info("publish.signed-again", roles=signed, project=str(project_id))
        drop_retired_keys(database, settings, project_id)


def _projects(database: Database) -> Sequence[UUID]:
    """Return every project; what is done for all is done for each in a transaction of its own, which sees no other."""
    with database.across_projects() as session:
        return projects.ids(session)
