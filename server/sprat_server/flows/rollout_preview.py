"""What a rollout would be, before anybody makes it, and how it differs from the one of its name. Only reads."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.flows import rollout as flow
from sprat_server.flows import rollout_cohorts as cohorts
from sprat_server.flows import rollout_reversals as reversals
from sprat_server.flows import rollout_steps as steps
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts import quarantine
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.evidence import Reported
from sprat_server.rollouts.gate_plan import GatePlan, Rule
from sprat_server.rollouts.gate_state import GateState
from sprat_server.rollouts.gates import Gate
from sprat_server.rollouts.models import Rollout
from sprat_server.rollouts.plan import RolloutPlan
from sprat_server.rollouts.requests import NewRollout
from sprat_server.rollouts.schemas import Change, PlannedWave, PlanView
from sprat_server.rollouts.waves import RolloutState
from sprat_shared.errors import Conflict
from sprat_shared.trust.windows import next_opening

_MOST_IMAGINED = 1000  # harmless reports; by then any tolerance is proven


def preview(session: Session, wanted: NewRollout, now: datetime | None = None) -> PlanView:
    """Return what a rollout would be if it were made and started now.

    Raises:
        NotFound: the model, the release or a device does not exist.
        InvalidInput: waves, gates or another part of it cannot be.
        Conflict: a device was revoked.
    """
    at = now or datetime.now(UTC)
    model = registry.get_model(session, wanted.model)
    registry.get_release(session, model, wanted.release)
    flow.check_devices(session, wanted.devices)
    plan, gates = wanted.plan, wanted.gate_plan
    cohort = cohorts.meant(session, wanted.devices, plan)
    layout = cohorts.lay_out(session, wanted.waves or (), plan, cohort, b"")
    counts = Counter(layout.places.values())
    waves = [counts[ordinal] for ordinal in range(1, len(layout.reaches) + 1)]
    rule = gates.choose(len(layout.places))
    held = fleet.slots(session, model_id=model.id)
    have_it = sum(row.active == wanted.release and device in cohort for (device, _), row in held.items())
    existing = found(session, wanted)
    changes = [] if existing is None else differences(content_of(session, existing), wanted.content())
    return PlanView(
        model=model.name,
        release=wanted.release,
        rule=rule,
        devices=len(cohort),
        controls=len(layout.controls),
        starts=next_opening(plan.windows, wanted.start_at or at) if plan.approvals == 0 or wanted.start_at else None,
        waves=_waves(layout.reaches, waves, rule, gates),
        unreached=counts[None],
        obstacles=_obstacles(session, model, wanted, plan),
        notes=_notes(plan, have_it),
        action=_action(existing, changes),
        rollout=None if existing is None else existing.id,
        changes=changes,
    )


def found(session: Session, wanted: NewRollout) -> Rollout | None:
    """Return the rollout that a request stands for: of its name, or where it has none, for which the same was asked."""
    if wanted.name is not None:
        return rollouts.named(session, wanted.name)
    return rollouts.of_digest(session, wanted.digest())


def content_of(session: Session, rollout: Rollout) -> dict[str, Any]:
    """Return all that was asked for when a rollout was made, as `NewRollout.content`."""
    reaches = [wave.reach for wave in rollouts.waves_of(session, rollout)]
    named = not (rollout.whole_fleet or rollouts.plan_of(rollout).says_devices)
    devices = sorted(str(part.device_id) for part in rollouts.devices_of(session, rollout)) if named else None
    return {
        "model": steps.model_of(session, rollout).name,
        "release": rollout.number,
        "waves": None if rollout.plan.get("growth") else reaches,
        "devices": devices,
        "gates": rollout.gates,
        "plan": rollout.plan,
        "start_at": None if rollout.start_at is None else rollout.start_at.astimezone(UTC).isoformat(),
    }


def differences(before: Any, after: Any, field: str = "") -> list[Change]:
    """Return the values that differ, by dotted name."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        names = sorted(set(before) | set(after))
        inner = [(f"{field}.{name}".lstrip("."), before.get(name), after.get(name)) for name in names]
        return [change for name, old, new in inner for change in differences(old, new, name)]
    return [] if before == after else [Change(field=field, before=before, after=after)]


def _action(
    existing: Rollout | None, changes: Sequence[Change]
) -> Literal["create", "unchanged", "replace", "conflict"]:
    if existing is None:
        return "create"
    if not changes:
        return "unchanged"
    return "replace" if existing.state == RolloutState.DRAFT else "conflict"


def _obstacles(session: Session, model: Model, wanted: NewRollout, plan: RolloutPlan) -> list[str]:
    said = []
    try:
        registry.require_published(session, model, wanted.release)
    except Conflict as bad:
        said.append(str(bad))
    try:
        quarantine.require_free(session, model.name, model.id, wanted.release, plan)
    except Conflict as bad:
        said.append(str(bad))
    if not plan.supersede:
        try:
            reversals.require_alone(session, model, advice="this one cannot start before it ends, or supersede it")
        except Conflict as bad:
            said.append(str(bad))
    return said


def _notes(plan: RolloutPlan, have_it: int) -> list[str]:
    said = []
    if plan.approvals:
        said.append(f"it starts when {plan.approvals} other people have approved it")
    if plan.in_flight is not None:
        said.append(f"at most {plan.in_flight} devices are at work on it at a time")
    if have_it:
        said.append(f"{have_it} devices have the release already and count as committed")
    return said


def _waves(reaches: Sequence[str], counts: Sequence[int], rule: Rule, gates: GatePlan) -> list[PlannedWave]:
    planned, reached = [], 0
    gate = Gate(gates.policy)
    state, imagined = gate.start({}), 0
    for at, (reach, devices) in enumerate(zip(reaches, counts, strict=True)):
        reached += devices
        following = next((sum(counts[: i + 1]) for i in range(at + 1, len(counts)) if counts[i]), None)
        if following is None:
            opens = "nothing more: it has succeeded when no device is awaited"
        elif rule is Rule.FIRST_FAILURE:
            opens = f"the next when all {reached} devices have committed; the first failure halts"
        else:
            state, imagined = _imagine(gate, state, imagined, min(reached, _MOST_IMAGINED)), reached
            opens = _opens(gate, state, reached, following)
        planned.append(PlannedWave(ordinal=at + 1, reach=reach, devices=devices, reached=reached, opens=opens))
    return planned


def _imagine(gate: Gate, state: GateState, before: int, until: int) -> GateState:
    clean = Reported("", failed=False, losses=dict.fromkeys(gate.policy.metrics, 0.0))
    for _ in range(before, until):
        state = gate.report(gate.expose(state, ()), (), clean)
    return state


def _opens(gate: Gate, state: GateState, reached: int, following: int) -> str:
    policy = gate.policy
    wanted = max(min(policy.min_reports, reached), math.ceil(policy.min_reported * reached))
    reach = min(gate.reach(state), following)
    if reach >= following:
        then = f"all {following} of the next wave may have it"
    elif reach > reached:
        then = f"{reach} devices may have it, the others of the {following} as more report"
    else:
        then = "nobody more may have it before a person promotes it"
    return f"the next when {wanted} of {reached} devices have reported; where none of them lost anything, {then}"
