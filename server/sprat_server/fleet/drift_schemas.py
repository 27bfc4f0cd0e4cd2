"""What drift, and what is done about it, look like in requests and answers."""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel

from sprat_server.fleet.drift import Decision, Finding
from sprat_server.fleet.drift_policy import DriftPolicy
from sprat_server.fleet.models import DriftEvent, DriftPolicyRow


class DriftPolicyView(BaseModel):
    """How a model is watched; `stop_reason`: a person stopped what follows from it."""

    model: str
    policy: DriftPolicy
    set_by: str
    set_at: datetime
    stopped_at: datetime | None
    stop_reason: str | None

    @classmethod
    def of(cls, model: str, row: DriftPolicyRow) -> Self:
        """Show this row."""
        return cls(
            model=model,
            policy=DriftPolicy.model_validate(row.policy),
            set_by=row.set_by,
            set_at=row.set_at,
            stopped_at=row.stopped_at,
            stop_reason=row.stop_reason,
        )


class DriftEventView(BaseModel):
    """What was done, with the evidence that it rests on; `outcome` is null while a retrain is under way."""

    at: datetime
    action: str
    why: str
    finding: dict[str, Any]
    dataset: str | None
    job: UUID | None
    release: int | None
    rollout: UUID | None
    outcome: str | None

    @classmethod
    def of(cls, row: DriftEvent) -> Self:
        """Show this row."""
        return cls(
            at=row.at,
            action=row.action,
            why=row.why,
            finding=row.finding,
            dataset=row.dataset,
            job=row.job_id,
            release=row.release,
            rollout=row.rollout_id,
            outcome=row.outcome,
        )


class DriftView(BaseModel):
    """How a model does in the field now, what would be done about it at the next look, and what was done before."""

    model: str
    policy: DriftPolicyView
    finding: Finding
    action: str
    why: str
    events: list[DriftEventView]

    @classmethod
    def of(cls, policy: DriftPolicyView, finding: Finding, decision: Decision, events: list[DriftEventView]) -> Self:
        """Show these."""
        return cls(
            model=policy.model,
            policy=policy,
            finding=finding,
            action=decision.action.value,
            why=decision.why,
            events=events,
        )
