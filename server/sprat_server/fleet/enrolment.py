"""Devices join: with a token, in the place of a device whose folder was lost, or by waiting for an operator's word.

Each request is signed with the key that it names, and its answer holds no secret: a device whose answer was lost asks
again and is answered again. Callers own the transaction.
"""

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sprat_server.db.projects import ACROSS, enter
from sprat_server.fleet.authentication import revoked
from sprat_server.fleet.models import Device, EnrolmentRequest, EnrolmentToken, Replacement, RetiredKey
from sprat_server.fleet.service import forget_slots
from sprat_server.fleet.tokens import ENROLMENT_PREFIX, hash_token, make_token
from sprat_server.observe.actors import Actor
from sprat_shared.errors import AccessDenied, Conflict, NotFound, TryLater, Unauthenticated
from sprat_shared.protocol.enrol import EnrolRequest

_QUEUE_LOCK: Final = 0x5350_5241_5402  # an advisory lock: one request is counted and added at a time


def create_enrolment_token(
    session: Session, *, uses: int, expires_s: float, group: str, by: Actor, replaces: Device | None = None
) -> tuple[EnrolmentToken, str]:
    """Make an enrolment token; return its row and its text, which is nowhere else.

    Args:
        session: the caller's transaction.
        uses: how many devices may join with it.
        expires_s: seconds it lives.
        group: the group of devices that join with it.
        by: its maker.
        replaces: whoever joins with it takes this device's place: its id, history and group, with a new key.

    Raises:
        Conflict: the device to be replaced was revoked.
    """
    if replaces is not None and replaces.revoked_at is not None:
        raise Conflict(
            f"device {replaces.name!r} was revoked, and for good; let the device join with a new enrolment token",
            code="device.is-revoked",
        )
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
    if replaces is not None:
        session.add(Replacement(enrolment_token_id=token.id, device_id=replaces.id))
        session.flush()
    return token, text


def check_proof(request: EnrolRequest, body: bytes, signature: bytes) -> None:
    """Return if the key that a request names signed it.

    Raises:
        AccessDenied: it did not, or it is no key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(request.public_key).verify(signature, body)
    except (InvalidSignature, ValueError):
        raise AccessDenied(
            "the enrolment request is not signed by the key that it names; sign the body as it is sent",
            code="enrolment.bad-signature",
        ) from None


def known_device(session: Session, request: EnrolRequest) -> Device | None:
    """Return the device that has this key and name already, its row locked; None where the key is new.

    Raises:
        Unauthenticated: that device was revoked.
        Conflict: the key belongs to a device of another name, or was a device's before it was replaced.
    """
    retired = select(RetiredKey.device_id).where(RetiredKey.public_key == request.public_key)
    if session.scalar(retired) is not None:
        raise Conflict(
            "another took the place of the device with this key; let the agent make a new key in a fresh folder",
            code="enrolment.key-retired",
        )
    device = session.scalar(select(Device).where(Device.public_key == request.public_key).with_for_update())
    if device is None:
        return None
    if device.revoked_at is not None:
        raise revoked(device.id)
    if device.name != request.name:
        raise Conflict(
            f"this key belongs to device {device.name!r} already; enrol with that name, or let the agent make a new "
            "key in a fresh folder",
            code="enrolment.key-known",
        )
    device.agent, device.profile, device.attributes = request.agent, request.profile, request.attributes
    session.flush()
    return device


def join_by_token(session: Session, request: EnrolRequest, shown: str) -> Device:
    """Let a device join the token's project; one that is there already with this key and name does not count again.

    The session acts in that project from then on.

    Raises:
        Unauthenticated: the enrolment token is unknown, expired or used up.
        Conflict: another device has this name or this key, or the token replaces a device of another name.
    """
    token = _live_token(session, shown)
    enter(session, token.project_id)
    if (device := known_device(session, request)) is not None:
        return device
    if token.used >= token.uses:
        raise Unauthenticated(
            f"the enrolment token was used {token.used} times, as often as allowed; ask an operator for another",
            code="enrolment.token",
        )
    token.used += 1
    session.execute(delete(EnrolmentRequest).where(EnrolmentRequest.public_key == request.public_key))
    bound = session.get(Replacement, token.id)
    if bound is not None:
        return _take_place(session, request, bound)
    return _add(session, request, group=token.device_group, token_id=token.id)


def retired_key(session: Session, device: Device) -> bytes | None:
    """Return the key that the device's own took the place of, if it did."""
    newest = select(RetiredKey.public_key).where(RetiredKey.device_id == device.id)
    key: bytes | None = session.scalar(newest.order_by(RetiredKey.retired_at.desc()).limit(1))
    return key


