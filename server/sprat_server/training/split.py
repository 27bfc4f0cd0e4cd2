"""A torch module taken apart: named submodules as modules of their own, what is left, and the task that they make."""

import inspect
import operator
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from sprat_server.training.export import BATCHES, DTYPE_CODES, Example, Port
from sprat_server.training.states import module_tensors, tied_names, to_source
from sprat_server.training.wiring import OUTPUT, Given, NotTensors, PartUnknown, Wiring, given, told, trace
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.graph import Step, TaskGraph
from sprat_shared.tasks.types import TensorType
from sprat_shared.wire.tensors import ArrayTensors

_SHOWN: Final = 8
_FREE: Final = "n"  # as types of tasks name the length of the batch
_CONSTANTS: Final = (bool, int, float, str, type(None), torch.dtype)

Key: TypeAlias = str | int | None


class SharedWeights(InvalidInput):
    """Two parts, or a part and what is left, use one tensor."""

    code = "split.shared-weights"


class PartsCircular(InvalidInput):
    """What is left is needed before a part and behind it, so it is not one step."""

    code = "split.circular"


class BadRest(InvalidInput):
    """More than wiring is left besides the parts, and nothing says how that model is called."""

    code = "split.bad-rest"


class WithoutWeights(InvalidInput):
    """A part, or what is left, holds no values, and models are weights."""

    code = "split.without-weights"


@dataclass(frozen=True)
class Piece:
    """A module of the task.

    Attributes:
        module: takes the inputs of `example` in order, and gives a dict of its outputs.
        example: of its inputs.
        outputs: their names, in order.
    """

    module: nn.Module
    example: Example
    outputs: tuple[str, ...]

    @cached_property
    def weights(self) -> ArrayTensors:
        """Return its tensors, as the module names them."""
        return to_source(module_tensors(self.module), tied_names(self.module))


@dataclass(frozen=True, slots=True)
class Split:
    """What a module was taken apart into.

    Attributes:
        pieces: by model: the parts, and what is left where that is more than wiring.
        graph: how they go together.
        unused: tensors of the module that no piece has: nothing that comes out depends on them.
    """

    pieces: Mapping[str, Piece]
    graph: TaskGraph
    unused: tuple[str, ...]


def split(module: nn.Module, example: Example, parts: Mapping[str, str], rest: str | None) -> Split:
    """Take a module apart.

    Args:
        module: in its weights, which the pieces share; it is put into evaluation mode.
        example: of its inputs, in the order of its arguments.
        parts: name of the model that a submodule becomes -> the submodule, dotted.
        rest: name of the model that is made of what is left; None: only wiring is left.

    Raises:
        InvalidInput: the module does not take the example, or its inputs or outputs cannot be a task's.
        PartUnknown: a part does not exist, or is within another.
        PartCalls: a part is called twice or never, or nothing uses what it gives.
        NotTensors: what flows between the parts are no tensors (batch, ...).
        NotTraceable: what flows where depends on values.
        SharedWeights: a tensor is of two pieces.
        PartsCircular: what is left is needed before a part and behind it.
        BadRest: more than wiring is left, and `rest` does not say how it is called.
        WithoutWeights: a piece holds no values.
    """
    if rest in parts or len(set(parts.values())) != len(parts):
        raise PartUnknown("two models would be made of one submodule, or a part and what is left have one name")
    module.eval()
    cut = _Cut(module, trace(module, example, parts), example, parts, rest)
    for node, name in cut.wiring.calls.items():
        cut.add_part(node, name)
    cut.add_rest()
    graph = cut.graph()
    return Split(cut.pieces, graph, _unused(module, cut.pieces, parts))


