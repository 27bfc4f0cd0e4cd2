"""Whose turn it is to fetch for a plan of a site that is held: planned when it is applied, begun by reports and time.

A device is wished to have a release at hand once its turn has come, so that hosts do not all split the site's link. A
turn comes when those that were planned to be over before it are; at its planned time it waits for nobody, so that a
device that is slow, or off, holds up none. Devices hear of it at their next poll, and so the time is one poll early.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.flows import site_measures
from sprat_server.placement.schedule import Fetch, Schedule, Turn, schedule
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts import quarantine
from sprat_server.rollouts import service as rollouts
from sprat_server.sites import records
from sprat_server.sites.models import Site, SitePlanHost, SitePlanMember, SitePlanRow
from sprat_server.sites.states import MemberStatus

_BYTES_OF_MBIT: Final = 1e6 / 8
_SLIGHT_S: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Who would fetch what when.

    Attributes:
        schedule: of all that is lacking.
        turns: of it, by device.
    """

    schedule: Schedule
    turns: Mapping[UUID, Turn]


def lacking(session: Session, model_id: UUID, number: int, devices: Sequence[UUID]) -> list[UUID]:
    """Return the devices that neither hold a release, as far as they said, nor are to have it already."""
    held = fleet.slots(session, device_ids=devices, model_id=model_id)
    wished = {
        one.device_id
        for one in fleet.current_assignments(session, device_ids=devices, model_id=model_id)
        if one.number == number
    }
    return [
        device
        for device in devices
        if device not in wished
        and ((row := held.get((device, model_id))) is None or number not in {row.active, row.previous})
    ]


def planned(session: Session, site: Site, modules: Mapping[str, Any]) -> Planned:
    """Return who lacks what of a plan's modules, in how many bytes by the cheapest way, and when it would fetch them.

    Args:
        session: the caller's transaction.
        site: with its devices' links.
        modules: of the plan's content. Hosts that are of the site no more are left out.
    """
    known = site_measures.links(session, records.devices_of(session, site))
    links = {str(device): link.down_mbit.value * _BYTES_OF_MBIT for device, link in known.items()}
    fetches: list[Fetch] = []
    for name, said in sorted(modules.items()):
        model, number = registry.get_model(session, name), said["release"]
        hosts = [UUID(host) for host in said["hosts"] if host in links]
        fetches += [
            Fetch(device=str(host), module=name, nbytes=_bytes(session, model, number, host))
            for host in lacking(session, model.id, number, hosts)
        ]
    uplink = None if site.uplink_mbit is None else site.uplink_mbit * _BYTES_OF_MBIT
    found = schedule(fetches, links, uplink)
    return Planned(schedule=found, turns={UUID(turn.device): turn for turn in found.turns})


def take(session: Session, plan: SitePlanRow, site: Site, at: datetime, *, poll_s: float) -> None:
    """Write down which modules each host of a plan is to have, and whose turn comes when; nobody fetches yet.

    Args:
        session: the caller's transaction.
        plan: that is being applied.
        site: of it.
        at: now.
        poll_s: seconds after which a device hears of something at the latest.
    """
    turns = planned(session, site, plan.content["modules"]).turns
    for name, said in sorted(plan.content["modules"].items()):
        model, number, hosts = registry.get_model(session, name), said["release"], [UUID(one) for one in said["hosts"]]
        asked = {  # by somebody else, and it has not said yet that it is there
            one.device_id: one.counter
            for one in fleet.current_assignments(session, device_ids=hosts, model_id=model.id)
            if one.reason == "prefetch" and one.number == number
        }
        for host in hosts:
            row = SitePlanHost(plan_id=plan.id, device_id=host, model_id=model.id, number=number)
            turn = turns.get(host)
            fetch = None if turn is None else next((one for one in turn.fetches if one.module == name), None)
            if turn is None or fetch is None:
                row.fetched_by = asked.get(host)
            else:
                row.to_fetch, row.starts_s, row.takes_s = fetch.nbytes, turn.starts_s, turn.ends_s - turn.starts_s
                row.due_at = at + timedelta(seconds=max(0.0, turn.starts_s - poll_s))
            session.add(row)
    session.flush()


