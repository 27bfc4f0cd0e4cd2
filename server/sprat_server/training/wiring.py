"""What flows between the named submodules of a torch module: its wiring traced as a graph, and run to see the tensors.

Only the forwards of modules that contain a part are traced, symbolically (torch.fx); every other module is a leaf, and
exported later as registration does it. So what cannot be traced is a few lines of wiring that an error points at, sizes
stay with the tensors that they are of, and outputs keep the names that a part gives them. `torch.export` of the whole
takes more kinds of wiring, but gives one flat graph in which a size is read off any tensor that has it: what is left
would ask for a camera's images to know how many there are.
"""

import difflib
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from sprat_server.training.export import BATCHES, Example, answer, flatten, widened
from sprat_shared.errors import InvalidInput

OUTPUT: Final = "output"
"""Name of what a module gives that names nothing."""
_SAME: Final = 1e-5
_SHOWN: Final = 8
_NOT_USERS: Final = (str(Path(torch.__file__).parent), __file__)


class PartUnknown(InvalidInput):
    """A part is no submodule of the recipe's module, or is within another part."""

    code = "split.unknown-part"


class PartCalls(InvalidInput):
    """A part is called twice or never, or nothing uses what it gives."""

    code = "split.not-called-once"


class NotTensors(InvalidInput):
    """What flows into or out of a part is no tensor of the batch."""

    code = "split.not-tensors"


class NotTraceable(InvalidInput):
    """The wiring between the parts branches on values or sizes of tensors, so it is no graph."""

    code = "split.not-traceable"


@dataclass(frozen=True, slots=True)
class Given:
    """One tensor of what a module gives.

    Attributes:
        name: as the module names it, else `output`, or `output_<index>` of several.
        key: where it is in what the module gives; None: it is all of it.
        tensor: the value.
    """

    name: str
    key: str | int | None
    tensor: Tensor


@dataclass(frozen=True)
class Wiring:
    """A module as a graph of calls.

    Attributes:
        nodes: those that what comes out depends on, each behind those that it takes.
        inputs: node of each input of the module -> its name.
        calls: node that calls a part -> the part's name.
        output: what comes out, made of nodes.
        runs: the value of each node, for each length of the batch in `BATCHES`.
    """

    nodes: Sequence[fx.Node]
    inputs: Mapping[fx.Node, str]
    calls: Mapping[fx.Node, str]
    output: Any
    runs: Sequence[Mapping[fx.Node, Any]]


def given(value: Any, what: str) -> list[Given]:
    """Return the tensors of what a module gives: one, or several in a dict or a tuple.

    Raises:
        NotTensors: it is something else; `what` says whose.
    """
    if isinstance(value, Tensor):
        return [Given(OUTPUT, None, value)]
    named: list[tuple[str, str | int, Any]] = []
    if isinstance(value, Mapping):
        named = [(str(key), key, one) for key, one in value.items() if one is not None]
    elif isinstance(value, tuple | list):
        fields = getattr(value, "_fields", [f"{OUTPUT}_{at}" for at in range(len(value))])
        named = [(fields[at], at, one) for at, one in enumerate(value) if one is not None]
    wrong = [name for name, key, one in named if not isinstance(one, Tensor) or not isinstance(key, str | int)]
    if wrong or not named:
        told = f"{wrong[0]} of what it gives is" if wrong else f"it gives {type(value).__name__},"
        raise NotTensors(f"{what}: {told} no tensor; parts give a tensor, or a dict or a tuple of tensors")
    return [Given(*one) for one in named]


def submodule(module: nn.Module, path: str, parts: Mapping[str, str]) -> nn.Module:
    """Return a part by its dotted name.

    Args:
        module: the whole.
        path: of the part.
        parts: all parts; no one is within another.

    Raises:
        PartUnknown: there is none, or it is within another part; near names are listed.
    """
    names: dict[str, nn.Module] = {name: one for name, one in module.named_modules(remove_duplicate=False) if name}
    if path not in names:
        near = difflib.get_close_matches(path, names, _SHOWN, 0.4) or [name for name in names if "." not in name]
        raise PartUnknown(f"the module has no submodule {path!r:.100}; near are {', '.join(near[:_SHOWN]) or 'none'}")
    if within := [other for other in parts.values() if path.startswith(f"{other}.")]:
        raise PartUnknown(f"{path} is within {within[0]}, which is a part too: name one of them")
    return names[path]


