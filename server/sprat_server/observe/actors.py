"""Who acts: the name that stands in logs, audit records and jobs."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Actor:
    """An operator's token, a device, or the server itself.

    Args:
        kind: what it is.
        id: the id of the token or device; empty for the server itself.
        name: what people call it.
    """

    kind: Literal["operator", "device", "system"]
    id: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


SYSTEM = Actor(kind="system", id="", name="sprat")
