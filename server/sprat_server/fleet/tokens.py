"""Secrets of devices: made once in clear, kept as a hash.

All read `<kind>_<random characters>`: so many random bits that a plain SHA-256 cannot be searched, and finds the row.
Those of devices have 128, for one is sent with every poll.
"""

import hashlib
import secrets
from typing import Final

ENROLMENT_PREFIX: Final = "sprate_"
DEVICE_PREFIX: Final = "spratd_"


def make_token(prefix: str, *, random_bytes: int = 32) -> tuple[str, bytes]:
    """Return a new token and the hash that is kept of it."""
    text = prefix + secrets.token_urlsafe(random_bytes)
    return text, hash_token(text)


def hash_token(text: str) -> bytes:
    """Return the 32 bytes by which a token is found."""
    return hashlib.sha256(text.encode()).digest()
