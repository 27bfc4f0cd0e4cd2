"""Move rollouts: what people ask for, over rollouts, fleet and registry, each in one transaction."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device
from sprat_server.flows import direct, gating, live
from sprat_server.flows import rollout_steps as steps
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.gate_plan import GatePlan, Rule
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.schemas import RolloutView
from sprat_server.rollouts.waves import Prefetch, RolloutState, place_devices
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict, InvalidInput


def create(
    session: Session,
    *,
    model: str,
    release: int,
    reaches: Sequence[str],
    devices: Sequence[UUID] | None,
    by: str,
    gates: GatePlan | None = None,
) -> Rollout:
    """Add a rollout as a draft.

    Raises:
        NotFound: the model, the release or a device does not exist.
        InvalidInput: the waves make no plan, or the cohort is empty or names a device twice.
        Conflict: a device was revoked, or the release waits for signatures.
    """
    lineage = registry.get_model(session, model)
    registry.get_release(session, lineage, release)
    registry.require_published(session, lineage, release)
    if devices is not None:
        if not devices or len(set(devices)) != len(devices):
            raise InvalidInput("name each device of the cohort once, or leave the list out for the whole fleet")
        fleet.require_live(session, devices)
    plan = (gates or GatePlan()).as_json()
    return rollouts.create(
        session, model_id=lineage.id, number=release, reaches=reaches, devices=devices, by=by, gates=plan
    )


def prefetch(session: Session, rollout_id: UUID, settings: Settings) -> Rollout:
    """Have the cohort fetch the release of a draft and rebuild it; it waits there until the rollout is started.

    Asked again, it reaches devices that joined since, and those that failed.

    Raises:
        NotFound: there is none of this id.
        Conflict: as `start`.
    """
    rollout, model = _to_move(session, rollout_id, "prefetch")
    parts = {part.device_id: part for part in rollouts.devices_of(session, rollout)}
    cohort = _cohort(session, rollout)
    wishes = fleet.running_wishes(session, model.id, cohort)
    held = {device: row.active for (device, _), row in fleet.slots(session, model_id=model.id).items()}
    asked = {device_id for device_id, part in parts.items() if part.prefetch in {Prefetch.ASKED, Prefetch.READY}}
    lacking = [d for d in cohort - asked if rollout.number not in {held.get(d), wishes.get(d)}]
    live.bring_in(session, open_repository(session, settings), model, rollout.number)
    counters = steps.assign(session, rollout, dict.fromkeys(lacking, rollout.number), "prefetch")
    for device_id, counter in counters.items():
        part = parts.get(device_id) or RolloutDevice(rollout_id=rollout.id, device_id=device_id)
        part.prefetch, part.prefetched_by = Prefetch.ASKED, counter
        part.previous = steps.first_other(rollout, wishes.get(device_id), held.get(device_id))
        session.add(part)
    session.flush()
    direct.enqueue(session, model)
    return rollout


def start(session: Session, rollout_id: UUID, settings: Settings) -> Rollout:
    """Decide who is in which wave and open the first. The release is signed back in first where it was pruned.

    Raises:
        NotFound: there is none of this id.
        Conflict: it is no draft, another rollout of the model runs, or its release must be signed by people first.
    """
    rollout, model = _to_move(session, rollout_id, "start")
    cohort = _cohort(session, rollout)
    wishes = fleet.running_wishes(session, model.id, cohort)
    held = {device: row.active for (device, _), row in fleet.slots(session, model_id=model.id).items()}
    reaches = [wave.reach for wave in rollouts.waves_of(session, rollout)]
    live.bring_in(session, open_repository(session, settings), model, rollout.number)
    rollout.state, rollout.started_at = RolloutState.RUNNING, datetime.now(UTC)
    rollouts.place(
        session,
        rollout,
        place_devices(reaches, cohort, rollout.id.bytes),
        {d: wishes.get(d) == rollout.number == held.get(d) for d in cohort},
    )
    gating.begin(session, rollout, cohort)
    steps.advance(session, rollout)
    direct.enqueue(session, model)
    return rollout


def pause(session: Session, rollout_id: UUID, reason: str) -> Rollout:
    """Open no further wave; a failure still halts. Raises NotFound, and Conflict unless it runs."""
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "pause")
    rollout.state, rollout.reason = RolloutState.PAUSED, reason
    session.flush()
    return rollout


def resume(session: Session, rollout_id: UUID) -> Rollout:
    """Go on where it was paused. Raises NotFound, and Conflict unless it is paused."""
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "resume")
    rollout.state = RolloutState.RUNNING
    session.flush()
    steps.advance(session, rollout)
    return rollout


def promote(session: Session, rollout_id: UUID) -> Rollout:
    """Open the next wave on a person's word, whatever is proven by now; a gate that halts still does.

    Raises:
        NotFound: there is none of this id.
        Conflict: it does not run, the first failure decides in it, or no device waits for a wave.
    """
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "promote")
    room = gating.waiting(session, rollout)
    if rollout.rule != Rule.EVIDENCE or not room:
        raise Conflict(
            f"rollout {rollout.id} has no wave that waits for evidence; `sprat rollout why` says what it waits for",
            code="rollout.nothing-to-promote",
        )
    steps.advance(session, rollout, room=room)
    return rollout


def abort(session: Session, rollout_id: UUID, reason: str) -> Rollout:
    """Stop for good; exposed devices go back to the release they had. Raises NotFound, and Conflict when it ended."""
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "abort")
    steps.stop(session, rollout, RolloutState.ABORTED, reason)
    return rollout


def view(session: Session, rollout: Rollout) -> RolloutView:
    """Return a rollout as it is shown."""
    waves, parts = rollouts.waves_of(session, rollout), rollouts.devices_of(session, rollout)
    named = select(Device.id, Device.name).where(Device.id.in_([part.device_id for part in parts]))
    names = dict(session.execute(named).all())
    return RolloutView.of(rollout, steps.model_of(session, rollout).name, waves, parts, names)


def _to_move(session: Session, rollout_id: UUID, action: str) -> tuple[Rollout, Model]:
    """Lock a draft and its model for a move that assigns; Conflict where another rollout of the model is live."""
    model = steps.model_of(session, rollouts.get(session, rollout_id))
    registry.lock_model(session, model)
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, action)
    other = rollouts.live_rollout(session, model.id)
    if other is not None:
        raise Conflict(
            f"rollout {other.id} of {model.name} is {other.state}; abort it or let it end before you start another",
            code="rollout.busy",
        )
    return rollout, model


def _cohort(session: Session, rollout: Rollout) -> set[UUID]:
    there = set(fleet.live_devices(session))
    named = {device.device_id for device in rollouts.devices_of(session, rollout)}
    return there if rollout.whole_fleet else there & named
