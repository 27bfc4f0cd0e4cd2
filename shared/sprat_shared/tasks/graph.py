"""A task as a graph: its inputs flow through uses of modules to its outputs. Checked edge by edge before it is used.

    find:
      inputs: {image: "float32[n, 3, 224, 224]", words: "int64[n, 64]"}
      steps:
        see:   {model: vision, inputs: {image: image}}
        read:  {model: text, inputs: {input_ids: words}}
        judge: {model: find-head, inputs: {image: see.features, text: read.embedding}}
      outputs: {score: judge.score}

A source is an input of the task, or `step.output`. A module is a model of the registry; several steps, and several
tasks, may use one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

from sprat_shared.errors import InvalidInput
from sprat_shared.ids import check_model_name
from sprat_shared.tasks.types import CODE, Signature, TensorType

MOST_STEPS: Final = 50
MOST_PORTS: Final = 32
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_PORT: Final = re.compile(r"[^\x00-\x20\x7f]{1,200}")  # names of a graph's tensors are the exporter's


@dataclass(frozen=True, slots=True)
class Step:
    """One use of a module.

    Attributes:
        name: unique within the task.
        model: that runs here.
        inputs: each input of the module -> where it comes from, an input of the task or `step.output`.
    """

    name: str
    model: str
    inputs: Mapping[str, str]

    @property
    def needs(self) -> frozenset[str]:
        """Return the names of the steps whose outputs it takes."""
        return frozenset(source.partition(".")[0] for source in self.inputs.values() if "." in source)


@dataclass(frozen=True)
class TaskGraph:
    """A task: typed inputs, steps, outputs.

    Attributes:
        inputs: name -> type.
        steps: in any order.
        outputs: name -> `step.output`.

    Raises:
        InvalidInput: a name is not known or not unique, nothing comes out, or there is a circle; the message names it.
    """

    inputs: Mapping[str, TensorType]
    steps: Sequence[Step]
    outputs: Mapping[str, str]

    def __post_init__(self) -> None:
        _require_some("steps", len(self.steps), MOST_STEPS)
        _require_some("inputs", len(self.inputs), MOST_PORTS)
        _require_some("outputs", len(self.outputs), MOST_PORTS)
        self._check_names()
        for step in self.steps:
            check_model_name(step.model)
            _require_some(f"step {step.name}: inputs", len(step.inputs), MOST_PORTS)
            for port, source in step.inputs.items():
                self._check_source(source, f"{step.name}.{port}")
        for name, source in self.outputs.items():
            self._check_source(source, name)
            if source in self.inputs:
                raise InvalidInput(f"edge {source} -> {name}: an output comes from a step", code=CODE)
        self._check_use()

    def _check_names(self) -> None:
        for name in (*self.inputs, *self.outputs, *(step.name for step in self.steps)):
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise InvalidInput(f"{name!r:.80} cannot name a step, an input or an output of a task", code=CODE)
        names = [step.name for step in self.steps]
        if twice := sorted({name for name in names if names.count(name) > 1 or name in self.inputs}):
            raise InvalidInput(f"{twice[0]}: two steps, or a step and an input, have this name", code=CODE)

    def _check_use(self) -> None:
        wanted = {source.partition(".")[0] for source in self.outputs.values()}
        for step in reversed(self.order):
            if step.name not in wanted:
                raise InvalidInput(f"step {step.name}: nothing that comes out of it is used", code=CODE)
            wanted |= step.needs

    def _check_source(self, source: Any, target: str) -> None:
        if not isinstance(source, str):
            raise InvalidInput(f"edge to {target}: {source!r:.80} is no source", code=CODE)
        step, dot, port = source.partition(".")
        known = source in self.inputs if not dot else any(one.name == step for one in self.steps)
        if not known or (dot and not _PORT.fullmatch(port)):
            has = ", ".join([*self.inputs, *(f"{one.name}.<output>" for one in self.steps)])
            raise InvalidInput(f"edge {source:.200} -> {target}: there is no {source:.200}; there are {has}", code=CODE)

    @cached_property
    def order(self) -> Sequence[Step]:
        """Return the steps, each behind those whose outputs it takes.

        Raises:
            InvalidInput: there is a circle.
        """
        by_name = {step.name: step for step in self.steps}
        needs = {step.name: sorted(step.needs) for step in self.steps}
        try:
            return [by_name[name] for name in TopologicalSorter(needs).static_order()]
        except CycleError as bad:
            raise InvalidInput(f"{' -> '.join(bad.args[1])} is a circle; a task must end", code=CODE) from None

    @property
    def models(self) -> frozenset[str]:
        """Return the modules that it uses."""
        return frozenset(step.model for step in self.steps)

    def types(self, modules: Mapping[str, Signature]) -> dict[str, TensorType]:
        """Return the type of each source, checked along every edge.

        Args:
            modules: model -> what it takes and gives.

        Raises:
            InvalidInput: a module is not known, lacks an input or an output, or does not take what flows there: the
                message names the edge, and both types.
        """
        types: dict[str, TensorType] = dict(self.inputs)
        for step in self.order:
            if (module := modules.get(step.model)) is None:
                raise InvalidInput(f"step {step.name}: no module {step.model}", code=CODE)
            if left := sorted(module.inputs.keys() ^ step.inputs.keys()):
                which = "is not connected" if left[0] in module.inputs else "does not exist"
                raise InvalidInput(
                    f"step {step.name}: input {left[0]} of {step.model} {which}; it takes {_listed(module.inputs)}",
                    code=CODE,
                )
            bound: dict[str, int | str] = {}
            for port, source in step.inputs.items():
                if not module.inputs[port].takes(_found(types, source, f"{step.name}.{port}"), bound):
                    raise InvalidInput(
                        f"edge {source} -> {step.name}.{port}: {types[source]} comes, and {step.model} takes "
                        f"{module.inputs[port]}{_as_bound(module.inputs[port], bound)}",
                        code=CODE,
                    )
            for port, kind in module.outputs.items():
                types[f"{step.name}.{port}"] = kind.within(bound, step.name)
        for name, source in self.outputs.items():
            _found(types, source, name)
        return types

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object that `of` reads."""
        return {
            "inputs": {name: str(kind) for name, kind in self.inputs.items()},
            "steps": {step.name: {"model": step.model, "inputs": dict(step.inputs)} for step in self.steps},
            "outputs": dict(self.outputs),
        }

    @classmethod
    def of(cls, value: Any) -> "TaskGraph":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        inputs, steps, outputs = (_object(value, name) for name in ("inputs", "steps", "outputs"))
        return cls(
            {name: TensorType.parse(_text(kind, f"input {name}")) for name, kind in inputs.items()},
            [_step(name, said) for name, said in steps.items()],
            {name: _text(source, f"output {name}") for name, source in outputs.items()},
        )


