"""What is asked of a model's accuracy in the field, and what is to be done where it falls below."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DriftRetrain(BaseModel):
    """What a retrain for drift is: on the newest dataset of a name, with options as `sprat retrain` takes them."""

    model_config = ConfigDict(extra="forbid")

    dataset: Annotated[str, Field(min_length=1, max_length=200)]
    options: dict[str, Any] = {}


class DriftRollout(BaseModel):
    """What becomes of the release: a rollout in waves (left out: they double), started, or drafted for a person."""

    model_config = ConfigDict(extra="forbid")

    waves: Annotated[list[str] | None, Field(min_length=1, max_length=100)] = None
    start: bool = False


class DriftPolicy(BaseModel):
    """Bounds on a model in the field, and what is done once it is proven that one is crossed.

    `min_accuracy` is of the devices' labelled samples, `max_input_drift` (0 to 1) of how far their inputs moved, by the
    median device. Nothing is said before `min_devices` have spoken within `window_s`. `every_s` is the least time
    between two actions; `most_retrains` how many are begun in 30 days.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"min_accuracy": 0.9, "action": "notify"},
                {
                    "min_accuracy": 0.9,
                    "action": "retrain",
                    "retrain": {"dataset": "line-3", "options": {"keep": 0.95}},
                    "rollout": {"waves": ["1", "10%", "100%"], "start": True},
                },
            ]
        },
    )

    min_accuracy: Annotated[float | None, Field(gt=0, lt=1)] = None
    max_input_drift: Annotated[float | None, Field(ge=0, lt=1)] = None
    min_devices: Annotated[int, Field(ge=1, le=1_000_000)] = 3
    min_samples: Annotated[int, Field(ge=1, le=10**9)] = 100
    window_s: Annotated[float, Field(ge=3600, le=90 * 86400)] = 7 * 86400.0
    action: Literal["notify", "retrain"] = "notify"
    every_s: Annotated[float, Field(ge=60, le=90 * 86400)] = 86400.0
    most_retrains: Annotated[int, Field(ge=1, le=100)] = 3
    retrain: DriftRetrain | None = None
    rollout: DriftRollout | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.min_accuracy is None and self.max_input_drift is None:
            raise ValueError("say what is watched: min_accuracy, max_input_drift, or both")
        if (self.action == "retrain") != (self.retrain is not None):
            raise ValueError("action retrain goes with retrain (which dataset), and with nothing else")
        if self.rollout is not None and self.retrain is None:
            raise ValueError("a rollout needs a release: say action retrain")
        return self
