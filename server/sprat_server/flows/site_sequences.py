"""Plans that need plans in between, because a device cannot hold the modules of both at once: kept, applied one by one.

A plan's steps have numbers below its own and name it as their parent. Whoever has the plan applied has its first step
applied; each further one follows by the clock once the one before serves. A step that fails leaves the plan before it
serving, and ends the wish for the plan.
"""

from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.db.blobs import Blobs
from sprat_server.flows import site_plans, site_steps
from sprat_server.observe.actors import SYSTEM
from sprat_server.settings import Settings
from sprat_server.sites import records
from sprat_server.sites.models import SitePlanRow
from sprat_server.sites.states import UNDER_WAY, PlanStatus

_log = structlog.get_logger(__name__)


def go_on(session: Session, blobs: Blobs, settings: Settings, plan_id: UUID, at: datetime) -> None:
    """Apply what comes next on the way to a plan that somebody had applied, if nothing of its site is under way.

    Raises:
        Conflict: something stands in its way.
    """
    site_steps.lock_moves(session)
    plan = records.lock(session, plan_id)
    site = records.site_of(session, plan)
    if plan.wished_by is None or site.deleted_at is not None:
        return
    if records.in_state(session, site.id, *UNDER_WAY) is not None:
        return
    steps = records.steps_of(session, plan)
    taken = [one for one in steps if one.state != PlanStatus.PLANNED]
    if not taken or taken[-1].state != PlanStatus.SERVING:
        last = taken[-1] if taken else plan
        give_up(
            session, plan, f"plan {last.number}, a step to it, is {last.state}: {last.reason or 'another one serves'}"
        )
        return
    site_plans.apply(session, blobs, settings, site.name, plan.number, SYSTEM, at)


def give_up(session: Session, plan: SitePlanRow, why: str) -> None:
    """Have a plan be wished no more; what serves serves on."""
    plan.wished_by, plan.reason = None, why
    session.flush()
    site_steps.tell(session, plan, "halted", reason=why)
    audit.record(session, SYSTEM, "site.halt", f"site-plan:{site_steps.title(session, plan)}", after={"reason": why})
    _log.warning("site.plan-halted", plan=site_steps.title(session, plan), reason=why)
