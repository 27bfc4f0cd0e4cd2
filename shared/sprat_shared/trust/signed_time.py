"""The time that the director signs: a field of its timestamp, so that a device's clock need not be believed.

A timestamp says when it was signed: no true time is earlier, so a clock that fell back to 1970 allows nothing older.
It is no proof of *now*: a timestamp may be replayed. A device that needs such a proof (by its clock everything is
expired) sends a random nonce with its poll; the director signs a timestamp that repeats it, and is thus fresh.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sprat_shared.errors import InvalidInput, UntrustedUpdate

NONCE_HEADER: Final = "Sprat-Nonce"
_KEY: Final = "sprat"
_FORMAT: Final = "%Y-%m-%dT%H:%M:%SZ"
_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTime:
    """When a timestamp was signed.

    Attributes:
        at: to the second, UTC.
        nonce: of the poll that asked for it, repeated; None where none did.
    """

    at: datetime
    nonce: str | None = None

    def to_fields(self) -> dict[str, Any]:
        """Return the fields that join the timestamp's own; they are signed with it."""
        said = {"at": self.at.astimezone(UTC).strftime(_FORMAT)}
        return {_KEY: said if self.nonce is None else said | {"nonce": self.nonce}}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "SignedTime | None":
        """Read the fields of a timestamp that TUF does not know; None where no time is among them.

        Raises:
            UntrustedUpdate: the time cannot be read.
        """
        if (said := fields.get(_KEY)) is None:
            return None
        try:
            at, nonce = datetime.strptime(said["at"], _FORMAT).replace(tzinfo=UTC), said.get("nonce")
            return cls(at=at, nonce=None if nonce is None else check_nonce(nonce))
        except (KeyError, TypeError, AttributeError, ValueError, InvalidInput) as bad:
            raise UntrustedUpdate(f"timestamp: its signed time cannot be read ({bad!r})") from bad


def check_nonce(nonce: str) -> str:
    """Return a nonce, if it is one: 16 random bytes in 22 characters of URL-safe base64.

    Raises:
        InvalidInput: it has another form.
    """
    if not isinstance(nonce, str) or _NONCE.fullmatch(nonce) is None:
        raise InvalidInput(f"{NONCE_HEADER}: {nonce!r:.60} is not 22 characters of URL-safe base64")
    return nonce
