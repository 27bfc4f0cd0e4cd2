"""Operator tokens: made once in clear, kept as a hash, with one of four ordered scopes.

A token reads `sprat_<id, 32 hex>_<secret, 43 characters>`: the id finds the row, and the SHA-256 of the secret (256
random bits, so a plain hash cannot be searched) is compared in constant time.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final
from uuid import UUID

from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sprat_server.access.models import OperatorToken
from sprat_server.db.projects import ACROSS, project_of
from sprat_server.observe.actors import Actor
from sprat_shared.errors import AccessDenied, Conflict, InvalidInput, NotFound, Unauthenticated
from sprat_shared.ids import new_id

_LAST_USED_STEP: Final = timedelta(minutes=1)
_FIRST_ADMIN_LOCK: Final = 0x5350_5241_5401  # an advisory lock: one process makes the first token


class Scope(IntEnum):
    """What a token allows; each includes those before it."""

    VIEWER = 1
    """Read everything but secrets."""
    OPERATOR = 2
    """Run the fleet: enrol devices, upload, retrain, start and stop rollouts."""
    RELEASER = 3
    """Make releases and offer them to devices."""
    ADMIN = 4
    """Tokens."""

    @classmethod
    def of(cls, name: str) -> "Scope":
        """Return the scope of this name.

        Raises:
            InvalidInput: there is none.
        """
        try:
            return cls[name.upper()]
        except KeyError:
            raise InvalidInput(f"{name!r} is not a scope; use viewer, operator, releaser or admin") from None

    @property
    def label(self) -> str:
        """Its name as it is written in requests and tables."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Identity(Actor):
    """An operator who showed a valid token: one of ours, or of the OpenID Connect issuer (no `token_id`)."""

    scope: Scope = Scope.VIEWER
    token_id: UUID | None = None
    project_id: UUID | None = None  # the one in which it acts; None: whole_server
    whole_server: bool = False  # it acts in any project, and on the server itself

    def require(self, scope: Scope) -> None:
        """Return if this token allows what needs `scope`.

        Raises:
            AccessDenied: it does not.
        """
        if self.scope < scope:
            raise AccessDenied(
                f"token {self.name!r} has scope {self.scope.label}; this needs {scope.label}", code="access.scope"
            )

    def require_whole_server(self) -> None:
        """Return if this token is of the whole server.

        Raises:
            AccessDenied: it is of one project.
        """
        if not self.whole_server:
            raise AccessDenied(
                f"token {self.name!r} is of one project; this needs one of the whole server",
                code="access.whole-server",
            )


class TokenUnknown(NotFound):
    """There is no token of this id."""

    code = "token.unknown"


def create(
    session: Session,
    *,
    name: str,
    scope: Scope,
    expires_s: float | None,
    by: Identity | None,
    whole_server: bool = False,
) -> tuple[OperatorToken, str]:
    """Make a token and return its row and its text, which is nowhere else.

    Args:
        session: the caller's transaction.
        name: what people call it; unique among the live tokens of its project, or of the whole server.
        scope: what it allows; not more than its maker's.
        expires_s: seconds it lives; None: for ever.
        by: its maker; None: the server.
        whole_server: it is of the whole server; else of the session's project.

    Raises:
        AccessDenied: the scope is above the maker's, or the maker's token is of one project and this one is not.
        Conflict: a live token has this name.
    """
    if by is not None:
        by.require(scope)
        if whole_server:
            by.require_whole_server()
    now = datetime.now(UTC)
    secret = secrets.token_urlsafe(32)
    token = OperatorToken(
        id=new_id(),
        project_id=None if whole_server else project_of(session),
        name=name,
        scope=scope.label,
        secret_sha256=hashlib.sha256(secret.encode()).digest(),
        created_by=by.token_id if by else None,
        created_at=now,
        expires_at=None if expires_s is None else now + timedelta(seconds=expires_s),
    )
    try:
        with session.begin_nested():
            session.add(token)
    except IntegrityError as clash:
        if "uq_operator_token_live_name" not in str(clash.orig):
            raise
        raise Conflict(
            f"a token named {name!r} exists; revoke it first, or choose another name", code="token.exists"
        ) from clash
    return token, f"sprat_{token.id.hex}_{secret}"


