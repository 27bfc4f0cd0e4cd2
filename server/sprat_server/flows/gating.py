"""What gates of rollouts hear of devices, and what they let rollouts do. Callers hold the rollout's lock."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.fleet.models import Assignment, Device
from sprat_server.registry.models import Model
from sprat_server.rollouts import gating
from sprat_server.rollouts.evidence import Acknowledged, Exposed, Left, Reported, Segment, log_ratio
from sprat_server.rollouts.explain import Explanation, explain
from sprat_server.rollouts.gate_plan import GatePlan, Rule
from sprat_server.rollouts.gate_policy import GatePolicy
from sprat_server.rollouts.gate_state import ALL
from sprat_server.rollouts.gates import Decision, Gate
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.service import LIVE
from sprat_server.rollouts.waves import DeviceState, GateView
from sprat_shared.protocol.report import Evidence, Report

_JUDGED_BY_THE_DEVICE: Final = "validation.worse"


def begin(session: Session, rollout: Rollout, devices: Collection[UUID]) -> None:
    """Choose who decides, and start the gate over the segments of the cohort."""
    plan = GatePlan.of(rollout.gates)
    rollout.rule = plan.choose(len(devices))
    cohort = Counter(segment for segments in _segments(session, devices).values() for segment in segments)
    gating.begin(session, rollout, Gate(plan.policy), cohort)


def on_exposed(session: Session, rollout: Rollout, devices: Sequence[UUID]) -> None:
    """Hear to whom the release was offered, in this order; whoever was exposed before counts once."""
    if devices and gating.there(session, rollout):
        known = gating.devices_heard(session, rollout, devices, "exposed")
        segments = _segments(session, devices)
        offered = [Exposed(str(one), segments[one]) for one in devices if one not in known]
        gating.hear(session, rollout, _gate(rollout), offered)


def on_ended(session: Session, rollout: Rollout, part: RolloutDevice, report: Report, *, committed: bool) -> None:
    """Hear a device's word on the release: the first one."""
    if _awaited(session, rollout, [part.device_id]):
        gating.hear(session, rollout, _gate(rollout), [word_of(str(part.device_id), report, committed=committed)])


def on_left(session: Session, rollout: Rollout, device_id: UUID) -> None:
    """Hear that an exposed device was revoked before it reported."""
    if _awaited(session, rollout, [device_id]):
        gating.hear(session, rollout, _gate(rollout), [Left(str(device_id))])


def on_silence(session: Session, rollout: Rollout, now: datetime | None = None) -> list[UUID]:
    """Count exposed devices that have been silent for too long as lost; return them. Only where evidence decides."""
    if rollout.rule != Rule.EVIDENCE or not gating.there(session, rollout):
        return []
    since = (now or datetime.now(UTC)) - timedelta(seconds=GatePlan.of(rollout.gates).silence_s)
    offered = select(RolloutDevice.device_id).join(
        Assignment,
        and_(Assignment.device_id == RolloutDevice.device_id, Assignment.counter == RolloutDevice.exposed_by),
    )
    silent = session.scalars(
        offered.where(
            RolloutDevice.rollout_id == rollout.id,
            RolloutDevice.state == DeviceState.EXPOSED,
            RolloutDevice.retry_at.is_(None),
            Assignment.created_at < since,
        )
    )
    silent_ones = sorted(silent)
    lost = [Reported(str(one), failed=True, lost=True) for one in _awaited(session, rollout, silent_ones)]
    if lost:
        gating.hear(session, rollout, _gate(rollout), lost)
    return silent_ones


def acknowledge(session: Session, rollout: Rollout) -> str | None:
    """Hear that a person forgives the failures so far; return why it halts still, None where it does not.

    Only where evidence decides can it halt still: by what was measured.
    """
    if not gating.there(session, rollout):
        return None
    state = gating.hear(session, rollout, _gate(rollout), [Acknowledged()])
    return state.halted_by if rollout.rule == Rule.EVIDENCE else None


def view(session: Session, rollout: Rollout) -> tuple[GateView | None, str]:
    """Return what the gate lets the rollout do, and why; None where the first failure decides."""
    if rollout.rule != Rule.EVIDENCE:
        return None, ""
    state, reach = gating.load(session, rollout), gating.next_reach(session, rollout)
    exposed = state.scopes[ALL].exposed
    if exposed == 0 and state.halted_by is None:  # the first wave needs no proof
        return GateView(halts=False, room=reach or 0), ""
    verdict = _gate(rollout).decide(state, reach)
    room = verdict.reach - exposed if verdict.decision is Decision.OPEN else 0
    return GateView(halts=verdict.decision is Decision.HALT, room=room), "; ".join(verdict.reasons)


