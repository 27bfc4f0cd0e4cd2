"""Asks for a rebuild, which a process of its own does (`rebuild`): which updates, and what came of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from sprat_client.agent.child import ChildFailed, run_child
from sprat_client.agent.releases import Manifest, tensors_as_json, tensors_of_json
from sprat_shared.protocol.fields import Fields
from sprat_shared.wire.tensors import TensorTable

_CHILD: Final = "sprat_client.agent.rebuild"


class RebuildFailed(ChildFailed):
    """The rebuild's process died or did not end; the update may or may not be at fault."""

    code = "rebuild.failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildStep:
    """One update: the file that holds it, the weights digest that it must give, and the indices of local tensors."""

    payload: Path
    weights: str
    local: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The tensors of the new release, all of them in the store; local ones are zeros, until they are computed.

    Attributes:
        table: tensor table.
        sha256s: digest of each tensor, by index.
        peak_bytes: largest resident memory of the process; 0 where unknown.
    """

    table: TensorTable
    sha256s: tuple[bytes, ...]
    peak_bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            **tensors_as_json(self.table, self.sha256s),
            "peak_bytes": self.peak_bytes,
        }

    @classmethod
    def of(cls, value: Any) -> "Rebuilt":
        """Read the JSON object."""
        fields = Fields(value, "rebuild result")
        table, sha256s = tensors_of_json(fields)
        return cls(table=table, sha256s=sha256s, peak_bytes=fields.integer("peak_bytes"))


# (store folder, base release or None, steps) -> the new tensors
Rebuilder: TypeAlias = Callable[[Path, Manifest | None, Sequence[RebuildStep]], Rebuilt]


class SubprocessRebuilder:
    """Runs `rebuild.rebuild` in a process of its own.

    Args:
        timeout_s: before the process is killed.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def __call__(self, store: Path, base: Manifest | None, steps: Sequence[RebuildStep]) -> Rebuilt:
        """See `rebuild.rebuild`.

        Raises:
            RebuildFailed: the process died, or did not end in time.
        """
        job = {
            "base": None if base is None else base.as_json(),
            "steps": [[str(step.payload), step.weights, step.local] for step in steps],
        }
        return Rebuilt.of(run_child(_CHILD, store, job, timeout_s=self._timeout_s, failed=RebuildFailed))
