"""The steps that a site's plan takes by itself, once it is applied: by reports of its members, by who leaves, by time.

Whoever moves a plan holds the moves lock (`rollout_steps`), then the plan's row, then devices. What is signed for a
member stands in its row (`phase`); the director reads it at the next poll, of which a trigger tells all replicas.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device
from sprat_server.flows import rollout_steps, site_fetching
from sprat_server.observe import outbox
from sprat_server.observe.actors import SYSTEM, Actor
from sprat_server.registry.models import Model
from sprat_server.rollouts import service as rollouts
from sprat_server.sites import records
from sprat_server.sites.models import SitePlanHost, SitePlanMember, SitePlanRow
from sprat_server.sites.states import SIGNED, Cause, MemberStatus, PlanStatus, Step, next_step
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.report import Outcome, Report
from sprat_shared.protocol.site_report import PlanState, SiteReport
from sprat_shared.trust.site_targets import Phase

_SAID = {
    PlanState.READY: MemberStatus.READY,
    PlanState.SERVING: MemberStatus.SERVING,
    PlanState.REFUSED: MemberStatus.REFUSED,
}
_FETCHED = frozenset({Outcome.READY, Outcome.COMMITTED, Outcome.RETURNED})

_log = structlog.get_logger(__name__)


def title(session: Session, plan: SitePlanRow) -> str:
    """Return `site/number`."""
    return f"{records.site_of(session, plan).name}/{plan.number}"


def on_site_report(session: Session, device: Device, report: SiteReport) -> None:
    """Note how far a member is with a plan, and let the plan go on; the caller holds the moves lock.

    What is said of a plan that is over changes nothing.

    Raises:
        InvalidInput: the device never was a member of such a plan.
    """
    found = records.membership(session, device.id, report.site, report.plan)
    if found is None:
        raise InvalidInput(
            f"device {device.id} is no member of a plan {report.site}/{report.plan}", code="report.unknown-plan"
        )
    plan, member = records.lock(session, found[0].id), found[1]
    session.refresh(member)
    if plan.state not in SIGNED or member.state == MemberStatus.LEFT:
        return
    before, member.state = member.state, _SAID[report.state].value
    member.error_code, member.error_detail = report.error_code, report.error_detail
    member.said_at = datetime.now(UTC)
    session.flush()
    refused = report.state == PlanState.REFUSED and before != member.state
    why = f"{device.name}: {report.error_code}: {report.error_detail or ''}".rstrip(": ")
    if refused and plan.state != PlanStatus.HOLDING:
        tell(session, plan, "lost", device=str(device.id), name=device.name, why=why)
    advance(session, plan, trouble=why if refused else None)


def on_answer(session: Session, plan_id: UUID, device: Device, report: Report) -> None:
    """Let a plan that had a device fetch a module hear how that ended; the caller holds the moves lock."""
    plan = records.lock(session, plan_id)
    if report.outcome in _FETCHED:  # the device says itself when all of it is loaded
        site_fetching.fetched(session, plan, device.id, report.assignment, datetime.now(UTC))
        advance(session, plan)
        return
    why = f"{report.error_code}: {report.error_detail or ''}".rstrip(": ")
    advance(session, plan, trouble=f"{device.name} could not fetch {report.model}@{report.release}: {why}")


def on_left(session: Session, device_ids: Collection[UUID], why: str) -> None:
    """Let plans go on without devices that were revoked, or have other keys now; the caller holds the moves lock.

    A plan that is held fails, one that serves goes on among the others.
    """
    gone: dict[UUID, list[SitePlanMember]] = {}
    for plan, member in records.memberships(session, device_ids):
        gone.setdefault(plan.id, []).append(member)
    for plan_id, members in sorted(gone.items()):
        plan = records.lock(session, plan_id)
        for member in members:
            session.refresh(member)
            member.state, member.phase = MemberStatus.LEFT.value, None
            session.flush()
            name = fleet.get_device(session, member.device_id).name
            if plan.state != PlanStatus.HOLDING:
                tell(session, plan, "lost", device=str(member.device_id), name=name, why=f"{name} {why}")
        advance(session, plan)


def advance(session: Session, plan: SitePlanRow, *, trouble: str | None = None, now: datetime | None = None) -> None:
    """Take the steps of a plan that are due. The caller holds the moves lock and the plan's row.

    Args:
        session: the caller's transaction.
        plan: it.
        trouble: what ends it, if it is held.
        now: the time that counts; None: the present.
    """
    at = now or datetime.now(UTC)
    if plan.state == PlanStatus.HOLDING and trouble is None:
        trouble = site_fetching.begin(session, plan, at)
    while True:
        members = records.members_of(session, plan)
        names = fleet.names(session, [one.device_id for one in members])
        said = {names[one.device_id]: MemberStatus(one.state) for one in members}
        late = plan.deadline_at is not None and at >= plan.deadline_at
        decided = next_step(PlanStatus(plan.state), said, late=late, trouble=trouble)
        match decided.step:
            case Step.WAIT:
                return
            case Step.FAIL:
                stop(session, plan, PlanStatus.FAILED, decided.why, SYSTEM)
                return
            case Step.SWITCH:
                _switch(session, plan, at)
            case Step.SETTLE:
                _settle(session, plan, decided.why, at)
                return


def stop(session: Session, plan: SitePlanRow, state: PlanStatus, reason: str, by: Actor) -> None:
    """End a plan that is held; the one before serves on, and what was to be fetched is not wished any more."""
    before = {"state": plan.state}
    _sign(session, plan, None)
    plan.state, plan.reason, plan.deadline_at, plan.ended_at = state.value, reason, None, datetime.now(UTC)
    session.flush()
    _give_up(session, plan)
    tell(session, plan, state.value, reason=reason)
    after = {"state": plan.state, "reason": reason}
    verb = "abort" if state == PlanStatus.ABORTED else "fail"
    audit.record(session, by, f"site.{verb}", f"site-plan:{title(session, plan)}", before, after)
    _log.warning("site.plan-ended", plan=title(session, plan), state=plan.state, reason=reason)


def retire(session: Session, plan: SitePlanRow, now: datetime | None = None) -> None:
    """Have a plan that served be over: nothing is signed by it any more."""
    _sign(session, plan, None)
    plan.state, plan.ended_at = PlanStatus.RETIRED.value, now or datetime.now(UTC)
    session.flush()
    _give_up(session, plan)


def tell(session: Session, plan: SitePlanRow, kind: str, **more: Any) -> None:
    """Write an event about a plan."""
    site = records.site_of(session, plan).name
    outbox.tell(session, f"site.{kind}", f"site:{site}", {"site": site, "plan": plan.number} | more)


def keep_modules(session: Session, plan: SitePlanRow) -> int:
    """Have the hosts of a plan that serves run what they fetched for it; return how many assignments that took.

    Where a rollout of the model is under way it decides what devices run; the plan serves what was fetched anyway. By a
    step on the way to another plan nothing is run: what a device runs stays loaded, and memory is short.
    """
    if plan.cause == Cause.STEP and records.is_on_its_way(session, plan.site_id):
        return 0
    kept = 0
    waiting: dict[UUID, list[SitePlanHost]] = {}
    for host in records.hosts_of(session, plan):
        if host.fetched_by is not None and host.kept_by is None:
            waiting.setdefault(host.model_id, []).append(host)
    for model_id, hosts in waiting.items():
        if rollouts.live_rollout(session, model_id) is not None:
            continue
        newest = _newest(session, model_id, hosts)
        mine = {host.device_id: host for host in hosts if newest.get(host.device_id) == host.fetched_by}
        for host in hosts:
            host.kept_by = host.fetched_by  # of the others something else was wished since: that stands
        counters = fleet.assign(session, model_id, {one: host.number for one, host in mine.items()}, "site")
        rollouts.forget_prefetches(session, model_id, counters, but=None)
        for device_id, counter in counters.items():
            mine[device_id].kept_by = counter
        session.flush()
        kept += len(counters)
    return kept


def taken_away(session: Session, plan: SitePlanRow) -> str | None:
    """Return whose module something else took the place of while a plan is held; None: all are still wished."""
    ready = {one.device_id for one in records.members_of(session, plan) if one.state != MemberStatus.ASKED}
    for host in records.hosts_of(session, plan):
        if host.fetched_by is None or host.device_id in ready:
            continue
        if _newest(session, host.model_id, [host]).get(host.device_id) != host.fetched_by:
            model = session.get_one(Model, host.model_id).name
            name = fleet.get_device(session, host.device_id).name
            return f"something else was assigned to {name} than {model}@{host.number}, which the plan had it fetch"
    return None


def _switch(session: Session, plan: SitePlanRow, at: datetime) -> None:
    site = records.site_of(session, plan)
    old = records.in_state(session, plan.site_id, PlanStatus.SERVING)
    if old is not None:
        _sign(session, old, Phase.DRAIN)
        old.state = PlanStatus.DRAINING.value
        session.flush()
    _sign(session, plan, Phase.SERVE)
    plan.state, plan.switched_at = PlanStatus.SWITCHING.value, at
    plan.deadline_at = at + timedelta(seconds=site.switch_s)
    session.flush()
    tell(session, plan, "switching", replaces=None if old is None else old.number)
    _log.info("site.plan-switching", plan=f"{site.name}/{plan.number}")


def _settle(session: Session, plan: SitePlanRow, why: str, at: datetime) -> None:
    plan.state, plan.deadline_at, plan.reason = PlanStatus.SERVING.value, None, why or None
    session.flush()
    old = records.in_state(session, plan.site_id, PlanStatus.DRAINING)
    kept = keep_modules(session, plan)
    if old is not None:
        retire(session, old, at)
    members = records.members_of(session, plan)
    silent = [str(one.device_id) for one in members if one.state in {MemberStatus.ASKED, MemberStatus.READY}]
    lost = [str(one.device_id) for one in members if one.state in {MemberStatus.REFUSED, MemberStatus.LEFT}]
    tell(session, plan, "serving", replaces=None if old is None else old.number, silent=silent, lost=lost)
    _log.info("site.plan-serving", plan=title(session, plan), kept=kept, silent=silent, lost=lost)


def _sign(session: Session, plan: SitePlanRow, phase: Phase | None) -> None:
    """Have the director sign this phase for every member that is still there."""
    for member in records.members_of(session, plan):
        member.phase = None if phase is None or member.state == MemberStatus.LEFT else phase.value
    session.flush()


def _give_up(session: Session, plan: SitePlanRow) -> None:
    """Have devices return to what they should run, where they only fetched a release for a plan that is over."""
    waiting: dict[UUID, list[SitePlanHost]] = {}
    for host in records.hosts_of(session, plan):
        if host.fetched_by is not None and host.kept_by is None and not records.needed_elsewhere(session, host):
            waiting.setdefault(host.model_id, []).append(host)
    for model_id, hosts in waiting.items():
        newest = _newest(session, model_id, hosts)
        mine = [host.device_id for host in hosts if newest.get(host.device_id) == host.fetched_by]
        wishes = fleet.running_wishes(session, model_id, mine)
        fleet.assign(session, model_id, {one: wishes.get(one) for one in mine}, "return")


def _newest(session: Session, model_id: UUID, hosts: Collection[SitePlanHost]) -> dict[UUID, int]:
    devices = [host.device_id for host in hosts]
    current = fleet.current_assignments(session, device_ids=devices, model_id=model_id)
    return {one.device_id: one.counter for one in current}


def lock_moves(session: Session) -> None:
    """Let nobody else move plans or assign to many devices until the transaction ends."""
    rollout_steps.lock_moves(session)
