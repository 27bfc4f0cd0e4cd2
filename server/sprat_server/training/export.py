"""From a torch module to a graph without weights, and proof that the graph computes what the module computes."""

import contextlib
import logging
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call

from sprat_server.training import graph_runner
from sprat_server.training.graphs import (
    Graph,
    GraphRefused,
    bind,
    missing,
    name_batch_axis,
    name_outputs,
    with_probes,
)
from sprat_server.training.states import to_source, to_torch
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import Array, TensorSource, raw_bytes

BATCHES: Final = (2, 3)
"""Lengths of the batch that modules are tried with: two show that it is free."""
_PERTURBATION: Final = 0.05
_RUN_LIMIT_S: Final = 600
_RELATIVE: Final = 1e-3
_HALF_RELATIVE: Final = 2e-2
INPUT: Final = "input"
"""Name of the input of a graph that has one."""
_NUMPY: Final = {
    "F32": "float32",
    "F16": "float16",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
DTYPE_CODES: Final = {name: code for code, name in _NUMPY.items()}
"""Dtypes of inputs: code in safetensors files by numpy name."""


class ExportFailed(GraphRefused):
    """Torch's exporter cannot express the module as ONNX."""

    code = "graph.export-failed"


@dataclass(frozen=True, slots=True)
class Port:
    """One input of a module: shape without the batch axis, numpy dtype name."""

    shape: tuple[int, ...]
    dtype: str

    def made_up(self, batch: int, rng: np.random.Generator) -> Array:
        """Return made-up values (batch, *shape): normal numbers, or small non-negative integers."""
        if self.dtype.startswith("float"):
            return rng.standard_normal((batch, *self.shape)).astype(self.dtype)
        return rng.integers(0, 2, (batch, *self.shape)).astype(self.dtype)


@dataclass(frozen=True, slots=True)
class Example:
    """What a module takes: its inputs by name, in the order of its arguments. Batches are as long in each."""

    ports: Mapping[str, Port]

    @classmethod
    def single(cls, shape: tuple[int, ...], dtype: str) -> "Example":
        """Return that of a module of one input: shape without the batch axis, numpy dtype name."""
        return cls({INPUT: Port(shape, dtype)})

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> "Example":
        """Read `{"shape": [1, ...], "dtype": "F32"}`, or `{"inputs": [{"name": "image", "shape": ...}, ...]}`.

        Shapes are with the batch axis, dtypes as in safetensors files.

        Raises:
            InvalidInput: it is missing or has another form.
        """
        match given:
            case {"inputs": [*inputs]} if inputs:
                named = [(str(one.get("name")), _port(one, "example of input")) for one in inputs]
                if len(dict(named)) != len(named):
                    raise InvalidInput(f"two inputs have one name: {', '.join(name for name, _ in named)}")
                return cls(dict(named))
            case _:
                return cls({INPUT: _port(given, "example")})

    @property
    def only(self) -> Port:
        """Return the one input.

        Raises:
            InvalidInput: there are several.
        """
        if len(self.ports) != 1:
            raise InvalidInput(
                f"the model takes {', '.join(self.ports)}: datasets hold one input; train it elsewhere, and "
                "`sprat release create` from its weights",
                code="model.several-inputs",
            )
        return next(iter(self.ports.values()))

    def inputs(self, batch: int, seed: int = 0) -> list[Array]:
        """Return made-up inputs, each (batch, *shape), in order."""
        rng = np.random.default_rng(seed)
        return [port.made_up(batch, rng) for port in self.ports.values()]

    def tensors(self, batch: int) -> tuple[Tensor, ...]:
        """Return made-up inputs as a module takes them."""
        return tuple(torch.from_numpy(one) for one in self.inputs(batch))

    def as_json(self) -> dict[str, Any]:
        """Return the form of several inputs that `of` reads."""
        return {
            "inputs": [
                {"name": name, "shape": [1, *port.shape], "dtype": DTYPE_CODES[port.dtype]}
                for name, port in self.ports.items()
            ]
        }

    def __str__(self) -> str:
        """Return the inputs with their shapes, batch axis included, for messages."""
        told = (f"{name} of shape {[1, *port.shape]} and dtype {port.dtype}" for name, port in self.ports.items())
        return ", ".join(told)


def _port(given: Any, what: str) -> Port:
    match given:
        case {"shape": [int(), *shape], "dtype": str(code)} if code in _NUMPY and all(
            isinstance(d, int) and d > 0 for d in shape
        ):
            return Port(tuple(shape), _NUMPY[code])
    raise InvalidInput(
        f"{what} {given!r} does not describe an input; give its shape with the batch axis first and its dtype, "
        f'such as {{"shape": [1, 1, 28, 28], "dtype": "F32"}} (dtypes: {", ".join(_NUMPY)})'
    )


@dataclass(frozen=True, slots=True)
class Exported:
    """The graph that devices run, and the same with the layers' activations as further outputs."""

    graph: Graph
    probe: Graph


def export(module: nn.Module, source: TensorSource, example: Example) -> Exported:
    """Export a module to ONNX and take its weights out.

    Args:
        module: in the weights of `source`; bfloat16 is widened to float32 for the graph, as devices compute it.
        source: the release's tensors.
        example: of its inputs.

    Raises:
        InvalidInput: the module does not take the example; the message has its reason.
        ExportFailed: torch's exporter gives up; the message says over what.
        GraphRefused: a tensor of the release is not an initialiser of the graph; it is named.
    """
    module.eval()
    half = any(p.dtype == torch.float16 for p in module.parameters())
    exported = module if half else widened(module)
    inputs = example.tensors(BATCHES[0])
    outputs = answer(exported, example, BATCHES[0])
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                exported,
                inputs,
                dynamo=True,
                optimize=False,
                dynamic_shapes=tuple({0: Dim.DYNAMIC} for _ in inputs),
                external_data=False,
                input_names=list(example.ports),
                verbose=False,
            )
        except Exception as e:  # the exporter raises whatever its passes raise
            raise ExportFailed(f"torch cannot export the module to ONNX: {_last_line(e)}") from e
    if program is None:
        raise ExportFailed("torch's exporter gave no program")
    model: onnx.ModelProto = program.model_proto
    if isinstance(outputs, Mapping):
        name_outputs(model, list(outputs))
    name_batch_axis(model)
    unused = [name for name in missing(model, source.table) if not _matters(exported, source, example, name)]
    return Exported(bind(model, source.table, unused), bind(with_probes(model), source.table, unused))


