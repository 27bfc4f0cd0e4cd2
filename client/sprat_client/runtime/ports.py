"""What the agent needs of a runtime: load a release folder, answer batches, say what it takes and gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from sprat_shared.errors import InvalidInput, SpratError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[np.generic]
else:
    Array = Any  # numpy is loaded with the first model


class ModelNotLoadable(SpratError):
    """The runtime refuses the release folder: a broken graph, a missing file, too little memory."""

    code = "runtime.not-loadable"


class InferenceFailed(SpratError):
    """The runtime failed on an input that fits the model's description: the model's fault, not the caller's."""

    code = "runtime.inference-failed"


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One input or output of a model.

    Attributes:
        name: as in the graph.
        dtype: numpy dtype of its values.
        shape: one entry per axis; None where the length is free (the batch axis).
        lengths: one entry per axis; what the graph calls a length that is free; None where it has no name, or is given.
    """

    name: str
    dtype: "np.dtype[np.generic]"
    shape: tuple[int | None, ...]
    lengths: tuple[str | None, ...] = ()


class ModelHost(Protocol):
    """One loaded model. `run` may be called from several threads."""

    @property
    def inputs(self) -> Sequence[PortSpec]:
        """Return what the model takes."""

    @property
    def outputs(self) -> Sequence[PortSpec]:
        """Return what it gives."""

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        """Return the outputs, in the order of `outputs`.

        Raises:
            InferenceFailed: the runtime failed.
        """


class ProbedHost(ModelHost, Protocol):
    """A loaded model whose outputs can be asked for one at a time."""

    def output(self, values: Mapping[str, Array], name: str) -> Array:
        """Return one output; what it does not depend on is not computed.

        Raises:
            InferenceFailed: the runtime failed.
        """


class Runtime(Protocol):
    """Loads models."""

    def load(self, folder: Path) -> ModelHost:
        """Load the release folder `folder` (`graph.onnx`, `t/<index>`).

        Raises:
            ModelNotLoadable: it cannot be loaded.
        """

    def warm_up(self) -> None:
        """Take the memory that the runtime takes once and for all, with the first model, whichever that is.

        Raises:
            ModelNotLoadable: the runtime does not run here.
        """


def fit_input(spec: PortSpec, value: Array) -> Array:
    """Return `value` as the model takes it: of its dtype, checked for shape.

    A float input takes any float or integer array, an integer input only integers.

    Raises:
        InvalidInput: shape or kind of values do not fit.
    """
    fits = len(value.shape) == len(spec.shape) and all(
        want is None or want == have for want, have in zip(spec.shape, value.shape, strict=True)
    )
    if not fits:
        want = "x".join("?" if n is None else str(n) for n in spec.shape)
        raise InvalidInput(f"input {spec.name!r}: the model takes shape {want}, got {'x'.join(map(str, value.shape))}")
    if value.dtype == spec.dtype:
        return value
    if value.dtype.kind in "fiub" and (spec.dtype.kind == "f" or value.dtype.kind in "iub"):
        return value.astype(spec.dtype)
    raise InvalidInput(f"input {spec.name!r}: the model takes {spec.dtype}, got {value.dtype}")
