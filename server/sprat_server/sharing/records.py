"""Keep plans to share layers. Callers own the transaction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.observe import outbox
from sprat_server.sharing.models import APPLIED, PLANNED, STALE, SharingPlan
from sprat_shared.errors import Conflict, NotFound


def add(
    session: Session, *, asked: Mapping[str, Any], result: Mapping[str, Any], by: str, refit_of: UUID | None
) -> SharingPlan:
    """Keep a plan."""
    plan = SharingPlan(asked=dict(asked), result=dict(result), made_by=by, refit_of=refit_of)
    session.add(plan)
    session.flush()
    session.refresh(plan)
    return plan


def get(session: Session, plan_id: UUID, *, lock: bool = False) -> SharingPlan:
    """Return the plan of this id.

    Raises:
        NotFound: there is none.
    """
    query = select(SharingPlan).where(SharingPlan.id == plan_id)
    plan = session.scalar(query.with_for_update() if lock else query)
    if plan is None:
        raise NotFound(f"there is no sharing plan {plan_id}; `sprat sharing status` shows them", code="sharing.unknown")
    return plan


def require(plan: SharingPlan, *, applied: bool) -> None:
    """Return if a plan can be applied, or (`applied`) undone.

    Raises:
        Conflict: it is in another state.
    """
    if applied and (plan.applied is None or plan.undone_at is not None):
        raise Conflict(f"plan {plan.id} is {plan.state}: nothing of it is applied", code="sharing.wrong-state")
    if not applied and plan.state != PLANNED:
        why = f" ({plan.stale_reason})" if plan.state == STALE else ""
        raise Conflict(
            f"plan {plan.id} is {plan.state}{why}; a plan is applied once: plan anew, or `sprat sharing plan --refit`",
            code="sharing.wrong-state",
        )


@dataclass(frozen=True, slots=True)
class Rung:
    """Where a release stands on the ladder of a plan.

    Attributes:
        plan: that published it.
        level: 1 shares most.
        below: number of the release that is the next level down; None: the next is to share nothing.
    """

    plan: SharingPlan
    level: int
    below: int | None


def rung(session: Session, model: str, number: int) -> Rung | None:
    """Return where a release stands on the ladder of its plan; None where it is of none, or the plan was undone."""
    applied = {"releases": [{"model": model, "release": number}]}
    plan = session.scalar(
        select(SharingPlan).where(SharingPlan.applied.contains(applied), SharingPlan.undone_at.is_(None))
    )
    if plan is None:
        return None
    levels = levels_of(plan)[model]
    level = next(level for level, release in levels.items() if release == number)
    return Rung(plan, level, levels.get(level + 1))


def levels_of(plan: SharingPlan) -> dict[str, dict[int, int]]:
    """Return by model which release each level is, the one that shares most first; empty before it is applied."""
    found: dict[str, dict[int, int]] = {}
    for one in sorted((plan.applied or {}).get("releases", []), key=lambda one: int(one["level"])):
        found.setdefault(one["model"], {})[one["level"]] = one["release"]
    return found


def mark_stale(session: Session, model: str, release: int) -> list[UUID]:
    """Have the plans that rest on an earlier release of a model be out of date; return which.

    Those in which it is a donor, and those not applied yet in which it shares. Nothing changes on devices: the files
    that they share stay as long as a release names them.
    """
    open_plans = select(SharingPlan).where(SharingPlan.state.in_([PLANNED, APPLIED])).order_by(SharingPlan.id)
    touched = []
    for plan in session.scalars(open_plans.with_for_update()):
        chosen = plan.result.get("chosen", [])
        is_donor = any(one["donor"] == model for one in chosen)
        if not is_donor and not (plan.state == PLANNED and any(one["recipient"] == model for one in chosen)):
            continue
        plan.state = STALE
        plan.stale_reason = f"{model}@{release} was published since"
        touched.append(plan.id)
        said = {"model": model, "release": release, "recipients": [one["recipient"] for one in chosen]}
        outbox.tell(session, "sharing.stale", f"sharing:{plan.id}", said | {"reason": plan.stale_reason})
    session.flush()
    return touched