def answer(module: nn.Module, example: Example, batch: int) -> Any:
    """Return what a module gives on made-up inputs.

    Raises:
        InvalidInput: it fails; the message has its reason.
    """
    with _quiet(), torch.no_grad():
        try:
            return module(*example.tensors(batch))
        except Exception as e:  # the module is the user's code: it may raise anything
            raise InvalidInput(
                f"the module fails on made-up inputs ({example}): {_last_line(e)}; "
                "give an example that it takes, or mend the recipe",
                code="recipe.fails-on-example",
            ) from e


def verify(module: nn.Module, source: TensorSource, graph: Graph, example: Example) -> None:
    """Run the graph on stored tensors in onnxruntime and compare it with torch; then again with all tensors changed.

    The second run shows that every tensor is read from its file: one that the exporter had folded into a constant
    would not follow.

    Raises:
        GraphRefused: the outputs differ beyond float tolerance, or do not depend on a tensor as torch's do; the
            tensors are named where they can be told.
    """
    compare(module, source, graph, example, "the stored weights")
    changed = to_source(_perturbed(to_torch(source), tuple(graph.bound)), source.table.aliases)
    try:
        compare(module, changed, graph, example, "changed weights")
    except GraphRefused as e:
        culprits = [name for name in _bound_names(source, graph) if not _follows(module, source, graph, example, name)]
        named = f"; the graph does not follow {', '.join(culprits[:20])}" if culprits else ""
        raise GraphRefused(f"{e}{named}") from e


def verify_runs(source: TensorSource, graph: Graph, example: Example) -> None:
    """Run a graph that has no module beside it: it must load, take any batch, and give finite numbers.

    Raises:
        GraphRefused: it does not; the message has onnxruntime's reason.
    """
    for outputs in run(source, graph, *(example.inputs(batch) for batch in BATCHES)):
        for position, output in enumerate(outputs):
            if output.dtype.kind == "f" and not np.isfinite(output).all():
                raise GraphRefused(f"output {position} of the graph holds NaN or Inf on made-up inputs")


def run(source: TensorSource, graph: Graph, *batches: Sequence[Array]) -> list[list[Array]]:
    """Run the graph as a device does, tensors as files `t/<index>` beside it, in a process of its own.

    Args:
        source: the tensors.
        graph: what to run.
        batches: each the graph's inputs in order, (batch, ...).

    Returns:
        The outputs of each batch.

    Raises:
        GraphRefused: onnxruntime cannot load or run it, or crashes over it; the message has its reason.
    """
    with tempfile.TemporaryDirectory(prefix="sprat-graph-") as name:
        folder = Path(name)
        (folder / "t").mkdir()
        for index in graph.bound:
            (folder / "t" / str(index)).write_bytes(raw_bytes(_as_read(source, index)))
        (folder / graph_runner.GRAPH).write_bytes(graph.data)
        given = {f"b{i}i{at}": array for i, inputs in enumerate(batches) for at, array in enumerate(inputs)}
        graph_runner.write_arrays(folder / graph_runner.INPUTS, given)
        command = [sys.executable, "-m", graph_runner.__name__, name]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_RUN_LIMIT_S)  # noqa: S603 - our own module
        except subprocess.TimeoutExpired:
            raise GraphRefused(f"onnxruntime did not run the graph within {_RUN_LIMIT_S} seconds") from None
        if ended.returncode < 0:
            raise GraphRefused(f"onnxruntime crashes over this graph ({signal.Signals(-ended.returncode).name})")
        if ended.returncode:
            lines = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
            raise GraphRefused(f"onnxruntime cannot run the graph: {lines[-1]}")
        with np.load(folder / graph_runner.OUTPUTS) as outputs:
            return [[outputs[key] for key in outputs.files if key.startswith(f"b{i}o")] for i in range(len(batches))]