def queue_up(
    session: Session, request: EnrolRequest, *, address: str, lives_s: float, most: int, most_of_address: int
) -> tuple[EnrolmentRequest, bool]:
    """Let a device without a token wait for an operator's word; return its row, and whether that is new.

    Args:
        session: the caller's transaction.
        request: what it says of itself, its signature checked.
        address: from where it asks.
        lives_s: seconds after which nobody's word means no.
        most: devices that may wait at once.
        most_of_address: of one address.

    Raises:
        AccessDenied: an operator rejected it.
        TryLater: the queue is full.
    """
    session.execute(select(func.pg_advisory_xact_lock(_QUEUE_LOCK)))
    forget_expired_requests(session)
    row = session.scalar(select(EnrolmentRequest).where(EnrolmentRequest.public_key == request.public_key))
    if row is not None:
        if row.rejected_at is not None:
            raise AccessDenied("an operator rejected this device; ask one for a token", code="enrolment.rejected")
        return row, False
    waiting, of_address = session.execute(
        select(func.count(), func.count().filter(EnrolmentRequest.address == address)).select_from(EnrolmentRequest)
    ).one()
    if waiting >= most or of_address >= most_of_address:
        raise TryLater(
            "so many devices wait to be accepted that no more can; let an operator look at `sprat device pending`, "
            "or enrol with a token",
            code="enrolment.queue-full",
        )
    now = datetime.now(UTC)
    row = EnrolmentRequest(
        name=request.name,
        public_key=request.public_key,
        agent=request.agent,
        attributes=request.attributes,
        address=address,
        created_at=now,
        expires_at=now + timedelta(seconds=lives_s),
    )
    session.add(row)
    session.flush()
    return row, True


def accept(session: Session, request_id: UUID, *, group: str) -> Device:
    """Let a device that waits join; it learns of it when it asks again.

    Raises:
        NotFound: none of this id waits.
        Conflict: it was rejected, or another device has its name.
    """
    row = _waiting(session, request_id)
    request = EnrolRequest(name=row.name, public_key=row.public_key, agent=row.agent, attributes=dict(row.attributes))
    device = _add(session, request, group=group, token_id=None)
    session.delete(row)
    session.flush()
    return device


def reject(session: Session, request_id: UUID) -> EnrolmentRequest:
    """Refuse a device that waits, until its request would have expired.

    Raises:
        NotFound: none of this id waits.
        Conflict: it was rejected already.
    """
    row = _waiting(session, request_id)
    row.rejected_at = datetime.now(UTC)
    session.flush()
    return row


def forget_expired_requests(session: Session) -> None:
    """Drop the rows of devices that nobody answered, or that were rejected, once their time is over."""
    session.execute(delete(EnrolmentRequest).where(EnrolmentRequest.expires_at < datetime.now(UTC)))


def _live_token(session: Session, shown: str) -> EnrolmentToken:
    token = session.scalar(
        select(EnrolmentToken).where(EnrolmentToken.token_hash == hash_token(shown)).with_for_update(),
        execution_options=ACROSS,
    )
    if token is None:
        raise Unauthenticated("the enrolment token is not valid here; ask an operator for one", code="enrolment.token")
    if token.expires_at <= datetime.now(UTC):
        raise Unauthenticated(
            f"the enrolment token expired at {token.expires_at:%Y-%m-%d %H:%M} UTC; ask an operator for another",
            code="enrolment.token",
        )
    return token


def _waiting(session: Session, request_id: UUID) -> EnrolmentRequest:
    live = select(EnrolmentRequest).where(
        EnrolmentRequest.id == request_id, EnrolmentRequest.expires_at >= datetime.now(UTC)
    )
    row = session.scalar(live.with_for_update())
    if row is None:
        raise NotFound(f"no device waits as {request_id}; `sprat device pending` shows them", code="enrolment.unknown")
    if row.rejected_at is not None:
        raise Conflict(
            f"device {row.name!r} was rejected; it may ask again after {row.expires_at:%Y-%m-%d %H:%M} UTC, or join "
            "with a token",
            code="enrolment.was-rejected",
        )
    return row


def _take_place(session: Session, request: EnrolRequest, bound: Replacement) -> Device:
    """Give a device its new key. What it held is gone with its folder; its counters go on."""
    device = session.scalars(select(Device).where(Device.id == bound.device_id).with_for_update()).one()
    if device.revoked_at is not None:
        raise revoked(device.id)
    if device.name != request.name:
        raise Conflict(
            f"this token replaces device {device.name!r}; enrol with --name {device.name!r}",
            code="enrolment.other-name",
        )
    device.public_key, device.enrolment_token_id = request.public_key, bound.enrolment_token_id
    device.token_hash, device.token_expires_at = None, None
    device.agent, device.profile, device.attributes = request.agent, request.profile, request.attributes
    session.flush()
    forget_slots(session, device.id)
    return device


def _add(session: Session, request: EnrolRequest, *, group: str, token_id: UUID | None) -> Device:
    device = Device(
        name=request.name,
        device_group=group,
        public_key=request.public_key,
        agent=request.agent,
        profile=request.profile,
        attributes=request.attributes,
        enrolment_token_id=token_id,
    )
    try:
        with session.begin_nested():
            session.add(device)
    except IntegrityError as clash:
        if "uq_device_name" not in str(clash.orig):
            raise
        raise Conflict(
            f"a device called {request.name!r} exists; choose another name, revoke that device first, or take its "
            "place: `sprat device replace`",
            code="enrolment.name-taken",
        ) from clash
    session.refresh(device)
    return device
