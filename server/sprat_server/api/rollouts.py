"""/api/v1/rollouts: bring devices to a release wave by wave."""

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.access.tokens import Identity
from sprat_server.api.auth import Operator, Releaser, Viewer
from sprat_server.api.paging import Page, Paging
from sprat_server.api.ports import SettingsDep
from sprat_server.db.paging import take_page
from sprat_server.db.session import SessionDep
from sprat_server.flows import gating
from sprat_server.flows import rollout as flow
from sprat_server.rollouts import service
from sprat_server.rollouts.gate_plan import GatePlan
from sprat_server.rollouts.models import Rollout
from sprat_server.rollouts.schemas import MaybeReason, NewRollout, Reason, RolloutView, WhyView
from sprat_shared.errors import InvalidInput

router = APIRouter(prefix="/rollouts", tags=["rollouts"])


@router.post("", status_code=201)
def create_rollout(body: NewRollout, session: SessionDep, releaser: Releaser) -> RolloutView:
    """Draft a rollout; nothing happens to devices before it is started."""
    rollout = flow.create(
        session,
        model=body.model,
        release=body.release,
        reaches=body.waves,
        devices=body.devices,
        by=str(releaser),
        gates=GatePlan.of(body.gates or {}),
    )
    audit.record(session, releaser, "rollout.create", f"rollout:{rollout.id}", after=body.model_dump(mode="json"))
    return flow.view(session, rollout)


@router.get("")
def list_rollouts(session: SessionDep, _viewer: Viewer, page: Paging) -> Page[RolloutView]:
    """List rollouts, newest first."""
    rows, following = take_page(
        session, select(Rollout), key=Rollout.id, parse=UUID, cursor=page.cursor, limit=page.limit
    )
    return Page(items=[flow.view(session, rollout) for rollout in rows], next=following)


@router.get("/{rollout_id}")
def get_rollout(rollout_id: UUID, session: SessionDep, _viewer: Viewer) -> RolloutView:
    """Show a rollout, its waves and their devices."""
    return flow.view(session, service.get(session, rollout_id))


@router.get("/{rollout_id}/why")
def why_rollout(
    rollout_id: UUID,
    session: SessionDep,
    _viewer: Viewer,
    policy: Annotated[
        str | None, Query(max_length=8192, description="A policy as JSON: what would this gate have said?")
    ] = None,
) -> WhyView:
    """Explain what the gate says: evidence, thresholds, and what would change it."""
    rollout = service.get(session, rollout_id)
    return WhyView.of(rollout, gating.why(session, rollout, None if policy is None else _policy(policy)))


@router.post("/{rollout_id}/prefetch")
def prefetch_rollout(
    rollout_id: UUID,
    session: SessionDep,
    settings: SettingsDep,
    operator: Operator,
    body: MaybeReason | None = None,
) -> RolloutView:
    """Have the devices of a draft fetch and rebuild its release, which waits there until the rollout is started."""
    return _moved(session, operator, "prefetch", rollout_id, partial(flow.prefetch, settings=settings), body)


@router.post("/{rollout_id}/start")
def start_rollout(
    rollout_id: UUID,
    session: SessionDep,
    settings: SettingsDep,
    operator: Operator,
    body: MaybeReason | None = None,
) -> RolloutView:
    """Decide who is in which wave and open the first."""
    return _moved(session, operator, "start", rollout_id, partial(flow.start, settings=settings), body)


@router.post("/{rollout_id}/pause")
def pause_rollout(rollout_id: UUID, body: Reason, session: SessionDep, operator: Operator) -> RolloutView:
    """Open no further wave until it is resumed; a failure still halts it."""
    return _moved(session, operator, "pause", rollout_id, partial(flow.pause, reason=body.reason), body)


@router.post("/{rollout_id}/resume")
def resume_rollout(
    rollout_id: UUID, session: SessionDep, operator: Operator, body: MaybeReason | None = None
) -> RolloutView:
    """Go on after a pause."""
    return _moved(session, operator, "resume", rollout_id, flow.resume, body)


@router.post("/{rollout_id}/promote")
def promote_rollout(rollout_id: UUID, body: Reason, session: SessionDep, operator: Operator) -> RolloutView:
    """Open the next wave on a person's word where the gate holds it; proof of harm still halts."""
    return _moved(session, operator, "promote", rollout_id, flow.promote, body)


@router.post("/{rollout_id}/abort")
def abort_rollout(rollout_id: UUID, body: Reason, session: SessionDep, operator: Operator) -> RolloutView:
    """End it; devices that were offered the release are assigned the one they had."""
    return _moved(session, operator, "abort", rollout_id, partial(flow.abort, reason=body.reason), body)


def _policy(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as bad:
        raise InvalidInput(f"gates: the policy is not JSON ({bad})", code="gates.bad-policy") from None


def _moved(  # noqa: PLR0917 - who moves what how, and why
    session: SessionDep,
    operator: Identity,
    verb: str,
    rollout_id: UUID,
    move: Callable[[Session, UUID], Rollout],
    body: Reason | MaybeReason | None,
) -> RolloutView:
    before = {"state": service.get(session, rollout_id).state}
    rollout = move(session, rollout_id)
    after = {"state": rollout.state, "reason": None if body is None else body.reason}
    audit.record(session, operator, f"rollout.{verb}", f"rollout:{rollout.id}", before, after)
    return flow.view(session, rollout)