def _as_read(source: TensorSource, index: int) -> Array:
    """Return a tensor as the graph reads it: bfloat16 as float32."""
    array = source.read(index)
    if source.table.specs[index].dtype != "BF16":
        return array
    return (array.astype(np.uint32) << 16).view(np.float32)


def compare(module: nn.Module, source: TensorSource, graph: Graph, example: Example, what: str) -> None:
    """Run graph and module on the same made-up inputs and tensors, for two batch sizes.

    Raises:
        GraphRefused: outputs differ in number or shape, or beyond float tolerance; `what` tells which weights.
    """
    half = any(spec.dtype == "F16" for spec in source.table)
    tensors = to_torch(source)
    if not half:
        module, tensors = widened(module), {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    runs = run(source, graph, *(example.inputs(batch) for batch in BATCHES))
    for batch, got in zip(BATCHES, runs, strict=True):
        with torch.no_grad():
            wanted = flatten(functional_call(module.eval(), tensors, example.tensors(batch)))
        if len(got) != len(wanted):
            raise GraphRefused(f"the graph has {len(got)} outputs, the module {len(wanted)}")
        for position, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
            reference = theirs.float().numpy()
            if ours.shape != reference.shape:
                raise GraphRefused(f"output {position} has shape {ours.shape} in the graph, {reference.shape} in torch")
            bound = (_HALF_RELATIVE if half else _RELATIVE) * max(1.0, float(np.abs(reference).max(initial=0)))
            off = float(np.abs(ours.astype(np.float64) - reference).max(initial=0))
            if not off <= bound:
                raise GraphRefused(
                    f"with {what}, output {position} of the graph is {off:.3g} away from torch's ({bound:.3g} allowed)"
                )


def _follows(module: nn.Module, source: TensorSource, graph: Graph, example: Example, name: str) -> bool:
    changed = to_source(_perturbed(to_torch(source), (source.table.index_of(name),)), source.table.aliases)
    try:
        compare(module, changed, graph, example, name)
    except GraphRefused:
        return False
    return True


def _matters(module: nn.Module, source: TensorSource, example: Example, name: str) -> bool:
    """Say whether the module's outputs depend on a tensor."""
    inputs = example.tensors(BATCHES[0])
    kinds = {key: tensor.dtype for key, tensor in module.state_dict().items()}
    tensors = {key: tensor.to(kinds[key]) for key, tensor in to_torch(source).items()}
    changed = _perturbed(tensors, (source.table.index_of(name),))
    with torch.no_grad():
        before, after = (flatten(functional_call(module, state, inputs)) for state in (tensors, changed))
    return not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _bound_names(source: TensorSource, graph: Graph) -> list[str]:
    return [source.table.specs[index].name for index in graph.bound]


def _perturbed(tensors: Mapping[str, Tensor], indices: Sequence[int]) -> dict[str, Tensor]:
    """Return the tensors with some floating ones changed by about 5 %, upwards (variances stay positive)."""
    generator = torch.Generator().manual_seed(1)
    changed = dict(tensors)
    names = sorted(tensors, key=str.encode)
    for name in (names[index] for index in indices):
        tensor = tensors[name]
        if tensor.is_floating_point() and tensor.numel():
            factor = 1 + _PERTURBATION * torch.rand(tensor.shape, generator=generator)
            changed[name] = (tensor.float() * factor + _shift(tensor)).to(tensor.dtype)
    return changed


def _shift(tensor: Tensor) -> float:
    """Return what is added, so that a tensor of zeros (a bias) changes too."""
    return _PERTURBATION * float(tensor.float().abs().mean() or 1.0)


def flatten(outputs: Any) -> list[Tensor]:
    """Return the tensors of what a module gives, in order.

    Raises:
        InvalidInput: there is something else among them.
    """
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, Sequence):
        return [tensor for item in outputs for tensor in flatten(item)]
    raise InvalidInput(f"the module returns {type(outputs).__name__}; return tensors")


def widened(module: nn.Module) -> nn.Module:
    """Return the module, or a copy in float32 where it holds bfloat16: as devices compute it."""
    if not any(t.dtype == torch.bfloat16 for t in module.state_dict().values()):
        return module
    import copy  # noqa: PLC0415 - only bfloat16 models need it

    return copy.deepcopy(module).float()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:500]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on its own future out of the worker's log and out of tests that fail on warnings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