def hold_ends(rollout: Rollout) -> datetime | None:
    """Return when a rollout halts that is held with nobody left to hear; None: it is not."""
    held_s = GatePlan.of(rollout.gates).held_s
    return None if rollout.held_since is None else rollout.held_since + timedelta(seconds=held_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Where the gate of a live rollout is, for metrics.

    Attributes:
        rollout: its id.
        model: name of its model.
        e_value: evidence of harm, over all games; it halts at
        halts_at: so much, where evidence decides.
        games: the same by metric, of all devices.
        counts: devices by how far they are: exposed, reported, failed, lost.
        room: devices more that may be exposed now.
    """

    rollout: UUID
    model: str
    e_value: float
    halts_at: float
    games: Mapping[str, float]
    counts: Mapping[str, int]
    room: int


def readings(session: Session) -> list[Reading]:
    """Return where the gates of all live rollouts are, from what is stored: no evidence is judged anew."""
    live = select(Rollout, Model.name).join(Model, Model.id == Rollout.model_id).where(Rollout.state.in_(LIVE))
    found = []
    for rollout, model in session.execute(live.order_by(Rollout.id)).all():
        if not gating.there(session, rollout):
            continue
        state, gate = gating.load(session, rollout), _gate(rollout)
        everybody, (seen, _) = state.scopes[ALL], view(session, rollout)
        found.append(
            Reading(
                rollout=rollout.id,
                model=model,
                e_value=gate.e_value(state),
                halts_at=gate.policy.halts_at,
                games=everybody.e_values,
                counts={name: getattr(everybody, name) for name in ("exposed", "reported", "failed", "lost")},
                room=0 if seen is None else max(0, seen.room),
            )
        )
    return found


def why(session: Session, rollout: Rollout, policy: Any = None) -> Explanation:
    """Explain what the gate says, or what it would have said with another policy.

    Args:
        session: the caller's transaction.
        rollout: it.
        policy: JSON object, as `GatePolicy.of` reads it; None: the rollout's own.

    Raises:
        Conflict: no evidence was kept.
        InvalidInput: the policy is wrong.
    """
    other = GatePlan.of(rollout.gates).policy if policy is None else GatePolicy.of(policy)
    return explain(gating.evidence(session, rollout), other)


def waiting(session: Session, rollout: Rollout) -> int:
    """Return how many devices the next wave would expose."""
    return gating.waiting(session, rollout)


def word_of(device: str, report: Report, *, committed: bool) -> Reported:
    """Return what a report says to a gate.

    A device that refused because it is worse on its holdout is judged by how much worse, with all others: its own test
    refuses a share of harmless releases by design, which would count as failures.
    """
    losses = {} if report.evidence is None else losses_of(report.evidence)
    judged = report.error_code == _JUDGED_BY_THE_DEVICE and "accuracy" in losses
    return Reported(device, failed=not committed and not judged, losses=losses)


def losses_of(evidence: Evidence) -> dict[str, float]:
    """Return the losses that a device measured: paired accuracy, and log ratios of latency."""
    losses: dict[str, float] = {}
    if evidence.old_correct is not None and evidence.samples > 0:
        losses["accuracy"] = (evidence.old_correct - evidence.new_correct) / evidence.samples
    for metric, new, old in (
        ("latency_p50", evidence.new_latency_s, evidence.old_latency_s),
        ("latency_p95", evidence.new_latency_p95_s, evidence.old_latency_p95_s),
    ):
        ratio = log_ratio(new, old)
        if ratio is not None:
            losses[metric] = ratio
    return losses


def _awaited(session: Session, rollout: Rollout, devices: Sequence[UUID]) -> list[UUID]:
    """Return those of the devices whose exposure was heard and whose end was not, in the same order."""
    if not devices or not gating.there(session, rollout):
        return []
    exposed = gating.devices_heard(session, rollout, devices, "exposed")
    ended = gating.devices_heard(session, rollout, devices, "ended")
    return [one for one in devices if one in exposed - ended]


def _gate(rollout: Rollout) -> Gate:
    return Gate(GatePlan.of(rollout.gates).policy)


def _segments(session: Session, devices: Collection[UUID]) -> dict[UUID, tuple[Segment, ...]]:
    """Return of each device its profile, where it said one, and its group as its site."""
    rows = session.execute(select(Device.id, Device.profile, Device.device_group).where(among(Device.id, devices)))
    return {
        device: (*(() if profile is None else (f"profile={profile}",)), f"site={group}")
        for device, profile, group in rows
    }
