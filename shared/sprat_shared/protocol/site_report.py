"""What a device says of a plan of its site: how far it is with it."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields, canonical_json


class PlanState(StrEnum):
    """How far a device is with a plan."""

    READY = "ready"  # its modules are loaded, and what it reached of the others answered
    REFUSED = "refused"  # it will not serve by it; the report says why
    SERVING = "serving"  # requests are begun under it


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteReport:
    """One step of a device in a plan. It belongs to no assignment.

    Attributes:
        device: who says it.
        sequence: as a `Report`'s, in one row with them.
        site: name of the site.
        plan: number of the plan.
        state: how far the device is.
        agent: version of the agent.
        error_code: why it was refused.
        error_detail: the sentence to that.
    """

    device: UUID
    sequence: int
    site: str
    plan: int
    state: PlanState
    agent: str
    error_code: str | None = None
    error_detail: str | None = None
    kind: Literal["site"] = "site"

    def to_json(self) -> bytes:
        """Return the canonical bytes that are signed and sent."""
        return canonical_json({**asdict(self), "device": str(self.device), "state": self.state.value})

    @classmethod
    def from_json(cls, body: bytes) -> "SiteReport":
        """Read a report.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields.parse(body, "report")
        if fields.text("kind") != "site":
            raise InvalidInput(f"report: kind {fields.text('kind')[:40]!r} is not 'site'")
        try:
            state = PlanState(fields.text("state"))
        except ValueError:
            states = ", ".join(PlanState)
            raise InvalidInput(f"report: state {fields.text('state')[:40]!r} is not one of {states}") from None
        if (state is PlanState.REFUSED) != fields.has("error_code"):
            raise InvalidInput("report: a plan that is refused has an error_code, and no other one")
        return cls(
            device=fields.uuid("device"),
            sequence=fields.integer("sequence", minimum=1),
            site=fields.model("site"),
            plan=fields.integer("plan", minimum=1),
            state=state,
            agent=fields.text("agent", max_length=100),
            error_code=fields.text("error_code", max_length=100) if fields.has("error_code") else None,
            error_detail=fields.text("error_detail") if fields.has("error_detail") else None,
        )
