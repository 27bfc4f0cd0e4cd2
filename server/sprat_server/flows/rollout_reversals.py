"""What turns a rollout round: it is superseded, undone, or goes on after a halt. One transaction each."""

from uuid import UUID

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.fleet import service as fleet
from sprat_server.flows import direct, gating, live
from sprat_server.flows import rollout_steps as steps
from sprat_server.observe.actors import SYSTEM
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.models import Rollout
from sprat_server.rollouts.waves import DeviceState, RolloutState, WaveState
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict

_log = structlog.get_logger(__name__)


def require_alone(session: Session, model: Model, *, advice: str) -> None:
    """Return if no rollout of a model runs or is paused.

    Raises:
        Conflict: one does.
    """
    other = rollouts.live_rollout(session, model.id)
    if other is not None:
        raise Conflict(f"rollout {other.id} of {model.name} is {other.state}; {advice}", code="rollout.busy")


def supersede(session: Session, by: Rollout, cohort: set[UUID]) -> set[UUID]:
    """End the running rollout of the model for another one; return the devices that it had exposed.

    They keep what they have, and take part in the later one. Devices that only fetched ahead and are not of its cohort
    go back.
    """
    found = rollouts.live_rollout(session, by.model_id)
    if found is None:
        return set()
    other = rollouts.lock(session, found.id)
    before = {"state": other.state}
    reason = f"superseded by rollout {by.id}"
    for wave in rollouts.waves_of(session, other):
        if wave.state == WaveState.OPEN:
            rollouts.end_wave(session, wave, WaveState.HALTED)
    parts = rollouts.exposed_devices(session, other)
    taken = {part.device_id for part in parts if part.exposed_by is not None}
    for part in parts:
        part.retry_at = None
    steps.take_back(session, other, [one for one in parts if one.device_id not in taken | cohort])
    rollouts.end(session, other, RolloutState.SUPERSEDED, reason)
    after = {"state": other.state, "reason": reason}
    audit.record(session, SYSTEM, "rollout.supersede", f"rollout:{other.id}", before, after)
    steps.tell(session, other, "superseded", by=str(by.id))
    _log.info("rollout superseded", rollout=str(other.id), by=str(by.id), taken_over=len(taken))
    return taken & set(fleet.live_devices(session))


def undo(session: Session, rollout_id: UUID, settings: Settings, reason: str) -> Rollout:
    """Bring devices back from a rollout that succeeded, or was aborted and kept, to what they had before it.

    Devices that another assignment of the model has reached since stay where that brought them. Devices that joined
    since go to what new devices get now.

    Raises:
        NotFound: there is none of this id.
        Conflict: it is in another state, another rollout of the model runs, no device still has the release from it,
            or an earlier release must be signed back in by people first.
    """
    model = steps.model_of(session, rollouts.get(session, rollout_id))
    registry.lock_model(session, model)
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "undo")
    require_alone(session, model, advice="abort it or let it end first")
    parts = {part.device_id: part for part in rollouts.exposed_devices(session, rollout) if part.exposed_by is not None}
    running = {row.device_id: row for row in fleet.running_assignments(session, model.id)}
    back = [part for one, part in parts.items() if one in running and running[one].counter == part.exposed_by]
    there = {one: row for one, row in running.items() if row.number == rollout.number}
    joined = [one for one, row in there.items() if one not in parts and row.reason == "enrolment"]
    if not back and not joined:
        raise Conflict(
            f"no device runs {model.name}@{rollout.number} from rollout {rollout.id} any more; it stays as it is",
            code="rollout.nothing-to-undo",
        )
    rollouts.end(session, rollout, RolloutState.UNDONE, reason)
    stands = rollouts.standing_releases(session).get(model.id)
    image = open_repository(session, settings)
    for number in sorted({part.previous for part in back if part.previous is not None} | {stands or 0} - {0}):
        live.bring_in(session, image, model, number)
    returned = steps.take_back(session, rollout, back)
    steps.assign(session, rollout, dict.fromkeys(joined, stands), "return")
    direct.enqueue(session, model)
    steps.tell(session, rollout, "undone", returned=returned)
    _log.warning("rollout undone", rollout=str(rollout.id), reason=reason, returned=returned, joined=len(joined))
    return rollout


def go_on(session: Session, rollout_id: UUID, settings: Settings) -> Rollout:
    """Go on after a halt whose failures a person has acknowledged.

    Devices that failed are left as they are. The others that had the release are offered it again, for no bytes where
    they still hold it; each was heard by the gate already, or will be.

    Raises:
        NotFound: there is none of this id.
        Conflict: what was measured halts it still, another rollout of the model was started since, or the release must
            be signed back in by people first.
    """
    model = steps.model_of(session, rollouts.get(session, rollout_id))
    registry.lock_model(session, model)
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "resume")
    require_alone(session, model, advice="abort it or let it end first")
    later = session.scalar(
        select(Rollout.id).where(Rollout.model_id == model.id, Rollout.started_at > rollout.ended_at).limit(1)
    )
    if later is not None:
        raise Conflict(
            f"rollout {later} of {model.name} was started after {rollout.id} halted; roll the release out anew",
            code="rollout.overtaken",
        )
    harm = gating.acknowledge(session, rollout)
    if harm is not None:
        raise Conflict(
            f"rollout {rollout.id} did not halt for failures that can be acknowledged: {harm}", code="rollout.harmful"
        )
    live.bring_in(session, open_repository(session, settings), model, rollout.number)
    rollout.state, rollout.ended_at = RolloutState.RUNNING, None
    for wave in rollouts.waves_of(session, rollout):
        if wave.state == WaveState.HALTED:
            wave.state, wave.ended_at = WaveState.OPEN, None
    session.flush()
    excuse(session, rollout)
    had_it = {DeviceState.EXPOSED, DeviceState.COMMITTED}
    parts = [part for part in rollouts.devices_of(session, rollout) if part.state in had_it]
    steps.offer(session, rollout, [part for part in parts if part.returned_by is not None and part.exposed_by])
    return rollout


def excuse(session: Session, rollout: Rollout) -> int:
    """Hold the failures so far against the release no more; return how many devices failed."""
    failed = [part for part in rollouts.devices_of(session, rollout) if part.state == DeviceState.FAILED]
    for part in failed:
        part.state = DeviceState.EXCUSED
    session.flush()
    return len(failed)