class _Call(nn.Module):
    """A part as it is called: its tensors under its own names, inputs in order, outputs by name."""

    def __init__(self, part: nn.Module, call: "_Arguments", outputs: Sequence[str]) -> None:
        super().__init__()
        self.__dict__["_part"] = part  # not as a submodule: names of tensors would begin with it
        self._parameters, self._buffers, self._modules = part._parameters, part._buffers, part._modules  # noqa: SLF001
        self._non_persistent_buffers_set = part._non_persistent_buffers_set  # noqa: SLF001
        self._call, self._outputs, self.training = call, tuple(outputs), False

    @classmethod
    def of(cls, part: nn.Module, call: "_Arguments", outputs: Sequence[str]) -> nn.Module:
        """Return a part that takes as many arguments as there are tensors: exporters look at the signature."""

        def forward(self: _Call, *values: Tensor) -> dict[str, Tensor]:
            return self.answer(values)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = ("self", *(f"taken_{at}" for at in range(len(call.nodes))))
        forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        made: nn.Module = type(cls.__name__, (cls,), {"forward": forward})(part, call, outputs)
        return made

    def answer(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Call the part."""
        args, kwargs = self._call.filled(values)
        answer = self.__dict__["_part"](*args, **kwargs)
        return dict(zip(self._outputs, (one.tensor for one in given(answer, "a part")), strict=True))


@dataclass(frozen=True, slots=True)
class _Slot:
    """Stands in a call for the tensor of an input."""

    index: int


class _Arguments:
    """What a part is called with: tensors by the names of its arguments, in their order, and constants.

    Raises:
        NotTensors: a list, or anything else that is neither.
    """

    def __init__(self, part: nn.Module, path: str, node: fx.Node) -> None:
        self._signature = inspect.signature(part.forward)
        self._path, self._tensors = path, set(part.state_dict())
        self.nodes: dict[str, fx.Node] = {}
        self._bound: dict[str, Any] = {}
        for name, value in self._signature.bind(*node.args, **node.kwargs).arguments.items():
            kind = self._signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                self._bound[name] = tuple(self._slot(f"{name}_{at}", one) for at, one in enumerate(value))
            elif kind is inspect.Parameter.VAR_KEYWORD:
                self._bound[name] = {key: self._slot(key, one) for key, one in value.items()}
            else:
                self._bound[name] = self._slot(name, value)
        if not self.nodes:
            raise NotTensors(f"{path} is called without a tensor")

    def _slot(self, name: str, value: Any) -> Any:
        if isinstance(value, fx.Node):
            self.nodes[_fresh(name, {*self._tensors, *self.nodes})] = value
            return _Slot(len(self.nodes) - 1)
        if not isinstance(value, _CONSTANTS):
            kind = type(value).__name__.removeprefix("immutable_")  # as torch.fx keeps lists and dicts
            raise NotTensors(f"{self._path} takes a {kind} as {name}; parts take tensors and constants")
        return value

    def filled(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return args and kwargs of the call, by the values of its tensors."""
        bound = inspect.BoundArguments(
            self._signature, OrderedDict((name, _filled(one, values)) for name, one in self._bound.items())
        )
        return bound.args, bound.kwargs

    def __deepcopy__(self, memo: Any) -> "_Arguments":
        """Return itself, as it has no tensors: modules that are copied into float32 keep it."""
        return self


class _Cut:
    """The pieces, gathered: how each is made, and where its inputs come from (`input`, or `step.output`)."""

    def __init__(
        self, module: nn.Module, wiring: Wiring, example: Example, parts: Mapping[str, str], rest: str | None
    ) -> None:
        self.module, self.wiring, self.example, self.parts, self.rest = module, wiring, example, parts, rest
        self.pieces: dict[str, Piece] = {}
        self.feeds: dict[str, dict[str, str]] = {}
        self.outputs: dict[str, str] = {}
        self._tensors = set(module.state_dict())
        self._values: dict[str, list[Any]] = {
            name: [run[node] for run in wiring.runs] for node, name in wiring.inputs.items()
        }
        self._ports: dict[fx.Node, list[Given]] = {}
        self._results = list(_results(wiring.output, wiring.runs[0]))
        self._wanted: dict[tuple[fx.Node, Key], str] = {}  # what the rest gives
        self._steps: dict[str, str] = {}
        for name in (*parts, *([] if rest is None else [rest])):
            step = name if name[0].isalpha() else f"_{name}"
            self._steps[name] = _fresh(step, {*example.ports, *self._steps.values()})

    def add_part(self, node: fx.Node, name: str) -> None:
        """Make the piece of a part; those whose outputs it takes were added."""
        path, step = self.parts[name], self._steps[name]
        part = self.module.get_submodule(path)
        arguments = _Arguments(part, path, node)
        ports = {
            argument: _port([run[one] for run in self.wiring.runs], f"{argument} of {path}")
            for argument, one in arguments.nodes.items()
        }
        seen = [given(run[node], path) for run in self.wiring.runs]
        self._ports[node] = []
        for at, one in enumerate(seen[0]):
            _port([of[at].tensor for of in seen], f"{one.name} of {path}")
            called = _fresh(one.name, {*ports, *part.state_dict(), *(other.name for other in self._ports[node])})
            self._ports[node].append(Given(called, one.key, one.tensor))
            self._values[f"{step}.{called}"] = [of[at].tensor for of in seen]
        self.feeds[name] = {
            argument: self._source(one) or self._of_rest(one, None, argument, {said for said, _, _ in self._results})
            for argument, one in arguments.nodes.items()
        }
        names = tuple(one.name for one in self._ports[node])
        self.pieces[name] = Piece(_Call.of(part, arguments, names), Example(ports), names)

    def add_rest(self) -> None:
        """Say where what comes out comes from, and make the piece of what is left, where there is anything."""
        for name, node, key in self._results:
            self.outputs[name] = self._source(node, key) or self._of_rest(node, key, name, ())
        if self.rest is None or not self._wanted:
            return
        kept, sources = self._needs()
        graph, names = fx.Graph(), dict[str, str]()
        for source in sources:
            step, dot, port = source.partition(".")
            said = source if not dot else step if port == OUTPUT else port
            names[_fresh(said, {*self._tensors, *self._wanted.values(), *names})] = source
        nodes = {source: graph.placeholder(f"taken_{at}") for at, source in enumerate(names.values())}
        made = _Rebuilt(self, graph, nodes)
        for node in kept:
            made.add(node)
        graph.output({name: made.result(node, key) for (node, key), name in self._wanted.items()})
        ports = {name: _port(self._values[source], f"{source} for {self.rest}") for name, source in names.items()}
        if not ports:
            raise BadRest(f"what is left for {self.rest} takes no input of the module, and nothing from a part")
        self.pieces[self.rest] = Piece(fx.GraphModule(self.module, graph), Example(ports), tuple(self._wanted.values()))
        self.feeds[self.rest] = names

    def graph(self) -> TaskGraph:
        """Return how the pieces go together.

        Raises:
            PartsCircular: what is left is needed before a part and behind it.
        """
        needs = {
            self._steps[name]: {source.partition(".")[0] for source in feeds.values() if "." in source}
            for name, feeds in self.feeds.items()
        }
        try:
            TopologicalSorter(needs).prepare()
        except CycleError as bad:
            raise PartsCircular(
                f"{' -> '.join(bad.args[1])} is a circle: besides the parts the module computes "
                f"{_listed(self._left())}, before a part and behind one; put what comes before into a submodule, and "
                "name it as a part too"
            ) from None
        inputs = {name: TensorType(port.dtype, (_FREE, *port.shape)) for name, port in self.example.ports.items()}
        return TaskGraph(
            inputs, [Step(self._steps[name], name, feeds) for name, feeds in self.feeds.items()], self.outputs
        )

    def source_of(self, node: fx.Node) -> str | None:
        """Return where the value of a node comes from; None: the rest computes it, or it is all that a part gives."""
        return self._source(node)

    def given_by(self, node: fx.Node) -> dict[str | int, str] | list[str] | None:
        """Return what a part gives, in its own form, as sources; None: the node is no part of several outputs."""
        if node not in self._ports:
            return None
        value, step = self.wiring.runs[0][node], self._steps[self.wiring.calls[node]]
        if type(value) not in {dict, tuple, list}:
            raise NotTensors(
                f"{self._path(node)} gives {type(value).__name__}, which the module uses as a whole; take tensors out "
                "of it, or give a dict or a tuple"
            )
        named = {one.key: f"{step}.{one.name}" for one in self._ports[node]}
        return named if isinstance(value, dict) else list(named.values())  # type: ignore[return-value] # keys are said

    def length(self, node: fx.Node) -> int | str | None:
        """Return the length that a node reads off what the rest takes: a number, or whose batch it is."""
        of = _sized(node)
        source = None if of is None else self._source(of)
        if source is None:
            return None
        found = tuple(run[node] for run in self.wiring.runs)
        if found == BATCHES:
            return source
        return int(found[0]) if isinstance(found[0], int) and len(set(found)) == 1 else None

    def _path(self, node: fx.Node) -> str:
        return self.parts[self.wiring.calls[node]]

    def _source(self, node: fx.Node, key: Key = None) -> str | None:
        if node in self.wiring.inputs:
            return self.wiring.inputs[node]
        of, ports = node, self._ports.get(node, [])
        named = [one for one in ports if one.key == key]
        if not named and node.op == "call_function" and node.target in {operator.getitem, getattr}:
            value = self.wiring.runs[0][node]
            of = node.all_input_nodes[0]
            named = [one for one in self._ports.get(of, []) if one.key is not None and one.tensor is value]
        return f"{self._steps[self.wiring.calls[of]]}.{named[0].name}" if named else None

    def _of_rest(self, node: fx.Node, key: Key, name: str, reserved: Collection[str]) -> str:
        if self.rest is None:
            raise BadRest(
                f"besides the parts the module computes {_listed(self._left())}: say how the model that does it is "
                "called (--rest)"
            )
        called = _fresh(name, {*self._tensors, *self._wanted.values(), *reserved})
        called = self._wanted.setdefault((node, key), called)
        return f"{self._steps[self.rest]}.{called}"

    def _left(self) -> list[fx.Node]:
        """Return what the module computes besides the parts."""
        known = {*self.wiring.inputs, *self.wiring.calls}
        return [one for one in self.wiring.nodes[:-1] if one not in known and self._source(one) is None]

    def _needs(self) -> tuple[list[fx.Node], list[str]]:
        """Return the nodes of the rest, in order, and the sources of what it takes, the module's inputs first."""
        kept, sources, batches = set[fx.Node](), set[str](), set[str]()
        ahead = [node for node, _ in self._wanted]
        while ahead:
            node = ahead.pop()
            if node in kept:
                continue
            if (length := self.length(node)) is not None:
                kept.add(node)
                batches |= {length} if isinstance(length, str) else set()
            elif (source := self._source(node)) is not None:
                sources.add(source)
            elif (form := self.given_by(node)) is not None:
                sources.update(form.values() if isinstance(form, dict) else form)
            else:
                kept.add(node)
                ahead += node.all_input_nodes
        if not sources:
            sources = set(sorted(batches)[:1])
        return [one for one in self.wiring.nodes if one in kept], [one for one in self._values if one in sources]


class _Rebuilt:
    """The nodes of the rest in a graph of its own.

    A length that only says how long the batch is is read off what the rest takes anyway: it is the same in all.
    """

    def __init__(self, cut: _Cut, graph: fx.Graph, taken: Mapping[str, fx.Node]) -> None:
        self._cut, self._graph, self._taken = cut, graph, taken
        self._made: dict[fx.Node, Any] = {}

    def add(self, node: fx.Node) -> None:
        """Add a node; those that it takes were added."""
        length = self._cut.length(node)
        if isinstance(length, str):
            self._made[node] = self._graph.call_method("size", (next(iter(self._taken.values())), 0))
        elif length is not None:
            self._made[node] = length
        else:
            args, kwargs = map_arg(node.args, self._value), map_arg(node.kwargs, self._value)
            self._made[node] = self._graph.create_node(node.op, node.target, args, kwargs)

    def result(self, node: fx.Node, key: Key) -> Any:
        """Return what is given out, of a node that gives several by its key."""
        value = self._value(node)
        return value if key is None else self._graph.call_function(operator.getitem, (value, key))

    def _value(self, node: fx.Node) -> Any:
        if node in self._made:
            return self._made[node]
        if (source := self._cut.source_of(node)) is not None:
            return self._taken[source]
        form = self._cut.given_by(node)
        if isinstance(form, dict):
            return {key: self._taken[source] for key, source in form.items()}
        return [self._taken[source] for source in form or []]


def _results(output: Any, run: Mapping[fx.Node, Any]) -> Iterator[tuple[str, fx.Node, Key]]:
    """Give name, node and key of each tensor that comes out of the module."""
    if isinstance(output, fx.Node):
        for one in given(run[output], "the module"):
            yield one.name, output, one.key
        return
    values = map_arg(output, lambda node: run[node])
    parts: Any = output if isinstance(output, Mapping) else dict(enumerate(output))
    for one in given(values, "the module"):
        node = parts[one.key]
        if not isinstance(node, fx.Node):
            raise NotTensors(f"{one.name} of what the module gives is a constant")
        yield one.name, node, None


def _port(values: Sequence[Any], what: str) -> Port:
    """Return what a tensor is, by its values for each length of the batch."""
    for batch, value in zip(BATCHES, values, strict=True):
        if not isinstance(value, Tensor):
            raise NotTensors(f"{what} is {type(value).__name__}; tensors flow between parts")
        if not value.shape or value.shape[0] != batch or value.shape[1:] != values[0].shape[1:]:
            raise NotTensors(
                f"{what} is of shape {list(value.shape)} where the batch is {batch}; what flows between parts has the "
                "batch as its first axis, and only that is free"
            )
    dtype = str(values[0].dtype).removeprefix("torch.")
    if dtype not in DTYPE_CODES:
        raise NotTensors(f"{what} is of {dtype}; devices exchange {', '.join(DTYPE_CODES)}")
    return Port(tuple(values[0].shape[1:]), dtype)


def _sized(node: fx.Node) -> fx.Node | None:
    """Return the tensor of which a node is the length of one axis."""
    shape: Any = node
    if node.op == "call_function" and node.target is operator.getitem and isinstance(node.args[1], int):
        shape = node.args[0]
    if not isinstance(shape, fx.Node):
        return None
    by_attribute = shape.op == "call_function" and shape.target is getattr and shape.args[1] == "shape"
    by_method = shape.op == "call_method" and shape.target == "size" and (shape is node) == (len(shape.args) > 1)
    of = shape.args[0] if by_method or (by_attribute and shape is not node) else None
    return of if isinstance(of, fx.Node) else None


def _unused(module: nn.Module, pieces: Mapping[str, Piece], parts: Mapping[str, str]) -> tuple[str, ...]:
    """Return the tensors that no piece has.

    Raises:
        SharedWeights: two pieces have one.
        WithoutWeights: a piece has none.
    """
    tied = tied_names(module)
    owners: dict[str, tuple[str, str]] = {}
    for name, piece in pieces.items():
        state = piece.module.state_dict()
        if not any(tensor.numel() for tensor in state.values()):
            raise WithoutWeights(
                f"{name} holds no values, and a model is weights; cut where there are some on each side"
            )
        for tensor in state:
            full = f"{parts[name]}.{tensor}" if name in parts else tensor
            owner = owners.setdefault(tied.get(full, full), (name, full))
            if owner[0] != name:
                raise SharedWeights(
                    f"{full} of {name} and {owner[1]} of {owner[0]} are one tensor; a model has weights of its own; "
                    "cut so that both are in one part"
                )
    return tuple(name for name in module_tensors(module) if name not in owners)


def _filled(value: Any, values: Sequence[Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_filled(one, values) for one in value)
    if isinstance(value, dict):
        return {key: _filled(one, values) for key, one in value.items()}
    return values[value.index] if isinstance(value, _Slot) else value


def _fresh(name: str, taken: Collection[str]) -> str:
    """Return the name, with a number behind it where it is taken."""
    return next(one for one in (name, *(f"{name}_{at}" for at in range(2, len(taken) + 3))) if one not in taken)


def _listed(nodes: Sequence[fx.Node]) -> str:
    more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
    return ", ".join(told(one) for one in nodes[:_SHOWN]) + more
