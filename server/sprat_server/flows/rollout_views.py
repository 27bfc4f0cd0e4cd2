"""What rollouts look like to people: what they wait for, and how the devices that are held back do. Only reads."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.fleet.models import Device, DeviceDrift
from sprat_server.flows import gating
from sprat_server.flows import rollout_steps as steps
from sprat_server.registry.models import Model
from sprat_server.registry.schemas import QuarantineView
from sprat_server.rollouts import approvals, quarantine
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.retries import Failure
from sprat_server.rollouts.schemas import DoesView, RolloutDeviceView, RolloutView, WhyView
from sprat_server.rollouts.service import Tally
from sprat_server.rollouts.waves import DeviceState, RolloutState
from sprat_shared.trust.windows import next_opening


def view(session: Session, rollout: Rollout) -> RolloutView:
    """Return a rollout as it is shown."""
    waves, tally = rollouts.waves_of(session, rollout), rollouts.tally(session, rollout)
    model = steps.model_of(session, rollout).name
    waits = waits_for(session, rollout, tally, datetime.now(UTC))
    said = approvals.of(session, rollout)
    return RolloutView.of(rollout, model, waves, tally, approvals=said, waits_for=waits)


def device_views(session: Session, parts: Sequence[RolloutDevice]) -> list[RolloutDeviceView]:
    """Return the parts of a rollout's devices as they are shown, in the same order."""
    named = select(Device.id, Device.name).where(among(Device.id, [part.device_id for part in parts]))
    names = dict(session.execute(named).all())
    return [RolloutDeviceView.of(part, names.get(part.device_id, "")) for part in parts]


def waits_for(session: Session, rollout: Rollout, tally: Tally, now: datetime) -> list[str]:
    """Return what holds a rollout back, beside devices that have not answered; a sentence each."""
    said: list[str] = []
    if rollout.state == RolloutState.DRAFT:
        lacking = approvals.missing(session, rollout)
        if lacking:
            said.append(f"{lacking} more approval{'s' * (lacking > 1)} of others than {rollout.created_by}")
        if rollout.start_at is not None:
            said.append(f"its start at {_clock(rollout.start_at)}")
        return said
    if rollout.state not in rollouts.LIVE:
        return said
    if rollout.state == RolloutState.PAUSED:
        said.append("somebody to resume it")
    plan, bounds = rollouts.plan_of(rollout), steps.limits(session, rollout, now)
    if not bounds.open:
        said.append(f"its next maintenance window, at {_clock(next_opening(plan.windows, now))}")
    if bounds.free == 0:
        said.append(f"the {plan.in_flight} devices in flight, of which no more may be")
    ends = gating.hold_ends(rollout)
    if ends is not None:
        _, undecided = gating.view(session, rollout)
        said.append(f"a person: nobody is awaited, and nothing is proven ({undecided}); it halts at {_clock(ends)}")
    if tally.retry_at is not None:
        said.append(f"{tally.retrying} failed devices that are asked again, the first at {_clock(tally.retry_at)}")
    return said


def why(session: Session, rollout: Rollout, policy: Any = None) -> WhyView:
    """Explain what the gate says, or would have said with another policy, and how held back devices do meanwhile.

    Raises:
        Conflict: no evidence was kept.
        InvalidInput: the policy is wrong.
    """
    said = gating.why(session, rollout, policy)
    parts = rollouts.devices_of(session, rollout)
    ended = (DeviceState.FAILED, DeviceState.EXCUSED)
    failures = Counter(Failure(part.failure) for part in parts if part.failure is not None and part.state in ended)
    held_back = [part.device_id for part in parts if part.state == DeviceState.CONTROL]
    control = treated = None
    if held_back:
        have_it = [part.device_id for part in parts if part.state == DeviceState.COMMITTED]
        control, treated = _does(session, rollout, held_back), _does(session, rollout, have_it, rollout.number)
    return WhyView.of(rollout, said, failures, control, treated)


def quarantines(session: Session, model: Model) -> dict[int, QuarantineView]:
    """Return the releases of a model that are in quarantine, and why."""
    return {
        number: QuarantineView(rollout=one.id, reason=one.reason or "", since=one.ended_at or one.created_at)
        for number, one in quarantine.quarantined(session, model.id).items()
    }


def _does(session: Session, rollout: Rollout, devices: Collection[UUID], release: int | None = None) -> DoesView:
    """Return how devices do on their holdouts by their newest words since the start, with `release` where given."""
    words = select(func.count(), func.sum(DeviceDrift.samples), func.sum(DeviceDrift.correct)).where(
        DeviceDrift.model_id == rollout.model_id,
        among(DeviceDrift.device_id, devices),
        DeviceDrift.said_at >= (rollout.started_at or rollout.created_at),
    )
    if release is not None:
        words = words.where(DeviceDrift.release == release)
    reported, samples, right = session.execute(words).one()
    return DoesView(
        devices=len(devices),
        reported=reported,
        samples=int(samples or 0),
        accuracy=float(right) / float(samples) if samples else None,
    )


def _clock(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
