"""Store what gates hear and where they are. Callers own the transaction and hold the rollout's lock."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.rollouts.evidence import Acknowledged, Event, Evidence, Exposed, Left, Reported, Segment, event_of
from sprat_server.rollouts.gate_state import ALL, GateState, Scope
from sprat_server.rollouts.gates import Gate
from sprat_server.rollouts.models import Rollout, RolloutDevice, RolloutEvent, RolloutGate
from sprat_server.rollouts.waves import DeviceState
from sprat_shared.errors import Conflict

_WHOLE: Final = ""  # the scope of what belongs to none


def begin(session: Session, rollout: Rollout, gate: Gate, cohort: Mapping[Segment, int]) -> None:
    """Store the gate of a rollout that starts.

    Args:
        session: the caller's transaction.
        rollout: it.
        gate: of its policy.
        cohort: segment to devices.
    """
    state = gate.start(cohort)
    rows = {_WHOLE: {**state.as_json(), "cohort": dict(cohort)}}
    rows |= {name: scope.as_json() for name, scope in state.scopes.items()}
    session.add_all(RolloutGate(rollout_id=rollout.id, scope=name, state=row) for name, row in rows.items())
    session.flush()


def there(session: Session, rollout: Rollout) -> bool:
    """Say whether the rollout has a gate: it was started by a server that keeps evidence."""
    return session.get(RolloutGate, (rollout.id, _WHOLE)) is not None


def load(session: Session, rollout: Rollout) -> GateState:
    """Return where the gate is.

    Raises:
        Conflict: there is none.
    """
    rows = _rows(session, rollout)
    whole = rows.pop(_WHOLE).state
    return GateState.of(whole, {name: row.state for name, row in rows.items()})


def hear(session: Session, rollout: Rollout, gate: Gate, events: Sequence[Event]) -> GateState:
    """Append events and store where the gate is after them.

    Each device is exposed once and ends once (a constraint of the database); a report of a device that was never
    exposed, or ended, is the caller's to leave out.
    """
    rows = _rows(session, rollout)
    state = GateState.of(rows[_WHOLE].state, {name: row.state for name, row in rows.items() if name != _WHOLE})
    position = last(session, rollout)
    words = [UUID(one.device) for one in events if isinstance(one, Reported | Left)]
    segments = segments_of(session, rollout, words)
    before, e_value = state, gate.e_value(state)
    for event in events:
        position += 1
        state = gate.hear(state, event, segments)
        kind = "exposed" if isinstance(event, Exposed) else "ended"
        kind = "acknowledged" if isinstance(event, Acknowledged) else kind
        e_value = e_value if kind == "exposed" else gate.e_value(state)  # a wave of thousands changes no evidence
        device = None if isinstance(event, Acknowledged) else UUID(event.device)
        row = RolloutEvent(rollout_id=rollout.id, position=position, device_id=device, kind=kind)
        row.event, row.e_value = event.as_json(), e_value
        session.add(row)
    rows[_WHOLE].state = {**state.as_json(), "cohort": rows[_WHOLE].state["cohort"]}
    for name, scope in state.scopes.items():
        if scope is not before.scopes[name]:
            rows[name].state = scope.as_json()
    session.flush()
    return state


def last(session: Session, rollout: Rollout) -> int:
    """Return how many events were heard."""
    newest = select(func.max(RolloutEvent.position)).where(RolloutEvent.rollout_id == rollout.id)
    return session.scalar(newest) or 0


def segments_of(session: Session, rollout: Rollout, devices: Sequence[UUID]) -> dict[str, tuple[Segment, ...]]:
    """Return the segments of exposed devices, as they were when the release was offered to them."""
    exposures = select(RolloutEvent).where(
        RolloutEvent.rollout_id == rollout.id, RolloutEvent.kind == "exposed", among(RolloutEvent.device_id, devices)
    )
    events = [event_of(row.event) for row in session.scalars(exposures)]
    return {event.device: event.segments for event in events if isinstance(event, Exposed)}


def evidence(session: Session, rollout: Rollout) -> Evidence:
    """Return all that the gate heard, in commit order, and how far the next wave would reach.

    Raises:
        Conflict: no evidence was kept.
    """
    cohort = _rows(session, rollout)[_WHOLE].state["cohort"]
    heard = session.scalars(
        select(RolloutEvent.event).where(RolloutEvent.rollout_id == rollout.id).order_by(RolloutEvent.position)
    )
    events = tuple(event_of(one) for one in heard)
    return Evidence(cohort, events, next_reach(session, rollout))


def next_reach(session: Session, rollout: Rollout) -> int | None:
    """Return how many devices will have the release with the first wave that has devices which wait."""
    more = waiting(session, rollout)
    if not more:
        return None
    scope = session.get_one(RolloutGate, (rollout.id, ALL))
    return more + Scope.of(scope.state).exposed


def waiting(session: Session, rollout: Rollout) -> int:
    """Return how many devices of the first wave that has devices which wait do."""
    waves = select(RolloutDevice.ordinal, func.count()).where(
        RolloutDevice.rollout_id == rollout.id,
        RolloutDevice.state == DeviceState.WAITING,
        RolloutDevice.ordinal.is_not(None),
    )
    first = session.execute(waves.group_by(RolloutDevice.ordinal).order_by(RolloutDevice.ordinal).limit(1)).first()
    return 0 if first is None else int(first[1])


def devices_heard(session: Session, rollout: Rollout, devices: Collection[UUID], kind: str) -> set[UUID]:
    """Return those of the devices of which an event of this kind was heard: `exposed` or `ended`."""
    rows = select(RolloutEvent.device_id).where(
        RolloutEvent.rollout_id == rollout.id, RolloutEvent.kind == kind, among(RolloutEvent.device_id, devices)
    )
    return {device for device in session.scalars(rows) if device is not None}


def _rows(session: Session, rollout: Rollout) -> dict[str, RolloutGate]:
    rows = {row.scope: row for row in session.scalars(select(RolloutGate).where(RolloutGate.rollout_id == rollout.id))}
    if _WHOLE not in rows:
        raise Conflict(
            f"rollout {rollout.id} has no evidence: it has not started, or was started by a server that kept none",
            code="rollout.no-evidence",
        )
    return rows
