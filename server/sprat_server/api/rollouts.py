"""/api/v1/rollouts: bring devices to a release wave by wave."""

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Query
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.access.tokens import Identity
from sprat_server.api.auth import Operator, Previewer, Releaser, Viewer
from sprat_server.api.described import raises, together
from sprat_server.api.paging import Page, Paging, SortedPaging
from sprat_server.api.ports import SettingsDep
from sprat_server.api.preconditions import Seen, SeenState
from sprat_server.api.routes import operators_router
from sprat_server.db.paging import Order, take_sorted_page
from sprat_server.db.session import SessionDep
from sprat_server.flows import rollout as flow
from sprat_server.flows import rollout_apply, rollout_preview
from sprat_server.flows import rollout_reversals as reversals
from sprat_server.flows import rollout_views as views
from sprat_server.registry import service as registry
from sprat_server.rollouts import service
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.requests import Abort, Apply, MaybeReason, NewRollout, Reason, Resume
from sprat_server.rollouts.schemas import AppliedView, PlanView, RolloutDeviceView, RolloutView, WhyView
from sprat_server.rollouts.waves import DeviceState, RolloutState
from sprat_shared.errors import InvalidInput

router = operators_router(prefix="/rollouts", tags=["rollouts"])

_NO_WAVE: Final = 1 << 31  # after every wave
_BY_WAVE: Final[Order[RolloutDevice]] = Order(
    name="wave",
    column=func.coalesce(RolloutDevice.ordinal, _NO_WAVE),
    of=lambda part: str(part.ordinal or _NO_WAVE),
    parse=int,
    descending=False,
)
_ASKED: Final = raises(
    not_found=["device.unknown", "group.unknown", "model.unknown", "release.unknown"],
    conflict=["device.revoked", "release.pending", "release.pruned", "release.quarantined", "rollout.name-taken"],
    invalid=[
        "filter.bad",
        "gates.bad-policy",
        "rollout.bad-plan",
        "rollout.bad-retries",
        "rollout.bad-waves",
        "rollout.rehearsal",
    ],
)
_MOVED: Final = raises(not_found=["rollout.unknown"], conflict=["rollout.wrong-state"])
_STARTED: Final = together(
    _MOVED,
    raises(
        conflict=["release.pruned", "release.quarantined", "rollout.busy", "rollout.no-devices", "rollout.unapproved"]
    ),
)


@router.post("", status_code=201, responses=_ASKED)
def create_rollout(body: NewRollout, session: SessionDep, releaser: Releaser) -> RolloutView:
    """Draft a rollout; nothing happens to devices before it is started."""
    return views.view(session, rollout_apply.make(session, body, releaser))


@router.post("/plan", responses=_ASKED)
def plan_rollout(body: NewRollout, session: SessionDep, _viewer: Previewer) -> PlanView:
    """Show what a rollout would be: waves, dates, what its gate would ask, what stands in its way. Nothing is kept."""
    return rollout_preview.preview(session, body)


@router.post("/apply", responses=together(_ASKED, _STARTED, raises(conflict=["rollout.differs"])))
def apply_rollout(body: Apply, session: SessionDep, settings: SettingsDep, releaser: Releaser) -> AppliedView:
    """Make a rollout unless it is there already: of its name, or, without one, of the same content."""
    return rollout_apply.apply(session, body, releaser, settings)


@router.get("", responses=raises(not_found=["model.unknown"]))
def list_rollouts(
    session: SessionDep,
    _viewer: Viewer,
    page: SortedPaging,
    *,
    model: Annotated[str | None, Query(max_length=63, description="Only rollouts of this model.")] = None,
    release: Annotated[int | None, Query(ge=1, description="Only rollouts of the release of this number.")] = None,
    state: Annotated[RolloutState | None, Query(description="Only rollouts in this state.")] = None,
    name: Annotated[str | None, Query(max_length=63, description="Only rollouts of this name.")] = None,
) -> Page[RolloutView]:
    """List rollouts, newest first unless asked otherwise."""
    query = select(Rollout)
    if model is not None:
        query = query.where(Rollout.model_id == registry.get_model(session, model).id)
    said = {Rollout.number: release, Rollout.state: state, Rollout.name: name}
    query = query.where(*(column == value for column, value in said.items() if value is not None))
    rows, following = page.take(session, query, key=Rollout.id, parse=UUID)
    return Page(items=[views.view(session, rollout) for rollout in rows], next=following)


@router.get("/{rollout_id}", responses=raises(not_found=["rollout.unknown"]))
def get_rollout(rollout_id: UUID, session: SessionDep, _viewer: Viewer) -> RolloutView:
    """Show a rollout, its waves, and how many of their devices are in which state."""
    return views.view(session, service.get(session, rollout_id))


@router.get("/{rollout_id}/devices", responses=raises(not_found=["rollout.unknown"]))
def list_rollout_devices(
    rollout_id: UUID,
    session: SessionDep,
    _viewer: Viewer,
    page: Paging,
    *,
    wave: Annotated[int | None, Query(ge=1, description="Only devices of this wave.")] = None,
    state: Annotated[DeviceState | None, Query(description="Only devices in this state.")] = None,
) -> Page[RolloutDeviceView]:
    """List the devices of a rollout, the first waves first, and last those that are in none."""
    query = select(RolloutDevice).where(RolloutDevice.rollout_id == service.get(session, rollout_id).id)
    if wave is not None:
        query = query.where(RolloutDevice.ordinal == wave)
    if state is not None:
        query = query.where(RolloutDevice.state == state)
    rows, following = take_sorted_page(
        session, query, order=_BY_WAVE, key=RolloutDevice.device_id, cursor=page.cursor, limit=page.limit
    )
    return Page(items=views.device_views(session, rows), next=following)


