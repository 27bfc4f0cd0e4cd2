"""Rollouts as code: make what is asked for unless it is there already. One transaction, one at a time."""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.flows import rollout as flow
from sprat_server.flows import rollout_preview as previews
from sprat_server.flows import rollout_steps as steps
from sprat_server.flows import rollout_views as views
from sprat_server.observe.actors import Actor
from sprat_server.registry import service as registry
from sprat_server.rollouts import approvals
from sprat_server.rollouts.models import Rollout
from sprat_server.rollouts.requests import Apply, NewRollout
from sprat_server.rollouts.schemas import AppliedView, Change
from sprat_server.rollouts.waves import RolloutState
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict


def make(session: Session, wanted: NewRollout, by: Actor) -> Rollout:
    """Draft a rollout as it is asked for; raises as `rollout.create`."""
    rollout = flow.create(
        session,
        model=wanted.model,
        release=wanted.release,
        reaches=wanted.waves,
        devices=wanted.devices,
        by=str(by),
        by_id=by.id,
        gates=wanted.gate_plan,
        plan=wanted.plan,
        name=wanted.name,
        digest=wanted.digest(),
        start_at=wanted.start_at,
    )
    after = wanted.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    audit.record(session, by, "rollout.create", f"rollout:{rollout.id}", after=after)
    return rollout


def apply(session: Session, wanted: Apply, by: Actor, settings: Settings) -> AppliedView:
    """Make a rollout, or leave the one that is there; a draft of the same name that differs is replaced.

    Raises:
        NotFound: as `rollout.create`.
        InvalidInput: likewise.
        Conflict: likewise, or the rollout of this name differs and has started.
    """
    model = registry.get_model(session, wanted.rollout.model)
    registry.lock_model(session, model)
    steps.lock_moves(session)
    existing = previews.found(session, wanted.rollout)
    action: Literal["created", "unchanged", "replaced", "started"] = "unchanged"
    if existing is None:
        action, rollout = "created", make(session, wanted.rollout, by)
    elif changes := previews.differences(previews.content_of(session, existing), wanted.rollout.content()):
        _drop(session, existing, changes, by)
        action, rollout = "replaced", make(session, wanted.rollout, by)
    else:
        rollout = existing
    if wanted.start and _can_start(session, rollout):
        flow.start(session, rollout.id, settings)
        action = "started" if action == "unchanged" else action
        before, after = {"state": RolloutState.DRAFT.value}, {"state": rollout.state}
        audit.record(session, by, "rollout.start", f"rollout:{rollout.id}", before, after)
    audit.record(session, by, "rollout.apply", f"rollout:{rollout.id}", after={"action": action})
    return AppliedView(action=action, rollout=views.view(session, rollout))


def _drop(session: Session, existing: Rollout, changes: Sequence[Change], by: Actor) -> None:
    if existing.state != RolloutState.DRAFT:
        raise Conflict(
            f"rollout {existing.name or existing.id} is {existing.state} and differs in "
            f"{', '.join(change.field for change in changes)}; what has started is moved, not changed: choose another "
            "name",
            code="rollout.differs",
        )
    reason = "replaced by what was applied under its name"
    flow.abort(session, existing.id, reason)
    audit.record(session, by, "rollout.abort", f"rollout:{existing.id}", {"state": "draft"}, {"reason": reason})


def _can_start(session: Session, rollout: Rollout) -> bool:
    scheduled = rollout.start_at is not None
    return rollout.state == RolloutState.DRAFT and not scheduled and not approvals.missing(session, rollout)