def trace(module: nn.Module, example: Example, parts: Mapping[str, str]) -> Wiring:
    """Trace a module around its parts.

    Args:
        module: in evaluation mode.
        example: of its inputs, in the order of its arguments.
        parts: name of each -> submodule, dotted.

    Raises:
        PartUnknown, PartCalls, NotTraceable: see there.
        InvalidInput: the module fails on the example; the message has its reason.
    """
    found = {name: submodule(module, path, parts) for name, path in parts.items()}
    wanted = [flatten(answer(widened(module), example, batch)) for batch in BATCHES]
    graph = _graph(module, example, _around(module, parts.values()))
    names = {id(one): name for name, one in found.items()}
    calls = {
        node: names[id(called)]
        for node in graph.nodes
        if node.op == "call_module" and id(called := module.get_submodule(node.target)) in names
    }
    nodes = _alive(graph)
    for name, path in parts.items():
        times = [node for node, called in calls.items() if called == name]
        if len(times) != 1:
            told = f"{len(times)} times" if times else "never"
            raise PartCalls(f"{path} is called {told} where the module runs; a part is called once")
        if times[0] not in nodes:
            raise PartCalls(f"nothing that the module gives depends on {path}; do not name it as a part")
    runs = [_run(module, graph, example, batch) for batch in BATCHES]
    outlet = nodes[-1]
    for run, answered in zip(runs, wanted, strict=True):
        _check_same(flatten(run[outlet]), answered)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    return Wiring(nodes, dict(zip(placeholders, example.ports, strict=True)), calls, outlet.args[0], runs)


def told(node: fx.Node) -> str:
    """Return what a node of the wiring does, for messages."""
    return getattr(node.target, "__name__", str(node.target))


class _Tracer(fx.Tracer):
    """Traces the forwards of some modules; all others are leaves."""

    proxy_buffer_attributes = True

    def __init__(self, around: Sequence[nn.Module], inputs: int) -> None:
        super().__init__(param_shapes_constant=True)
        self._around, self._inputs = {id(one) for one in around}, inputs

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - torch's signature
        """Return whether it contains no part."""
        return id(m) not in self._around

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:  # noqa: ARG002, FBT001 - torch's signature
        """Return the function and as many arguments as the example has inputs: others keep their defaults."""
        taken = [self.create_proxy("placeholder", f"taken_{at}", (), {}) for at in range(self._inputs)]
        return root_fn, [self.root, *taken]


def _around(module: nn.Module, paths: Any) -> list[nn.Module]:
    prefixes = {".".join(path.split(".")[:depth]) for path in paths for depth in range(len(path.split(".")))}
    return [module.get_submodule(prefix) for prefix in prefixes]


def _graph(module: nn.Module, example: Example, around: Sequence[nn.Module]) -> fx.Graph:
    try:
        return _Tracer(around, len(example.ports)).trace(module)
    except Exception as bad:  # the wiring is the user's code, and a proxy in it may raise anything
        frames = traceback.extract_tb(bad.__traceback__)
        own = [one for one in frames if not one.filename.startswith(_NOT_USERS)]
        where = f"{Path(own[-1].filename).name}:{own[-1].lineno} ({own[-1].line})" if own else "the module"
        reason = str(bad).strip().partition("\n")[0][:300]
        raise NotTraceable(
            f"{where} cannot be traced: {reason}; the code between parts may not branch on values or sizes of tensors: "
            "a submodule of its own may ask for sizes"
        ) from bad


def _alive(graph: fx.Graph) -> list[fx.Node]:
    nodes = list(graph.nodes)
    alive, ahead = set(), [nodes[-1]]
    while ahead:
        node = ahead.pop()
        if node not in alive:
            alive.add(node)
            ahead += node.all_input_nodes
    return [node for node in nodes if node in alive]


def _run(module: nn.Module, graph: fx.Graph, example: Example, batch: int) -> dict[fx.Node, Any]:
    run = fx.Interpreter(widened(module), garbage_collect_values=False, graph=graph)
    try:
        with torch.no_grad():
            run.run(*example.tensors(batch))
    except Exception as bad:  # likewise
        reason = str(bad).strip().partition("\n")[0][:300]
        raise NotTraceable(f"the traced module fails where the module itself does not: {reason}") from bad
    return run.env


def _check_same(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    same = len(found) == len(wanted) and all(
        one.shape == other.shape and torch.allclose(one.double(), other.double(), _SAME, _SAME)
        for one, other in zip(found, wanted, strict=True)
    )
    if not same:
        raise NotTraceable(
            "the traced module computes something else than the module: its code between parts goes other ways with "
            "tensors than without; put it into a submodule of its own"
        )