def begin(session: Session, plan: SitePlanRow, at: datetime) -> str | None:
    """Have those fetch whose turn has come; the caller holds the moves lock and the plan's row.

    Returns:
        What forbids it, and ends the plan; None: nothing does.
    """
    turns = _turns(session, plan)
    for turn in turns:
        before = [one for one in turns if one.ends_s <= turn.starts_s + _SLIGHT_S and one is not turn]
        if turn.begun or not (turn.due_at <= at or all(one.done for one in before)):
            continue
        for row in turn.rows:
            model = session.get_one(Model, row.model_id)
            if (why := _forbidden(session, model, row.number)) is not None:
                return why
            counters = fleet.assign(session, row.model_id, {row.device_id: row.number}, "prefetch")
            rollouts.forget_prefetches(session, row.model_id, counters, but=None)
            if row.device_id in counters:  # not of one that was revoked, which ends the plan
                row.fetched_by, row.begun_at = counters[row.device_id], at
        session.flush()
    return None


def fetched(session: Session, plan: SitePlanRow, device_id: UUID, counter: int, at: datetime) -> None:
    """Note that a device has what an assignment had it fetch for a plan."""
    for row in records.hosts_of(session, plan):
        if row.device_id == device_id and row.fetched_by == counter and row.fetched_at is None:
            row.fetched_at = at
    session.flush()


def progress(
    session: Session, plan: SitePlanRow, members: Sequence[SitePlanMember]
) -> dict[UUID, tuple[Literal["waits", "fetching", "done"], datetime | None]]:
    """Return how far each device is that lacked something when a plan was applied, and when one that waits begins."""
    found: dict[UUID, tuple[Literal["waits", "fetching", "done"], datetime | None]] = {}
    if not members:
        return found
    for turn in _turns(session, plan):
        if turn.done:
            found[turn.device_id] = ("done", None)
        else:
            found[turn.device_id] = ("fetching", None) if turn.begun else ("waits", turn.due_at)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    device_id: UUID
    starts_s: float
    ends_s: float
    due_at: datetime
    rows: Sequence[SitePlanHost]
    done: bool

    @property
    def begun(self) -> bool:
        return all(row.begun_at is not None for row in self.rows)


def _turns(session: Session, plan: SitePlanRow) -> list[_Turn]:
    """Return the turns of a plan that was applied, in their order."""
    said = {one.device_id for one in records.members_of(session, plan) if one.state != MemberStatus.ASKED}
    rows = sorted(records.hosts_of(session, plan), key=lambda row: (row.device_id, row.model_id))
    turns = []
    for device_id, mine in groupby((row for row in rows if row.due_at is not None), key=lambda row: row.device_id):
        fetching = list(mine)
        first = fetching[0]
        assert first.starts_s is not None and first.takes_s is not None and first.due_at is not None  # noqa: S101, PT018 - CHECK turns_are_planned
        turns.append(
            _Turn(
                device_id=device_id,
                starts_s=first.starts_s,
                ends_s=first.starts_s + first.takes_s,
                due_at=first.due_at,
                rows=fetching,
                done=device_id in said or all(row.fetched_at is not None for row in fetching),
            )
        )
    return sorted(turns, key=lambda turn: (turn.starts_s, turn.device_id))


def _forbidden(session: Session, model: Model, number: int) -> str | None:
    """Return why a release is not fetched for a plan any more."""
    if (rollout := rollouts.live_rollout(session, model.id)) is not None:
        return f"rollout {rollout.id} of {model.name} began before all had fetched {model.name}@{number}"
    if number in quarantine.quarantined(session, model.id):
        return f"{model.name}@{number} is in quarantine since"
    return None


def _bytes(session: Session, model: Model, number: int, device: UUID) -> int:
    slots = fleet.slots(session, device_ids=[device], model_id=model.id).get((device, model.id))
    held = [] if slots is None else [one for one in (slots.active, slots.previous) if one is not None]
    return sum(step.bytes for step in paths.cheapest_from(registry.all_updates(session, model), held, number))