@router.get(
    "/{rollout_id}/why",
    responses=raises(not_found=["rollout.unknown"], conflict=["rollout.no-evidence"], invalid=["gates.bad-policy"]),
)
def why_rollout(
    rollout_id: UUID,
    session: SessionDep,
    _viewer: Viewer,
    policy: Annotated[
        str | None, Query(max_length=8192, description="A policy as JSON: what would this gate have said?")
    ] = None,
) -> WhyView:
    """Explain what the gate says: evidence, thresholds, and what would change it."""
    return views.why(session, service.get(session, rollout_id), None if policy is None else _policy(policy))


@router.post("/{rollout_id}/approve", responses=together(_MOVED, raises(denied=["rollout.own-approval"])))
def approve_rollout(rollout_id: UUID, body: Reason, session: SessionDep, releaser: Releaser, seen: Seen) -> RolloutView:
    """Say, as another person than its maker, that a draft may start."""
    return _moved(
        seen, session, releaser, "approve", rollout_id, partial(flow.approve, by=releaser, reason=body.reason), body
    )


@router.post("/{rollout_id}/prefetch", responses=_STARTED)
def prefetch_rollout(
    rollout_id: UUID,
    session: SessionDep,
    settings: SettingsDep,
    operator: Operator,
    *,
    seen: Seen,
    body: MaybeReason | None = None,
) -> RolloutView:
    """Have the devices of a draft fetch and rebuild its release, which waits there until the rollout is started."""
    return _moved(seen, session, operator, "prefetch", rollout_id, partial(flow.prefetch, settings=settings), body)


@router.post("/{rollout_id}/start", responses=_STARTED)
def start_rollout(
    rollout_id: UUID, body: Reason, session: SessionDep, settings: SettingsDep, operator: Operator, *, seen: Seen
) -> RolloutView:
    """Decide who is in which wave and open the first."""
    return _moved(seen, session, operator, "start", rollout_id, partial(flow.start, settings=settings), body)


@router.post("/{rollout_id}/pause", responses=_MOVED)
def pause_rollout(rollout_id: UUID, body: Reason, session: SessionDep, operator: Operator, seen: Seen) -> RolloutView:
    """Open no further wave until it is resumed; a failure still halts it."""
    return _moved(seen, session, operator, "pause", rollout_id, partial(flow.pause, reason=body.reason), body)


@router.post(
    "/{rollout_id}/resume",
    responses=together(_STARTED, raises(conflict=["rollout.halted", "rollout.harmful", "rollout.overtaken"])),
)
def resume_rollout(
    rollout_id: UUID, body: Resume, session: SessionDep, settings: SettingsDep, operator: Operator, *, seen: Seen
) -> RolloutView:
    """Go on after a pause, or after a halt whose failures are acknowledged."""
    move = partial(flow.resume, settings=settings, acknowledge=body.acknowledge)
    return _moved(seen, session, operator, "resume", rollout_id, move, body)


@router.post("/{rollout_id}/promote", responses=together(_MOVED, raises(conflict=["rollout.nothing-to-promote"])))
def promote_rollout(rollout_id: UUID, body: Reason, session: SessionDep, operator: Operator, seen: Seen) -> RolloutView:
    """Open the next wave on a person's word where the gate holds it; proof of harm still halts."""
    return _moved(seen, session, operator, "promote", rollout_id, flow.promote, body)


@router.post("/{rollout_id}/abort", responses=_MOVED)
def abort_rollout(rollout_id: UUID, body: Abort, session: SessionDep, operator: Operator, seen: Seen) -> RolloutView:
    """End it; devices go back to the release they had, but for those that have this one where they keep it."""
    move = partial(flow.abort, reason=body.reason, keep=body.keep)
    return _moved(seen, session, operator, "abort", rollout_id, move, body)


@router.post("/{rollout_id}/undo", responses=together(_STARTED, raises(conflict=["rollout.nothing-to-undo"])))
def undo_rollout(
    rollout_id: UUID, body: Reason, session: SessionDep, settings: SettingsDep, operator: Operator, *, seen: Seen
) -> RolloutView:
    """Bring devices back from a rollout that succeeded, or was aborted and kept, to what they had before it."""
    move = partial(reversals.undo, settings=settings, reason=body.reason)
    return _moved(seen, session, operator, "undo", rollout_id, move, body)


def _policy(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as bad:
        raise InvalidInput(f"gates: the policy is not JSON ({bad})", code="gates.bad-policy") from None


def _moved(  # noqa: PLR0917 - who moves what how, and why
    seen: SeenState,
    session: SessionDep,
    operator: Identity,
    verb: str,
    rollout_id: UUID,
    move: Callable[[Session, UUID], Rollout],
    body: Reason | MaybeReason | None,
) -> RolloutView:
    rollout = service.get(session, rollout_id)
    seen.require(session, f"rollout:{rollout_id}", lambda: views.view(session, flow.hold(session, rollout_id)))
    before = {"state": rollout.state}
    rollout = move(session, rollout_id)
    after = {"state": rollout.state, "reason": None} | ({} if body is None else body.model_dump(mode="json"))
    audit.record(session, operator, f"rollout.{verb}", f"rollout:{rollout.id}", before, after)
    return views.view(session, rollout)
