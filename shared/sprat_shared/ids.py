"""Names of things: UUIDv7 ids, sha256 digests as text, model names."""

import hashlib
import re
import secrets
import time
from typing import Final
from uuid import UUID

from sprat_shared.errors import InvalidInput

_MODEL_NAME: Final = re.compile(r"[a-z0-9-]{1,63}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def new_id(unix_ms: int | None = None) -> UUID:
    """Return a UUID version 7 (RFC 9562, section 5.7): 48 bits of milliseconds, 74 random bits.

    Args:
        unix_ms: the time to write into it, milliseconds since 1970; the present when left out.
    """
    ms = time.time_ns() // 1_000_000 if unix_ms is None else unix_ms
    random = secrets.randbits(74)
    high = (ms & (2**48 - 1)) << 16 | 0x7000 | random >> 62
    low = 0b10 << 62 | random & (2**62 - 1)
    return UUID(int=high << 64 | low)


def sha256_digest(data: bytes | bytearray | memoryview) -> str:
    """Return the digest of `data` as text, `sha256:<64 hex>`."""
    return digest_text(hashlib.sha256(data).digest())


def digest_text(raw: bytes) -> str:
    """Return 32 digest bytes as text, `sha256:<64 hex>`."""
    return f"sha256:{raw.hex()}"


def parse_digest(text: str) -> bytes:
    """Return the 32 bytes that `sha256:<64 hex>` stands for.

    Raises:
        InvalidInput: the text has another form.
    """
    if not _DIGEST.fullmatch(text):
        raise InvalidInput(f"{text[:80]!r} is not a digest; write sha256: and 64 lower-case hex digits")
    return bytes.fromhex(text[7:])


def check_model_name(text: str) -> str:
    """Return `text` if it may name a model: 1 to 63 of a-z, 0-9 and '-'.

    Raises:
        InvalidInput: it has other characters or another length.
    """
    if not _MODEL_NAME.fullmatch(text):
        raise InvalidInput(f"{text[:80]!r} cannot name a model; use 1 to 63 characters of a-z, 0-9 and '-'")
    return text
