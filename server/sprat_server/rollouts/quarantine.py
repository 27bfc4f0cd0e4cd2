"""Releases that were halted: they go out again only on a person's word. Nothing is stored, the rollouts say it."""

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.rollouts.models import Rollout
from sprat_server.rollouts.plan import RolloutPlan
from sprat_server.rollouts.waves import RolloutState
from sprat_shared.errors import Conflict

_DECIDING = (RolloutState.HALTED, RolloutState.SUCCEEDED)


def quarantined(session: Session, model_id: UUID) -> Mapping[int, Rollout]:
    """Return the releases of a model whose newest rollout that halted or succeeded halted, and that rollout."""
    ended = session.scalars(
        select(Rollout)
        .where(Rollout.model_id == model_id, Rollout.state.in_(_DECIDING))
        .order_by(Rollout.ended_at, Rollout.id)
    )
    newest = {rollout.number: rollout for rollout in ended if not RolloutPlan.of(rollout.plan).rehearsal}
    return {number: one for number, one in newest.items() if one.state == RolloutState.HALTED}


def require_free(session: Session, model: str, model_id: UUID, number: int, plan: RolloutPlan) -> None:
    """Return if a release may be rolled out so.

    Raises:
        Conflict: it was halted, and nobody says why it may go out again.
    """
    if plan.override_quarantine is not None or plan.rehearsal:
        return
    halted = quarantined(session, model_id).get(number)
    if halted is not None:
        raise Conflict(
            f"{model}@{number} is in quarantine since rollout {halted.id} halted ({halted.reason}); release another "
            "one, or say why it may go out again: --override-quarantine REASON",
            code="release.quarantined",
        )
