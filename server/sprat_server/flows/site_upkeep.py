"""What plans of sites do by the clock: deadlines, modules that may be kept now, other keys and addresses, renewal.

Within the lock of `rollout_upkeep`; each thing is a transaction of its own, so that a killed one is done by the next
look.
"""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.db.blobs import Blobs
from sprat_server.db.session import Database
from sprat_server.flows import site_improvements, site_plans, site_sequences, site_steps
from sprat_server.flows.site_addresses import ADDRESS
from sprat_server.jobs import service as jobs
from sprat_server.observe.actors import SYSTEM
from sprat_server.settings import Settings
from sprat_server.sites import records
from sprat_server.sites.models import SitePlanRow
from sprat_server.sites.states import UNDER_WAY, Cause, PlanStatus
from sprat_shared.errors import SpratError

RENEWED: Final = site_plans.LIFE / 3
"""A plan is renewed when so much of its life is left."""
_REPAIR_AGAIN_S: Final = 600.0
_TRIED_AGAIN: Final = timedelta(hours=12)
_MOVED_AGAIN: Final = timedelta(minutes=5)

_log = structlog.get_logger(__name__)


def look_after(database: Database, settings: Settings, project_id: UUID, at: datetime) -> None:
    """Take all steps of a project's plans that are due by the clock."""
    with database.transaction(project_id) as session:
        moving, serving, other_keys = records.under_way(session), records.serving(session), records.rekeyed(session)
        wished = records.wished(session)
    if other_keys:
        with database.transaction(project_id) as session:
            site_steps.lock_moves(session)
            site_steps.on_left(session, other_keys, "has another key than the plan was made for")
    for plan_id in moving:
        with database.transaction(project_id) as session:
            site_steps.lock_moves(session)
            plan = records.lock(session, plan_id)
            trouble = site_steps.taken_away(session, plan) if plan.state == PlanStatus.HOLDING else None
            site_steps.advance(session, plan, trouble=trouble, now=at)
    for plan_id in serving:
        with database.transaction(project_id) as session:
            site_steps.lock_moves(session)
            plan = records.lock(session, plan_id)
            if plan.state == PlanStatus.SERVING:
                site_steps.keep_modules(session, plan)
                _repair(session, plan)
                site_improvements.ask(session, plan)
        _improve(database, settings, project_id, plan_id)
        _renew(database, settings, project_id, plan_id, at)
    for plan_id in wished:
        _go_on(database, settings, project_id, plan_id, at)


def _repair(session: Session, plan: SitePlanRow) -> None:
    """Have a worker plan anew what serves on devices that left, where the site says so."""
    site = records.site_of(session, plan)
    idle = records.in_state(session, site.id, *UNDER_WAY) is None
    if site.auto_repair and idle and records.lost_hosts(session, site, plan):
        args = site_plans.repair_args(site, plan, apply=True, by=SYSTEM)
        if jobs.enqueue_once(session, kind=site_plans.PLAN_KIND, args=args, by=SYSTEM, pause_s=_REPAIR_AGAIN_S):
            _log.warning("site.repaired", plan=f"{site.name}/{plan.number}")


def _improve(database: Database, settings: Settings, project_id: UUID, plan_id: UUID) -> None:
    """Apply the plan behind a repair that pays, where something was in its way before."""
    try:
        with database.transaction(project_id) as session:
            plan = session.get_one(SitePlanRow, plan_id)
            site = records.site_of(session, plan)
            if plan.improvement is not None and site.deleted_at is None:
                site_improvements.adopt(session, Blobs.open(settings.blobs), settings, site.name, plan.number)
    except SpratError as bad:
        _log.warning("site.not-improved", plan=str(plan_id), code=bad.code, why=str(bad))


def _go_on(database: Database, settings: Settings, project_id: UUID, plan_id: UUID, at: datetime) -> None:
    """Apply what comes next on the way to a plan; where that cannot be, say why there, and try again later."""
    try:
        with database.transaction(project_id) as session:
            site_sequences.go_on(session, Blobs.open(settings.blobs), settings, plan_id, at)
    except SpratError as bad:
        with database.transaction(project_id) as session:
            plan = records.lock(session, plan_id)
            if plan.reason != str(bad):
                plan.reason = str(bad)
                _log.warning("site.not-gone-on", plan=site_steps.title(session, plan), code=bad.code, why=str(bad))


def _renew(database: Database, settings: Settings, project_id: UUID, plan_id: UUID, at: datetime) -> None:
    """Apply a plan of the same content before one ends, or where members are reached elsewhere now.

    Where that cannot be, say why there, and try again later.
    """
    try:
        with database.transaction(project_id) as session:
            plan = _due(session, plan_id, at)
            if plan is None:
                return
            site = records.get_site(session, records.site_of(session, plan).name)
            made = renewal(session, plan)
            site_plans.apply(session, Blobs.open(settings.blobs), settings, site.name, made.number, SYSTEM, at)
    except SpratError as bad:
        with database.transaction(project_id) as session:
            plan = records.lock(session, plan_id)
            if plan.reason != str(bad):
                plan.reason = str(bad)
                _log.warning("site.not-renewed", plan=site_steps.title(session, plan), code=bad.code, why=str(bad))


def renewal(session: Session, plan: SitePlanRow) -> SitePlanRow:
    """Add a plan of the same content as another one."""
    site = records.site_of(session, plan)
    repairs = site_improvements.is_open(site, plan)  # the full plan behind it is to be looked for all the same
    made = SitePlanRow(
        site_id=site.id,
        number=records.next_number(session, site),
        asked=plan.asked,
        content={key: said for key, said in plan.content.items() if key != "between"},
        made_by=str(SYSTEM),
        cause=(Cause.REPAIR if repairs else Cause.RENEWAL).value,
        parent=plan.parent if repairs else plan.number,
    )
    session.add(made)
    session.flush()
    session.refresh(made)
    renewed = {"renews": plan.number}
    audit.record(session, SYSTEM, "site.plan", f"site-plan:{site.name}/{made.number}", after=renewed)
    return made


def _due(session: Session, plan_id: UUID, at: datetime) -> SitePlanRow | None:
    """Return a plan that serves, and ends soon or has members elsewhere than it says, if that was not tried lately.

    Its row is not locked: applying the next one takes the moves lock first, as whoever moves a plan does.
    """
    plan = session.get_one(SitePlanRow, plan_id)
    if plan.state != PlanStatus.SERVING or plan.expires_at is None or records.is_on_its_way(session, plan.site_id):
        return None
    elsewhere = records.moved(session, plan, ADDRESS)
    if not elsewhere and plan.expires_at - at > RENEWED:
        return None
    newest = records.newest(session, plan.site_id)
    since = newest.applied_at or newest.created_at
    if since > at - _MOVED_AGAIN if elsewhere else newest.id != plan.id and since > at - _TRIED_AGAIN:
        return None
    if elsewhere:
        _log.info("site.moved", plan=site_steps.title(session, plan), devices=elsewhere)
    return plan
