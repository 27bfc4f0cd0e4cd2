"""What a device says of itself, when that has changed since it joined or said so last."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields, canonical_json

MOST_ATTRIBUTES: Final = 64
LONGEST_KEY: Final = 100
LONGEST_VALUE: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsReport:
    """All attributes of a device, in the place of those that it said before.

    It belongs to no assignment.

    Attributes:
        device: who says it.
        sequence: as a `Report`'s, in one row with them.
        attributes: free facts about the device, text to text.
        agent: version of the agent.
    """

    device: UUID
    sequence: int
    attributes: Mapping[str, str]
    agent: str
    kind: Literal["facts"] = "facts"

    def to_json(self) -> bytes:
        """Return the canonical bytes that are signed and sent."""
        return canonical_json({**asdict(self), "device": str(self.device)})

    @classmethod
    def from_json(cls, body: bytes) -> "FactsReport":
        """Read a report.

        Raises:
            InvalidInput: a field is missing or wrong, or there are too many attributes.
        """
        fields = Fields.parse(body, "report")
        if fields.text("kind") != "facts":
            raise InvalidInput(f"report: kind {fields.text('kind')[:40]!r} is not 'facts'")
        return cls(
            device=fields.uuid("device"),
            sequence=fields.integer("sequence", minimum=1),
            attributes=_attributes(fields.mapping("attributes")),
            agent=fields.text("agent", max_length=100),
        )


def _attributes(said: Mapping[str, Any]) -> dict[str, str]:
    if len(said) > MOST_ATTRIBUTES:
        raise InvalidInput(f"report: a device has at most {MOST_ATTRIBUTES} attributes, not {len(said)}")
    for key, value in said.items():
        if not isinstance(value, str) or len(key) > LONGEST_KEY or len(value) > LONGEST_VALUE:
            raise InvalidInput(
                f"report: attribute {key!r:.80} must be a text of at most {LONGEST_VALUE} characters under a name of "
                f"at most {LONGEST_KEY}"
            )
    return dict(said)