def create_first_admin(session: Session) -> tuple[OperatorToken, str] | None:
    """Make the first admin token, of the whole server, once in the life of a database; None when there were others."""
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _FIRST_ADMIN_LOCK})
    if session.scalar(select(OperatorToken.id).limit(1), execution_options=ACROSS) is not None:
        return None
    return create(session, name="first-admin", scope=Scope.ADMIN, expires_s=None, by=None, whole_server=True)


def authenticate(session: Session, shown: str) -> Identity:
    """Return who shows this token.

    Raises:
        Unauthenticated: it is unknown, wrong, expired or revoked. The message does not say which of the first two.
    """
    token_id, secret = _split(shown)
    token = session.get(OperatorToken, token_id, execution_options=ACROSS)
    kept = token.secret_sha256 if token else bytes(32)
    same = hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), kept)
    if token is None or not same:
        raise Unauthenticated("the token is not valid here; ask an admin for one")
    now = datetime.now(UTC)
    if token.revoked_at is not None:
        raise Unauthenticated(f"token {token.name!r} was revoked; ask an admin for another")
    if token.expires_at is not None and token.expires_at <= now:
        raise Unauthenticated(f"token {token.name!r} expired at {token.expires_at:%Y-%m-%d %H:%M} UTC; ask for another")
    if token.last_used_at is None or now - token.last_used_at >= _LAST_USED_STEP:
        free = select(OperatorToken.id).where(OperatorToken.id == token.id).with_for_update(skip_locked=True)
        session.execute(
            update(OperatorToken)
            .where(OperatorToken.id.in_(free))
            .values(last_used_at=now)
            .execution_options(synchronize_session=False),
            execution_options=ACROSS,
        )
    return Identity(
        kind="operator",
        id=str(token.id),
        name=token.name,
        scope=Scope.of(token.scope),
        token_id=token.id,
        project_id=token.project_id,
        whole_server=token.project_id is None,
    )


def claimed_id(shown: str) -> str:
    """Return the id that a token names, unproven; empty where it names none: a key to count failures by."""
    try:
        return str(_split(shown)[0])
    except Unauthenticated:
        return ""


def revoke(session: Session, token_id: UUID, *, by: Identity) -> OperatorToken:
    """Revoke a token at once; revoking it again changes nothing.

    Args:
        session: the caller's transaction.
        token_id: of a token of the session's project; of one of the whole server if the caller's is.
        by: who asks.

    Raises:
        TokenUnknown: there is none of this id.
        Conflict: it is the last admin token of the server that is valid without end; nobody could make another.
    """
    of_server = OperatorToken.project_id.is_(None)
    live_admins = session.scalars(
        select(OperatorToken.id)
        .where(
            of_server,
            OperatorToken.scope == "admin",
            OperatorToken.revoked_at.is_(None),
            OperatorToken.expires_at.is_(None),
        )
        .with_for_update(),
        execution_options=ACROSS,
    ).all()
    found = select(OperatorToken).where(OperatorToken.id == token_id).with_for_update()
    token = session.scalar(found)
    if token is None and by.whole_server:
        token = session.scalar(found.where(of_server), execution_options=ACROSS)
    if token is None:
        raise TokenUnknown(f"there is no token {token_id}")
    if list(live_admins) == [token_id]:
        raise Conflict(
            f"token {token.name!r} is the last admin token; make another before you revoke it", code="token.last-admin"
        )
    if token.revoked_at is None:
        token.revoked_at = datetime.now(UTC)
        session.flush()
    return token


def _split(shown: str) -> tuple[UUID, str]:
    parts = shown.split("_", 2)
    if len(parts) == 3 and parts[0] == "sprat":  # noqa: PLR2004 - prefix, id, secret
        try:
            return UUID(hex=parts[1]), parts[2]
        except ValueError:
            pass
    raise Unauthenticated("this is not a token of sprat; it reads sprat_<id>_<secret>")
