"""What a task answers, and by whom; its inputs, checked against its types first."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from sprat_client.runtime.ports import Array, PortSpec, fit_input
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.types import TensorType


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One step of a task that was answered.

    Attributes:
        step: its name.
        model: that ran, and
        release: its number.
        device: name of the member that ran it.
        local: it was the device that was asked.
        seconds: from the request to it to its answer.
        waited_s: of that, in its queue, and
        ran_s: in its runtime.
        tries: how many members were asked, one after the other.
        hedged: a second one was asked as well, since the first took long.
    """

    step: str
    model: str
    release: int
    device: str
    local: bool
    seconds: float
    waited_s: float
    ran_s: float
    tries: int
    hedged: bool

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        said = asdict(self)
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in said.items()}

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Hop":
        """Read the JSON object."""
        return cls(**{one.name: said[one.name] for one in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAnswer:
    """A task's answer: all of it under one plan.

    Attributes:
        task: its name.
        plan: `site/number`.
        outputs: by name.
        fallback: the task's fallback answered, on the device that was asked.
        steps: that gave the answer, in the order in which they ended.
        seconds: from the request to the answer.
        request: its id, in the logs of each device that answered.
    """

    task: str
    plan: str
    outputs: Mapping[str, Array]
    fallback: bool
    steps: tuple[Hop, ...]
    seconds: float
    request: str

    def summary(self) -> dict[str, Any]:
        """Return who answered, without the outputs, as JSON."""
        return {
            "task": self.task,
            "plan": self.plan,
            "fallback": self.fallback,
            "seconds": round(self.seconds, 6),
            "request": self.request,
            "steps": [hop.as_json() for hop in self.steps],
        }

    @classmethod
    def of(cls, said: Mapping[str, Any], outputs: Mapping[str, Array]) -> "TaskAnswer":
        """Put together what `summary` said and the outputs."""
        return cls(**{**said, "steps": tuple(Hop.of(hop) for hop in said["steps"])}, outputs=outputs)


def fit_task_inputs(types: Mapping[str, TensorType], given: Mapping[str, Array]) -> dict[str, Array]:
    """Return a task's inputs as its types say, as `fit_input` does a model's; the same free length is the same number.

    Raises:
        InvalidInput: one is missing or not known, or does not fit.
    """
    if given.keys() != types.keys():
        got = ", ".join(str(name)[:100] for name in list(given)[:32]) or "none"
        takes = ", ".join(f"{name} {kind}" for name, kind in types.items())
        raise InvalidInput(f"the task takes {takes}; got {got}")
    fitted: dict[str, Array] = {}
    bound: dict[str, tuple[int, str]] = {}
    for name, kind in types.items():
        shape = tuple(length if isinstance(length, int) else None for length in kind.shape)
        fitted[name] = fit_input(PortSpec(name, np.dtype(kind.dtype), shape), given[name])
        for length, found in zip(kind.shape, fitted[name].shape, strict=True):
            if found == 0 and length != 0:
                raise InvalidInput(f"input {name!r} has no values: its shape is {fitted[name].shape}")
            if isinstance(length, str):
                first, by = bound.setdefault(length, (found, name))
                if first != found:
                    raise InvalidInput(f"input {name!r}: {length} is {found}, and {first} in {by!r}")
    return fitted
