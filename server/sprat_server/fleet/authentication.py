"""Devices prove that they hold their key and get a bearer token that ends soon. Callers own the transaction.

The key signs an assertion (`sprat_shared.protocol.token`); a token is an opaque text, kept as its hash, one for each
device: a newer one ends the one before. That a jti counts once must hold across replicas, so it is a row.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sprat_server.db.projects import ACROSS, enter
from sprat_server.fleet.models import Device, SpentAssertion
from sprat_server.fleet.service import lock_device
from sprat_server.fleet.tokens import DEVICE_PREFIX, hash_token, make_token
from sprat_shared.errors import Unauthenticated
from sprat_shared.protocol.token import ALGORITHM, AUDIENCE, MAX_ASSERTION_S, MAX_JTI_CHARACTERS, SERVER_TIME

_LEEWAY_S: Final = 30
_TOKEN_BYTES: Final = 16  # 128 random bits for a token of an hour: each poll carries it over a thin link
_REQUIRED: Final = ("iss", "sub", "aud", "iat", "exp", "jti")


class Recognised(Unauthenticated):
    """Who calls showed what only it can know, and is refused for another reason: no guess, so lockout counts it not."""


class ClockApart(Recognised):
    """The assertion is of another time: the device's clock is wrong, or it waited too long; `server_time` says which.

    Attributes:
        members: of the problem+json: the server's time, seconds since 1970.
    """

    code = "device.clock"

    def __init__(self, message: str, now: datetime) -> None:
        super().__init__(message)
        self.members = {SERVER_TIME: now.timestamp()}


def claimed_device(assertion: str) -> str:
    """Return which device an assertion says it is of, unproven; empty where it says nothing: a key to count by."""
    try:
        issuer = jwt.decode(assertion, options={"verify_signature": False}).get("iss")
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        return ""
    return str(issuer)[:64]


def issue_token(session: Session, assertion: str, *, lives_s: float) -> tuple[Device, str]:
    """Exchange an assertion for a bearer token; return the device and the token's text, which is nowhere else.

    Args:
        session: the caller's transaction.
        assertion: the JWT.
        lives_s: seconds until the token ends.

    Raises:
        Unauthenticated: the assertion is not one of a device here, its device was revoked, or it was used before.
        ClockApart: it is of another time.
    """
    claimed = _device_of(session, assertion)
    claims = _verified(claimed, assertion)
    enter(session, claimed.project_id)
    device = lock_device(session, UUID(claims["sub"]))  # after the proof: nobody else makes rollouts wait
    if device.revoked_at is not None:
        raise revoked(device.id)
    now = datetime.now(UTC)
    _spend(session, device.id, claims, now)
    text, token_hash = make_token(DEVICE_PREFIX, random_bytes=_TOKEN_BYTES)
    device.token_hash, device.token_expires_at = token_hash, now + timedelta(seconds=lives_s)
    session.flush()
    return device, text


def authenticate_device(session: Session, shown: str) -> Device:
    """Return the device that shows this bearer token; the session acts in its project from then on.

    Raises:
        Unauthenticated: the token is unknown or expired, or its device was revoked.
    """
    if not shown.startswith(DEVICE_PREFIX):
        raise Unauthenticated(f"this is not a device's token, which reads {DEVICE_PREFIX}<secret>")
    device = session.scalar(select(Device).where(Device.token_hash == hash_token(shown)), execution_options=ACROSS)
    if device is None:
        raise Unauthenticated("the device token is not valid here, or a newer one took its place; ask for a token")
    if device.revoked_at is not None:
        raise revoked(device.id)
    if device.token_expires_at is None or device.token_expires_at <= datetime.now(UTC):
        raise Recognised("the device token has expired; ask for another", code="device.token-expired")
    enter(session, device.project_id)
    return device


def revoked(device_id: UUID) -> Recognised:
    """Return the error for a device that was revoked, and that proved to be it."""
    return Recognised(f"device {device_id} was revoked; ask an operator to let it join again", code="device.revoked")


def forget_spent_assertions(session: Session) -> None:
    """Drop the rows of assertions that are too old to be shown again."""
    session.execute(delete(SpentAssertion).where(SpentAssertion.expires_at < datetime.now(UTC)))


def _device_of(session: Session, assertion: str) -> Device:
    try:
        device = session.scalar(
            select(Device).where(Device.id == UUID(claimed_device(assertion))), execution_options=ACROSS
        )
    except ValueError:
        device = None
    if device is None:
        raise _refused()
    return device


def _verified(device: Device, assertion: str) -> Mapping[str, Any]:
    """Return the claims of an assertion that the device's key signed, for us, just now."""
    try:
        claims: Mapping[str, Any] = jwt.decode(
            assertion,
            Ed25519PublicKey.from_public_bytes(device.public_key),
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=str(device.id),
            subject=str(device.id),
            options={"require": list(_REQUIRED), "verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        raise _refused() from None
    issued, expires, jti = claims["iat"], claims["exp"], claims["jti"]
    if not isinstance(jti, str) or not 0 < len(jti) <= MAX_JTI_CHARACTERS or not jti.isprintable():
        raise _refused()
    if not all(isinstance(at, int) and not isinstance(at, bool) for at in (issued, expires)):
        raise _refused()
    if not 0 < expires - issued <= MAX_ASSERTION_S:
        raise Unauthenticated(f"an assertion may live {MAX_ASSERTION_S} s at most", code="device.assertion")
    now = datetime.now(UTC)
    if not issued - _LEEWAY_S <= now.timestamp() < expires + _LEEWAY_S:
        raise ClockApart(
            f"the assertion is of another time than now, {now:%Y-%m-%d %H:%M:%S} UTC; date the next one by that", now
        )
    return claims


def _spend(session: Session, device_id: UUID, claims: Mapping[str, Any], now: datetime) -> None:
    session.execute(
        delete(SpentAssertion).where(SpentAssertion.device_id == device_id, SpentAssertion.expires_at < now)
    )
    expires_at = datetime.fromtimestamp(claims["exp"], UTC) + timedelta(seconds=_LEEWAY_S)
    row = insert(SpentAssertion).values(device_id=device_id, jti=claims["jti"], expires_at=expires_at)
    if session.execute(row.on_conflict_do_nothing().returning(SpentAssertion.jti)).first() is None:
        raise Unauthenticated(
            "this assertion was used before; make another with a jti of its own", code="device.assertion-replayed"
        )


def _refused() -> Unauthenticated:
    """Return the one error for whatever is wrong with an assertion: it helps nobody to learn which."""
    return Unauthenticated(
        "the assertion does not prove that a device of this server made it; enrol the device again",
        code="device.assertion",
    )
