"""Answers that are given again: what came of a call under an `Idempotency-Key`. Callers own the transaction.

An answer is kept in the transaction that it tells of, so there is one exactly where the call changed something; a call
that failed changed nothing, and may be tried again under its key. Some answers hold the text of a token: an answer is
kept encrypted under what only the caller's key gives, and of the key only a digest is kept.

Source: draft-ietf-httpapi-idempotency-key-header-07.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from sprat_server.access.models import KeptAnswer
from sprat_server.db.projects import project_of
from sprat_shared.errors import Conflict, InvalidInput

KEPT_FOR: Final = timedelta(hours=24)
SHORTEST: Final = 16
LONGEST: Final = 200
_NONCE_BYTES: Final = 12


class KeyReused(InvalidInput):
    """An `Idempotency-Key` was sent before, with another request."""

    code = "request.key-reused"


class StillRunning(Conflict):
    """The call that came first under this `Idempotency-Key` has not ended."""

    code = "request.still-running"
    retry_after_s = 1


@dataclass(frozen=True, slots=True)
class Call:
    """A call under a key.

    Attributes:
        key: as the caller sent it.
        actor_id: who calls; the keys of two callers are never the same.
        request: SHA-256 of all that is asked: method, URL and body.
    """

    key: str
    actor_id: str
    request: bytes

    def __post_init__(self) -> None:
        """Refuse keys that others could guess."""
        if not SHORTEST <= len(self.key) <= LONGEST or not all("!" <= letter <= "~" for letter in self.key):
            raise InvalidInput(
                f"an Idempotency-Key has {SHORTEST} to {LONGEST} visible ASCII characters that nobody guesses, such as "
                "a random UUID; this one has not",
                code="request.bad-key",
            )


def recall(session: Session, call: Call) -> bytes | None:
    """Return the answer that was given to a call before, or None: then it is this transaction's to carry out.

    Raises:
        KeyReused: the key came with another request.
        StillRunning: the call is being carried out.
    """
    digest = _digest(session, call)
    if not session.scalar(select(func.pg_try_advisory_xact_lock(int.from_bytes(digest[:8], signed=True)))):
        raise StillRunning("the call that came first under this Idempotency-Key is still carried out; ask again")
    kept = session.scalar(select(KeptAnswer).where(KeptAnswer.key_sha256 == digest))
    if kept is None or kept.at < datetime.now(UTC) - KEPT_FOR:
        return None
    if kept.request_sha256 != call.request:
        raise KeyReused("this Idempotency-Key was sent with another request; give each request a key of its own")
    return _cipher(session, call).decrypt(kept.answer[:_NONCE_BYTES], kept.answer[_NONCE_BYTES:], call.request)


def keep(session: Session, call: Call, answer: bytes) -> None:
    """Keep the answer of a call that this transaction carried out."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = nonce + _cipher(session, call).encrypt(nonce, answer, call.request)
    digest = _digest(session, call)
    session.execute(delete(KeptAnswer).where(KeptAnswer.key_sha256 == digest))
    session.add(KeptAnswer(key_sha256=digest, request_sha256=call.request, answer=sealed))
    session.flush()


def forget_expired(session: Session, now: datetime) -> None:
    """Delete the answers that are given no more; of every project."""
    session.execute(delete(KeptAnswer).where(KeptAnswer.at < now - KEPT_FOR))


def _digest(session: Session, call: Call) -> bytes:
    parts = (str(project_of(session)), call.actor_id, call.key)
    return hashlib.sha256("\0".join(("sprat idempotency key", *parts)).encode()).digest()


def _cipher(session: Session, call: Call) -> AESGCM:
    salt = f"{project_of(session)} {call.actor_id}".encode()
    derived = HKDF(SHA256(), 32, salt=salt, info=b"sprat kept answer").derive(call.key.encode())
    return AESGCM(derived)
