"""What plans to share layers look like in requests and answers."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from sprat_server.sharing.models import SharingPlan

ModelRef = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}(@[1-9][0-9]{0,8})?$")]
Share = Annotated[float, Field(gt=0, lt=1)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class NewSharingPlan(BaseModel):
    """A plan to be made: which models may share, on which inputs that is measured, and how many answers may change.

    A model is its newest release that shares nothing, or `name@number`. The labels of the dataset are not used.
    `budgets` are those of single models. With `memory_bytes` the plan of least bound that fits is made. `levels`: how
    many steps each model may go down by. With `finetune`, what is a model's own in each level is trained towards its
    answers without sharing, by its recipe. With `analyze` it is only measured, and no plan is kept.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"models": ["face", "gate@3"], "dataset": "sha256:" + "9f" * 32, "budget": 0.05}]
        },
    )

    models: Annotated[list[ModelRef], Field(min_length=2, max_length=20)]
    dataset: Digest
    budget: Share = 0.05
    budgets: Annotated[dict[str, Share], Field(max_length=20)] = {}
    memory_bytes: Annotated[int | None, Field(ge=1, le=1 << 50)] = None
    levels: Annotated[int, Field(ge=1, le=8)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    finetune: bool = False
    analyze: bool = False

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [model.partition("@")[0] for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError("a model is named twice")
        if unknown := sorted(set(self.budgets) - set(names)):
            raise ValueError(f"budgets name {', '.join(unknown)}, which the plan is not about")
        if self.analyze and self.finetune:
            raise ValueError("analyze makes no level that finetune could train: leave out one of them")
        return self


class ApplySharing(BaseModel):
    """How a plan is applied: waves of each rollout (left out: they double), and whether rollouts start."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"waves": ["1", "100%"], "start": True}]})

    waves: Annotated[list[str] | None, Field(min_length=1, max_length=100)] = None
    start: bool = False


class SharingRolloutView(BaseModel):
    """The rollout of one recipient."""

    id: UUID
    model: str
    release: int
    state: str


class SharingLevelView(BaseModel):
    """One level of a model: its release, and how many devices serve it."""

    level: int
    release: int
    devices: int


class SharingStandingView(BaseModel):
    """Where the devices of a model stand: at each level, and how many of those that were offered one share nothing."""

    model: str
    levels: list[SharingLevelView]
    nothing: int


class SharingPlanView(BaseModel):
    """A plan: what was asked, what is chosen, and what was made of it.

    `result.scores` are all ways that were measured, `result.chosen` the certified levels of each model that shares,
    the one that shares most first, `result.left_out` who does not and why, `result.front` what each bound would save,
    `result.learned` which budgets are lower than asked, by what devices did with the plan that is made anew. With
    `finetune` a level says whether it was `trained`, `why` not, and its agreement before and after, and so do those of
    a model that is left out.
    `standing` says how many devices serve what was published.
    """

    id: UUID
    state: Literal["planned", "applied", "undone", "stale"]
    stale_reason: str | None
    asked: dict[str, Any]
    result: dict[str, Any]
    releases: list[dict[str, Any]]
    rollouts: list[SharingRolloutView]
    standing: list[SharingStandingView]
    refit_of: UUID | None
    made_by: str
    created_at: datetime
    applied_at: datetime | None
    undone_at: datetime | None

    @classmethod
    def of(cls, plan: SharingPlan, rollouts: list[SharingRolloutView], standing: list[SharingStandingView]) -> Self:
        """Show this row."""
        return cls(
            id=plan.id,
            state=plan.state,  # type: ignore[arg-type] # a CHECK constraint knows the four
            stale_reason=plan.stale_reason,
            asked=plan.asked,
            result=plan.result,
            releases=(plan.applied or {}).get("releases", []),
            rollouts=rollouts,
            standing=standing,
            refit_of=plan.refit_of,
            made_by=plan.made_by,
            created_at=plan.created_at,
            applied_at=plan.applied_at,
            undone_at=plan.undone_at,
        )


class LevelPreview(BaseModel):
    """One release that would be published: level 1 shares most."""

    level: int
    form: str
    saved_bytes: int
    bound: float
    finetuned: bool
    update_bytes: int
    full_bytes: int


class RecipientPreview(BaseModel):
    """What a model would get: its levels, and the devices for which the filter holds now."""

    model: str
    base: int
    donor: str
    donor_release: int
    levels: list[LevelPreview]
    where: str
    devices: int
    bytes_to_devices: int


class SharingPreview(BaseModel):
    """What applying a plan would publish, and who would get it; `obstacles` stand in the way."""

    plan: UUID
    recipients: list[RecipientPreview]
    obstacles: list[str]
