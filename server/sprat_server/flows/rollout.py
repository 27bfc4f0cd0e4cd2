"""Move rollouts: what people ask for, over rollouts, fleet and registry, each in one transaction."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.flows import direct, gating, live
from sprat_server.flows import rollout_cohorts as cohorts
from sprat_server.flows import rollout_reversals as reversals
from sprat_server.flows import rollout_steps as steps
from sprat_server.observe.actors import Actor
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts import approvals, quarantine
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.gate_plan import GatePlan, Rule
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.rollouts.plan import RolloutPlan
from sprat_server.rollouts.reaches import Growth
from sprat_server.rollouts.waves import DeviceState, Prefetch, RolloutState
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict, InvalidInput


def create(
    session: Session,
    *,
    model: str,
    release: int,
    devices: Sequence[UUID] | None,
    by: str,
    reaches: Sequence[str] | None = None,
    by_id: str | None = None,
    gates: GatePlan | None = None,
    plan: RolloutPlan | None = None,
    name: str | None = None,
    digest: str | None = None,
    start_at: datetime | None = None,
) -> Rollout:
    """Add a rollout as a draft.

    Args:
        session: the caller's transaction.
        model: its name.
        release: the number to bring out.
        devices: the cohort; None: all that are there at the start.
        by: who makes it, and
        by_id: the id of that actor, who may not approve it.
        reaches: of the waves; None: they grow as the plan says, or by default.
        gates: of its gate.
        plan: how else it is to be run.
        name: what people call it.
        digest: of all that is asked.
        start_at: it starts by itself then.

    Raises:
        NotFound: the model, the release or a device does not exist.
        InvalidInput: the waves make no plan, the cohort is empty or names a device twice, or a rehearsal is for a
            device that is real.
        Conflict: a device was revoked, the release waits for signatures or is in quarantine, or the name is taken.
    """
    lineage = registry.get_model(session, model)
    registry.get_release(session, lineage, release)
    registry.require_published(session, lineage, release)
    plan = plan or RolloutPlan()
    if reaches is None and plan.growth is None:
        plan = replace(plan, growth=Growth())
    quarantine.require_free(session, model, lineage.id, release, plan)
    check_devices(session, devices)
    if plan.rehearsal:
        fleet.require_played(session, devices)
    cohort = cohorts.meant(session, devices, plan)
    layout = cohorts.lay_out(session, reaches or (), plan, cohort, b"")
    draft = rollouts.Draft(
        model_id=lineage.id,
        number=release,
        reaches=layout.reaches,
        devices=devices,
        by=by,
        by_id=by_id,
        gates=(gates or GatePlan()).as_json(),
        plan=plan,
        name=name,
        digest=digest,
        start_at=start_at,
    )
    rollout = rollouts.create(session, draft)
    steps.tell(session, rollout, "created")
    return rollout


def check_devices(session: Session, devices: Sequence[UUID] | None) -> None:
    """Return if these devices can be a cohort; None stands for all.

    Raises:
        NotFound: a device does not exist.
        InvalidInput: there is none, or one stands twice.
        Conflict: a device was revoked.
    """
    if devices is None:
        return
    if not devices or len(set(devices)) != len(devices):
        raise InvalidInput("name each device of the cohort once, or leave the list out for the whole fleet")
    fleet.require_live(session, devices)


def approve(session: Session, rollout_id: UUID, by: Actor, reason: str) -> Rollout:
    """Say that a draft may start. Raises NotFound, AccessDenied to its maker, and Conflict unless it is a draft."""
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "approve")
    approvals.approve(session, rollout, by, reason)
    steps.tell(session, rollout, "approved", by=str(by))
    return rollout


def prefetch(session: Session, rollout_id: UUID, settings: Settings) -> Rollout:
    """Have the cohort fetch the release of a draft and rebuild it; it waits there until the rollout is started.

    Asked again, it reaches devices that joined since, and those that failed.

    Raises:
        NotFound: there is none of this id.
        Conflict: as `start`.
    """
    rollout, model = _to_move(session, rollout_id, "prefetch")
    reversals.require_alone(session, model, advice="fetching ahead would take its devices from it; let it end first")
    parts = {part.device_id: part for part in rollouts.devices_of(session, rollout)}
    cohort = cohorts.cohort_of(session, rollout)
    wishes = fleet.running_wishes(session, model.id, cohort)
    held = {device: row.active for (device, _), row in fleet.slots(session, model_id=model.id).items()}
    asked = {device_id for device_id, part in parts.items() if part.prefetch in {Prefetch.ASKED, Prefetch.READY}}
    lacking = [d for d in cohort - asked if rollout.number not in {held.get(d), wishes.get(d)}]
    before = steps.had(session, rollout, lacking)
    live.bring_in(session, open_repository(session, settings), model, rollout.number)
    counters = steps.assign(session, rollout, dict.fromkeys(lacking, rollout.number), "prefetch")
    for device_id, counter in counters.items():
        part = parts.get(device_id) or RolloutDevice(rollout_id=rollout.id, device_id=device_id)
        part.prefetch, part.prefetched_by = Prefetch.ASKED, counter
        part.previous = before[device_id]
        session.add(part)
    session.flush()
    steps.tell(session, rollout, "prefetch", devices=len(counters))
    direct.enqueue(session, model)
    return rollout


def start(session: Session, rollout_id: UUID, settings: Settings, now: datetime | None = None) -> Rollout:
    """Decide who is in which wave, who is held back, and open the first wave if a window is open.

    The release is signed back in first where it was pruned.

    Raises:
        NotFound: there is none of this id.
        Conflict: it is no draft, needs approvals, its release is in quarantine or must be signed by people first, or
            another rollout of the model runs and it does not supersede that one.
        InvalidInput: a filter of a wave cannot be read any more.
    """
    rollout, model = _to_move(session, rollout_id, "start")
    plan, cohort = rollouts.plan_of(rollout), cohorts.cohort_of(session, rollout)
    if plan.says_devices and not cohort:
        raise Conflict(
            f"rollout {rollout.id} means no device now; `sprat group preview` says what a filter means",
            code="rollout.no-devices",
        )
    if plan.supersede:
        cohort |= reversals.supersede(session, rollout, cohort)
    else:
        reversals.require_alone(session, model, advice="abort it, let it end, or make a rollout that supersedes it")
    wishes = fleet.running_wishes(session, model.id, cohort)
    held = {device: row.active for (device, _), row in fleet.slots(session, model_id=model.id).items()}
    reaches = [wave.reach for wave in rollouts.waves_of(session, rollout)]
    live.bring_in(session, open_repository(session, settings), model, rollout.number)
    layout = cohorts.lay_out(session, reaches, plan, cohort, rollout.id.bytes)
    if layout.reaches != reaches:
        rollouts.set_waves(session, rollout, layout.reaches)
    rollout.state, rollout.started_at, rollout.reason = RolloutState.RUNNING, datetime.now(UTC), None
    has_it = {d: wishes.get(d) == rollout.number == held.get(d) for d in cohort}
    rollouts.place(session, rollout, layout.places, has_it, layout.controls)
    gating.begin(session, rollout, layout.places)
    steps.tell(session, rollout, "started", devices=len(cohort))
    steps.advance(session, rollout, now=now)
    direct.enqueue(session, model)
    return rollout


def pause(session: Session, rollout_id: UUID, reason: str) -> Rollout:
    """Open no further wave; a failure still halts. Raises NotFound, and Conflict unless it runs."""
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "pause")
    rollout.state, rollout.reason, rollout.held_since = RolloutState.PAUSED, reason, None
    session.flush()
    steps.tell(session, rollout, "paused")
    return rollout


def resume(session: Session, rollout_id: UUID, settings: Settings, *, acknowledge: bool = False) -> Rollout:
    """Go on where it was paused, or after a halt for failures that are acknowledged.

    Acknowledged failures do not halt again; measured harm does.

    Args:
        session: the caller's transaction.
        rollout_id: of the rollout.
        settings: of the server.
        acknowledge: the failures until now are known and not the release's.

    Raises:
        NotFound: there is none of this id.
        Conflict: it is neither paused nor halted; it halted, and nothing is acknowledged; or as
            `rollout_reversals.go_on`.
    """
    if rollouts.get(session, rollout_id).state == RolloutState.HALTED:
        if not acknowledge:
            raise Conflict(
                f"rollout {rollout_id} halted; look at sprat rollout why {rollout_id}, and where the release is not to "
                "blame for the failures, resume it with --acknowledge",
                code="rollout.halted",
            )
        rollout = reversals.go_on(session, rollout_id, settings)
    else:
        rollout = steps.lock(session, rollout_id)
        rollouts.require(rollout, "resume")
        if acknowledge:
            reversals.excuse(session, rollout)
            gating.acknowledge(session, rollout)
        rollout.state = RolloutState.RUNNING
        session.flush()
    steps.tell(session, rollout, "resumed")
    steps.advance(session, rollout)
    direct.enqueue(session, steps.model_of(session, rollout))
    return rollout


def promote(session: Session, rollout_id: UUID) -> Rollout:
    """Open the next wave on a person's word, whatever is proven by now; a gate that halts still does.

    Raises:
        NotFound: there is none of this id.
        Conflict: it does not run, the first failure decides in it, no device waits for a wave, or its windows or the
            number of devices in flight hold it back.
    """
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "promote")
    room = gating.waiting(session, rollout)
    if rollout.rule != Rule.EVIDENCE or not room:
        raise Conflict(
            f"rollout {rollout.id} has no wave that waits for evidence; `sprat rollout why` says what it waits for",
            code="rollout.nothing-to-promote",
        )
    limits = steps.limits(session, rollout)
    if not limits.open or limits.free == 0:
        raise Conflict(
            f"rollout {rollout.id} is outside its maintenance windows, or has as many devices in flight as it may; "
            "`sprat rollout get` says which",
            code="rollout.held-back",
        )
    steps.tell(session, rollout, "promoted")
    steps.advance(session, rollout, room=room)
    return rollout


def abort(session: Session, rollout_id: UUID, reason: str, *, keep: bool = False) -> Rollout:
    """Stop for good; exposed devices go back to the release they had.

    Args:
        session: the caller's transaction.
        rollout_id: of the rollout.
        reason: why.
        keep: devices that have committed the release keep it; the others go back.

    Raises:
        NotFound: there is none of this id.
        Conflict: it ended.
    """
    rollout = steps.lock(session, rollout_id)
    rollouts.require(rollout, "abort")
    kept = {DeviceState.COMMITTED} if keep else set()
    steps.stop(session, rollout, RolloutState.ABORTED, reason, keep=kept)
    return rollout


def hold(session: Session, rollout_id: UUID) -> Rollout:
    """Return a rollout that nobody else moves until the transaction ends, nor any other of its model.

    Raises:
        NotFound: there is none of this id.
    """
    registry.lock_model(session, steps.model_of(session, rollouts.get(session, rollout_id)))
    return steps.lock(session, rollout_id)


def _to_move(session: Session, rollout_id: UUID, action: str) -> tuple[Rollout, Model]:
    """Lock a draft that may be moved, and its model, for a move that assigns."""
    model = steps.model_of(session, rollouts.get(session, rollout_id))
    rollout = hold(session, rollout_id)
    rollouts.require(rollout, action)
    approvals.require(session, rollout)
    quarantine.require_free(session, model.name, model.id, rollout.number, rollouts.plan_of(rollout))
    return rollout, model
