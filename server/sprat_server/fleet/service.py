"""Enrol devices, assign releases to them. Callers own the transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import and_, bindparam, exists, func, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sprat_server.fleet.models import Assignment, Device, DeviceReport, DeviceSlots, EnrolmentToken
from sprat_server.fleet.tokens import DEVICE_PREFIX, ENROLMENT_PREFIX, hash_token, make_token
from sprat_server.observe.actors import Actor
from sprat_shared.errors import Conflict, NotFound, Unauthenticated
from sprat_shared.protocol.enrol import EnrolRequest

Reason = Literal["rollout", "return", "enrolment"]


def create_enrolment_token(
    session: Session, *, uses: int, expires_s: float, group: str, by: Actor
) -> tuple[EnrolmentToken, str]:
    """Make an enrolment token; return its row and its text, which is nowhere else.

    Args:
        session: the caller's transaction.
        uses: how many devices may join with it.
        expires_s: seconds it lives.
        group: the group of devices that join with it.
        by: its maker.
    """
    text, token_hash = make_token(ENROLMENT_PREFIX)
    now = datetime.now(UTC)
    token = EnrolmentToken(
        token_hash=token_hash,
        device_group=group,
        uses=uses,
        created_by=str(by),
        created_at=now,
        expires_at=now + timedelta(seconds=expires_s),
    )
    session.add(token)
    session.flush()
    return token, text


def enrol(session: Session, request: EnrolRequest, shown: str) -> tuple[Device, str]:
    """Let a device join; return its row and its bearer token.

    A device whose first answer was lost may ask again with the same key and name until it was seen for the first
    time: it gets a new bearer token and does not count twice.

    Raises:
        Unauthenticated: the enrolment token is unknown, expired or used up.
        Conflict: another device has this name or this key.
        InvalidInput: the public key is no point of the curve.
    """
    token = session.scalar(
        select(EnrolmentToken).where(EnrolmentToken.token_hash == hash_token(shown)).with_for_update()
    )
    if token is None:
        raise Unauthenticated("the enrolment token is not valid here; ask an operator for one", code="enrolment.token")
    if token.expires_at <= datetime.now(UTC):
        raise Unauthenticated(
            f"the enrolment token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC; ask an operator for another",
            code="enrolment.token",
        )
    Ed25519PublicKey.from_public_bytes(request.public_key)
    secret, token_hash = make_token(DEVICE_PREFIX)
    known = session.scalar(select(Device).where(Device.public_key == request.public_key).with_for_update())
    if known is not None:
        if (
            known.enrolment_token_id != token.id
            or known.name != request.name
            or known.revoked_at is not None
            or known.last_seen_at is not None
            or known.report_sequence > 0
        ):
            raise Conflict(
                f"this key belongs to device {known.id} already; let the agent make a new key in a fresh folder",
                code="enrolment.key-known",
            )
        known.token_hash, known.agent, known.attributes = token_hash, request.agent, request.attributes
        known.profile = request.profile
        session.flush()
        return known, secret
    if token.used >= token.uses:
        raise Unauthenticated(
            f"the enrolment token was used {token.uses} times, as often as allowed; ask an operator for another",
            code="enrolment.token",
        )
    token.used += 1
    device = Device(
        name=request.name,
        device_group=token.device_group,
        public_key=request.public_key,
        token_hash=token_hash,
        agent=request.agent,
        profile=request.profile,
        attributes=request.attributes,
        enrolment_token_id=token.id,
    )
    try:
        with session.begin_nested():
            session.add(device)
    except IntegrityError as clash:
        raise Conflict(
            f"a device called {request.name!r} exists; choose another name, or revoke that device first",
            code="enrolment.name-taken",
        ) from clash
    session.refresh(device)
    return device, secret


def authenticate_device(session: Session, shown: str) -> Device:
    """Return the device that shows this bearer token.

    Raises:
        Unauthenticated: the token is unknown or its device was revoked.
    """
    device = session.scalar(select(Device).where(Device.token_hash == hash_token(shown)))
    if device is None:
        raise Unauthenticated("the device token is not valid here; enrol the device again")
    if device.revoked_at is not None:
        raise revoked(device.id)
    return device


def revoked(device_id: UUID) -> Unauthenticated:
    """Return the error for a device that was revoked."""
    return Unauthenticated(
        f"device {device_id} was revoked; ask an operator to let it join again", code="device.revoked"
    )


def get_device(session: Session, device_id: UUID) -> Device:
    """Return the device.

    Raises:
        NotFound: there is none of this id.
    """
    device = session.get(Device, device_id)
    if device is None:
        raise NotFound(f"there is no device {device_id}; `sprat device list` shows them", code="device.unknown")
    return device


def lock_device(session: Session, device_id: UUID) -> Device:
    """Return the device with its row locked until the transaction ends; NotFound as `get_device`."""
    get_device(session, device_id)
    locked = select(Device).where(Device.id == device_id).with_for_update()
    return session.scalars(locked.execution_options(populate_existing=True)).one()


def live_devices(session: Session) -> list[UUID]:
    """Return the ids of all devices that are not revoked."""
    return list(session.scalars(select(Device.id).where(Device.revoked_at.is_(None)).order_by(Device.id)))


def revoke(session: Session, device_id: UUID) -> Device:
    """Refuse the device from now on; revoking it again changes nothing.

    Raises:
        NotFound: there is none of this id.
    """
    device = lock_device(session, device_id)
    if device.revoked_at is None:
        device.revoked_at = datetime.now(UTC)
        session.flush()
    return device


def assign(session: Session, model_id: UUID, wishes: Mapping[UUID, int | None], reason: Reason) -> dict[UUID, int]:
    """Assign a release (None: withdraw the wish) to each device; return the counters.

    Each device's counter rises by one. Rows are locked in the order of ids, so that two callers cannot block each
    other for ever. Revoked devices are left out.
    """
    live = select(Device.id).where(Device.id.in_(wishes), Device.revoked_at.is_(None)).order_by(Device.id)
    locked = session.scalars(live.with_for_update()).all()
    if not locked:
        return {}
    _forget_previous_of_the_unanswered(session, model_id, locked)
    counters = dict(
        session.execute(
            update(Device)
            .where(Device.id.in_(locked))
            .values(assignment_counter=Device.assignment_counter + 1)
            .returning(Device.id, Device.assignment_counter)
            .execution_options(synchronize_session=False)
        ).all()
    )
    session.execute(
        insert(Assignment),
        [
            {"device_id": device, "counter": counter, "model_id": model_id, "number": wishes[device], "reason": reason}
            for device, counter in counters.items()
        ],
    )
    for device in session.identity_map.values():
        if isinstance(device, Device) and device.id in counters:
            session.refresh(device)
    return counters


def _forget_previous_of_the_unanswered(session: Session, model_id: UUID, device_ids: Sequence[UUID]) -> None:
    """Believe no more that devices which have not answered hold their previous release: a trial gives it up.

    A newer assignment ends a trial without a report. What a device starts an update from must be there; a wrong
    belief would cost it the full update.
    """
    newest = (
        select(Assignment.device_id, func.max(Assignment.counter))
        .where(Assignment.device_id.in_(device_ids), Assignment.model_id == model_id)
        .group_by(Assignment.device_id)
    )
    session.execute(
        update(DeviceSlots)
        .where(
            DeviceSlots.model_id == model_id,
            DeviceSlots.device_id == Assignment.device_id,
            tuple_(Assignment.device_id, Assignment.counter).in_(newest),
            Assignment.number.is_distinct_from(DeviceSlots.active),
            ~exists().where(
                DeviceReport.device_id == Assignment.device_id, DeviceReport.assignment == Assignment.counter
            ),
        )
        .values(previous=None)
        .execution_options(synchronize_session=False)
    )


def current_assignments(
    session: Session, *, device_ids: Iterable[UUID] | None = None, model_id: UUID | None = None
) -> list[Assignment]:
    """Return the newest assignment of each device and model, of some devices or one model."""
    newest = select(Assignment.device_id, func.max(Assignment.counter)).group_by(
        Assignment.device_id, Assignment.model_id
    )
    if device_ids is not None:
        newest = newest.where(Assignment.device_id.in_(list(device_ids)))
    if model_id is not None:
        newest = newest.where(Assignment.model_id == model_id)
    query = select(Assignment).where(tuple_(Assignment.device_id, Assignment.counter).in_(newest))
    return list(session.scalars(query))


def slots(
    session: Session, *, device_ids: Iterable[UUID] | None = None, model_id: UUID | None = None
) -> dict[tuple[UUID, UUID], DeviceSlots]:
    """Return what devices hold, by (device, model)."""
    query = select(DeviceSlots)
    if device_ids is not None:
        query = query.where(DeviceSlots.device_id.in_(list(device_ids)))
    if model_id is not None:
        query = query.where(DeviceSlots.model_id == model_id)
    return {(row.device_id, row.model_id): row for row in session.scalars(query)}


@dataclass(frozen=True, slots=True)
class Holders:
    """Devices that hold the same of a model and should run the same.

    Attributes:
        active: number of the release that serves.
        previous: of the one they can go back to.
        assigned: of the one that they should run.
        devices: how many they are.
    """

    active: int
    previous: int | None
    assigned: int | None
    devices: int


def holders(session: Session, model_id: UUID) -> list[Holders]:
    """Return what the devices that are not revoked hold of a model, as far as their reports say."""
    newest = (
        select(Assignment.device_id, func.max(Assignment.counter).label("counter"))
        .where(Assignment.model_id == model_id)
        .group_by(Assignment.device_id)
        .subquery()
    )
    held = (DeviceSlots.active, DeviceSlots.previous, Assignment.number)
    rows = session.execute(
        select(*held, func.count())
        .join(Device, Device.id == DeviceSlots.device_id)
        .outerjoin(newest, newest.c.device_id == DeviceSlots.device_id)
        .outerjoin(
            Assignment,
            and_(Assignment.device_id == newest.c.device_id, Assignment.counter == newest.c.counter),
        )
        .where(DeviceSlots.model_id == model_id, DeviceSlots.active.is_not(None), Device.revoked_at.is_(None))
        .group_by(*held)
    )
    return [
        Holders(active, previous, assigned, devices)
        for active, previous, assigned, devices in rows
        if active is not None
    ]


def mark_seen(session: Session, seen: Mapping[UUID, datetime]) -> None:
    """Write when devices were last seen; rows that another transaction holds are skipped until the next batch."""
    free = session.scalars(
        select(Device.id).where(Device.id.in_(seen)).order_by(Device.id).with_for_update(skip_locked=True)
    ).all()
    if free:
        session.connection().execute(
            update(Device).where(Device.id == bindparam("seen_id")).values(last_seen_at=bindparam("seen_at")),
            [{"seen_id": device, "seen_at": seen[device]} for device in free],
        )
