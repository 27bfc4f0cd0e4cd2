"""What rollouts do at a time of day: start, open after a window opened, ask again, notice silence, end a long hold.

What plans of sites do then stands in `site_upkeep`. Replicas may all look; one at a time does. Each thing is a
transaction of its own, so that a killed one is done by the next look.
"""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy import func, select

from sprat_server.access import audit, projects
from sprat_server.db.session import Database
from sprat_server.flows import rollout as flow
from sprat_server.flows import rollout_reports, site_upkeep
from sprat_server.flows import rollout_steps as steps
from sprat_server.observe.actors import SYSTEM
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.waves import RolloutState
from sprat_server.settings import Settings
from sprat_shared.errors import SpratError

_UPKEEP_LOCK: Final = 0x5350_5241_5446  # an arbitrary number that only this lock uses

_log = structlog.get_logger(__name__)


def look_after(database: Database, settings: Settings, now: datetime | None = None) -> bool:
    """Take all steps that are due by the clock; return False where another replica is at it.

    Args:
        database: where the rollouts are.
        settings: of the server.
        now: the time that counts; None: the present.
    """
    at = now or datetime.now(UTC)
    with database.across_projects() as holder:
        if not holder.scalar(select(func.pg_try_advisory_xact_lock(_UPKEEP_LOCK))):
            return False
        for project_id in projects.ids(holder):
            _look_after(database, settings, project_id, at)
    return True


def _look_after(database: Database, settings: Settings, project_id: UUID, at: datetime) -> None:
    with database.transaction(project_id) as session:
        due, windowed = rollouts.due_to_start(session, at), rollouts.windowed(session)
    for rollout_id in due:
        _start(database, settings, project_id, rollout_id, at)
    for rollout_id in windowed:
        with database.transaction(project_id) as session:
            steps.advance(session, steps.lock(session, rollout_id), now=at)
    with database.transaction(project_id) as session:
        asked = rollout_reports.retry(session, at)
    with database.transaction(project_id) as session:
        moved = rollout_reports.on_silence(session, at)
    with database.transaction(project_id) as session:
        held = rollouts.held(session)
    for rollout_id in held:
        with database.transaction(project_id) as session:
            steps.end_hold(session, steps.lock(session, rollout_id), at)
    site_upkeep.look_after(database, settings, project_id, at)
    if asked:
        _log.info("rollouts.asked-again", devices=asked)
    if moved:
        _log.warning("rollouts.silence", rollouts=[str(one) for one in moved])


def _start(database: Database, settings: Settings, project_id: UUID, rollout_id: UUID, at: datetime) -> None:
    """Start a rollout whose time has come; where it cannot, say why, and try again at the next look."""
    subject = f"rollout:{rollout_id}"
    try:
        with database.transaction(project_id) as session:
            rollout = flow.start(session, rollout_id, settings, at)
            audit.record(session, SYSTEM, "rollout.start", subject, {"state": "draft"}, {"state": rollout.state})
    except SpratError as bad:
        with database.transaction(project_id) as session:
            rollout = steps.lock(session, rollout_id)
            if rollout.state == RolloutState.DRAFT and rollout.reason != str(bad):
                rollout.reason = str(bad)
                _log.warning("rollouts.not-started", rollout=str(rollout_id), code=bad.code, why=str(bad))
