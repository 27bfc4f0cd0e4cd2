"""A second person's word before a rollout starts. Callers own the transaction and hold the rollout's lock."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sprat_server.observe.actors import Actor
from sprat_server.rollouts.models import Approval, Rollout
from sprat_server.rollouts.service import plan_of
from sprat_shared.errors import AccessDenied, Conflict


def approve(session: Session, rollout: Rollout, by: Actor, reason: str) -> None:
    """Add a person's approval; said again it changes nothing.

    Raises:
        AccessDenied: it is who made the rollout.
    """
    if by.id == rollout.creator_id:
        raise AccessDenied(
            f"{by} made rollout {rollout.id}; somebody else has to approve it", code="rollout.own-approval"
        )
    if session.get(Approval, (rollout.id, by.id)) is None:
        session.add(Approval(rollout_id=rollout.id, actor_id=by.id, actor=str(by), reason=reason))
        session.flush()


def of(session: Session, rollout: Rollout) -> list[Approval]:
    """Return the approvals, oldest first."""
    return list(session.scalars(select(Approval).where(Approval.rollout_id == rollout.id).order_by(Approval.at)))


def missing(session: Session, rollout: Rollout) -> int:
    """Return how many approvals a rollout still needs."""
    there = session.scalar(select(func.count()).where(Approval.rollout_id == rollout.id)) or 0
    return max(plan_of(rollout).approvals - there, 0)


def require(session: Session, rollout: Rollout) -> None:
    """Return if a rollout needs no further approval.

    Raises:
        Conflict: it does.
    """
    lacking = missing(session, rollout)
    if lacking:
        raise Conflict(
            f"rollout {rollout.id} needs {lacking} more approval{'s' * (lacking > 1)}, of others than "
            f"{rollout.created_by}: sprat rollout approve {rollout.id}",
            code="rollout.unapproved",
        )
