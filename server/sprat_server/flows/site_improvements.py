"""The full plan behind a repair: asked for once it serves, kept with what it would bring, applied where that pays.

A repair leaves what still runs where it is, so that answers come again soon; it may be far from the best plan for what
is left. What came of looking for that is written once beside the repair, under the lock of its row: two replicas, a
worker that was killed, or somebody who asks again find it there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.db.blobs import Blobs
from sprat_server.flows import site_plans, site_previews, site_steps
from sprat_server.jobs import service as jobs
from sprat_server.observe.actors import SYSTEM
from sprat_server.placement.gain import Gain
from sprat_server.settings import Settings
from sprat_server.sites import records
from sprat_server.sites.models import Site, SitePlanRow
from sprat_server.sites.states import UNDER_WAY, Cause, PlanStatus

IMPROVE_KIND: Final = "improve-site"
_AGAIN_S: Final = 600.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A better plan than a repair.

    Attributes:
        plan: as it is to be kept,
        steps: with the plans in between that lead to it.
        gained: what it would bring.
    """

    plan: SitePlanRow
    steps: Sequence[SitePlanRow]
    gained: Gain


def is_due(session: Session, site: Site, plan: SitePlanRow) -> bool:
    """Return whether a plan is a repair that serves, was placed, and that nobody looked for a better one behind yet."""
    return (
        plan.state == PlanStatus.SERVING
        and plan.cause == Cause.REPAIR
        and plan.improvement is None
        and plan.asked["hosts"] is None
        and not records.lost_hosts(session, site, plan)
    )


def is_open(site: Site, plan: SitePlanRow) -> bool:
    """Return whether a plan is a repair behind which a better one is to be looked for, or applied."""
    found = plan.improvement
    return plan.cause == Cause.REPAIR and (found is None or (found["pays"] and site.auto_repair))


def ask(session: Session, plan: SitePlanRow) -> None:
    """Have a worker look for the full plan behind a repair that serves; the caller holds its row."""
    site = records.site_of(session, plan)
    if is_due(session, site, plan):
        args = {"site": site.name, "improves": plan.number}
        if jobs.enqueue_once(session, kind=IMPROVE_KIND, args=args, by=SYSTEM, pause_s=_AGAIN_S):
            _log.info("site.improvement-asked-for", plan=f"{site.name}/{plan.number}")


def keep(session: Session, name: str, number: int, found: Found | None, *, why: str = "") -> dict[str, Any]:
    """Write down what came of looking for a better plan than a repair; return the job's result.

    A plan is made only where it would change something. Whatever was written down before stands.

    Args:
        session: the caller's transaction.
        name: of the site.
        number: of the repair.
        found: a better plan; None: there is none.
        why: nothing was found, where the search itself failed.

    Raises:
        NotFound: there is no such plan any more.
    """
    site = records.get_site(session, name)
    site_steps.lock_moves(session)
    plan = records.get_plan(session, site, number, lock=True)
    if not is_due(session, site, plan):
        return result_of(site, plan)
    if found is None:
        plan.improvement = {"plan": None, "pays": False, "why": why or "no plan is better"}
        _tell(session, plan, "improvement-declined")
        return result_of(site, plan)
    gained, row = found.gained, found.plan
    row.made_by, row.cause, row.parent = str(SYSTEM), Cause.IMPROVEMENT.value, plan.number
    made = records.add_plan(session, site, row, found.steps)
    audit.record(session, SYSTEM, "site.plan", f"site-plan:{name}/{made.number}", after={"improves": plan.number})
    plan.improvement = {"plan": made.number, "why": _why(gained, applies=site.auto_repair)} | gained.as_json()
    if not (gained.pays and site.auto_repair):
        _tell(session, plan, "improvement-declined")
    return result_of(site, plan)


def result_of(site: Site, plan: SitePlanRow) -> dict[str, Any]:
    """Return what a job that looks for the full plan behind a repair ends with."""
    return {"site": site.name, "plan": None if plan.improvement is None else plan.improvement["plan"]}


def adopt(session: Session, blobs: Blobs, settings: Settings, name: str, number: int) -> None:
    """Apply the plan behind a repair that serves if it pays, the site repairs itself, and nothing is in the way now.

    What is in the way is noted beside it, and looked at again by the clock.

    Raises:
        Conflict: its releases cannot be signed back in.
    """
    site = records.get_site(session, name)
    plan = records.get_plan(session, site, number)
    found = plan.improvement
    if found is None or found["plan"] is None or not found["pays"] or not site.auto_repair:
        return
    better = records.get_plan(session, site, found["plan"])
    if plan.state != PlanStatus.SERVING or better.state != PlanStatus.PLANNED or better.wished_by is not None:
        return
    if records.in_state(session, site.id, *UNDER_WAY) is not None or records.newest_applied(session, site) != number:
        return
    in_the_way = site_previews.obstacles(session, site, better) + site_previews.short_of_memory(session, site, better)
    if in_the_way:
        better.reason = "; ".join(in_the_way)
        return
    site_plans.apply(session, blobs, settings, name, better.number, SYSTEM)
    _tell(session, plan, "improvement-adopted")


def _why(gained: Gain, *, applies: bool) -> str:
    if gained.pays:
        return "it pays" if applies else "it pays, and waits for somebody to apply it: the site does not repair itself"
    if not any(gained.rates.values()):
        return "nobody said how often the tasks are asked (rates), so nothing is known to be saved"
    return "it does not pay"


def _tell(session: Session, plan: SitePlanRow, kind: str) -> None:
    session.flush()
    site_steps.tell(session, plan, kind, improvement=plan.improvement)