def _require_some(what: str, found: int, most: int) -> None:
    if not 1 <= found <= most:
        raise InvalidInput(f"{what} of a task: 1 to {most}, not {found}", code=CODE)


def _step(name: str, said: Any) -> Step:
    if not isinstance(said, Mapping) or said.keys() != {"model", "inputs"}:
        raise InvalidInput(f"step {name:.80}: say {{model: ..., inputs: {{...}}}}", code=CODE)
    inputs = _object(said, "inputs")
    model = _text(said["model"], f"step {name}: model")
    return Step(name, model, {port: _text(source, f"{name}.{port}") for port, source in inputs.items()})


def _object(value: Any, name: str) -> Mapping[str, Any]:
    said = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(said, Mapping) or not all(isinstance(key, str) for key in said):
        raise InvalidInput(f"a task needs {name}, as names with what they are", code=CODE)
    return said


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"{what:.200}: {value!r:.80} is no text", code=CODE)
    return value


def _found(types: Mapping[str, TensorType], source: str, target: str) -> TensorType:
    if source not in types:
        step = source.partition(".")[0]
        gives = [name for name in types if name.startswith(f"{step}.")]
        raise InvalidInput(f"edge {source} -> {target}: {step} gives {', '.join(gives)}", code=CODE)
    return types[source]


def _listed(ports: Mapping[str, TensorType]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in ports.items())


def _as_bound(kind: TensorType, bound: Mapping[str, int | str]) -> str:
    named = [f"{one} = {bound[one]}" for one in kind.shape if isinstance(one, str) and bound.get(one, one) != one]
    return f", where {', '.join(named)}" if named else ""
