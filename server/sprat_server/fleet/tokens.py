"""Secrets of devices: made once in clear, kept as a hash.

Both read `<kind>_<22 characters>`: 128 random bits, so a plain SHA-256 cannot be searched and finds the row. More would
be sent with every poll.
"""

import hashlib
import secrets
from typing import Final

ENROLMENT_PREFIX: Final = "sprate_"
DEVICE_PREFIX: Final = "spratd_"


def make_token(prefix: str) -> tuple[str, bytes]:
    """Return a new token and the hash that is kept of it."""
    text = prefix + secrets.token_urlsafe(16)
    return text, hash_token(text)


def hash_token(text: str) -> bytes:
    """Return the 32 bytes by which a token is found."""
    return hashlib.sha256(text.encode()).digest()
