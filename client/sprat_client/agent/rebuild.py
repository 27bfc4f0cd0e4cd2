"""Rebuilds weights in a process of its own, so that nothing the agent has loaded can change the arithmetic.

    python -m sprat_client.agent.rebuild < job.json > result.json
First the golden vector is computed (`check_arithmetic`): a process that would compute other bits refuses by name. Then
each update is applied to the release before it, into the tensor store, and only the expected weights digest is taken.
"""

import ctypes
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from sprat_client.agent.durable import Disk, PosixDisk
from sprat_client.agent.lock import FolderLock
from sprat_client.agent.releases import Manifest, tensors_as_json, tensors_of_json
from sprat_client.agent.store import StoredTensors, TensorStore, file_sha256
from sprat_shared.apply import apply_update, check_arithmetic
from sprat_shared.errors import SpratError, TryLater, UpdateRejected
from sprat_shared.protocol.fields import Fields
from sprat_shared.wire.tensors import Array, TensorTable, raw_bytes

_PR_SET_PDEATHSIG: Final = 1
_PEAK: Final = "VmHWM:"


class RebuildFailed(SpratError):
    """The rebuild's process died or did not end; the update may or may not be at fault."""

    code = "rebuild.failed"
    exit_code = 70


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildStep:
    """One update: the file that holds it and the weights digest that it must give."""

    payload: Path
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The tensors of the new release, all of them in the store.

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


class _StoreSink:
    """Puts rebuilt tensors into the store (`apply.TensorSink`)."""

    def __init__(self, store: TensorStore) -> None:
        self._store = store
        self.sha256s: dict[int, bytes] = {}

    def begin(self, table: TensorTable) -> None:
        """Take the table of the new release."""
        self.table = table

    def keep(self, index: int, sha256: bytes) -> None:
        """Take a tensor that the base has already."""
        self.sha256s[index] = sha256

    def put(self, index: int, array: Array, sha256: bytes) -> None:
        """Write a tensor, unless the store has it."""
        self.sha256s[index] = sha256
        if not (self._store.holds(sha256, array.nbytes) and file_sha256(self._store.path(sha256)) == sha256):
            self._store.put(sha256, raw_bytes(array))


def rebuild(store: TensorStore, base: Manifest | None, steps: Sequence[RebuildStep]) -> Rebuilt:
    """Apply updates one after the other; every tensor of the last release is durably in the store at return.

    Peak memory: the mapped base and three times the largest tensor.

    Raises:
        UnsafeArithmetic: this process would compute other bits.
        UpdateRejected: an update is malformed, made for other weights, or gives other weights than expected.
        StoreCorrupted: a file of the base does not have its bytes any more.
    """
    check_arithmetic()
    source = None if base is None else StoredTensors(base.table, base.sha256s, store)
    if source is not None:
        source.check_all()
    for step in steps:
        sink = _StoreSink(store)
        with step.payload.open("rb") as file:
            payload = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with its last view
        apply_update(memoryview(payload), source, sink, expected=step.weights)
        store.settle()
        source = StoredTensors(sink.table, [sink.sha256s[index] for index in range(len(sink.table))], store)
    if source is None:
        raise UpdateRejected("an update without a step")
    sha256s = tuple(source.sha256(index) for index in range(len(source.table)))
    return Rebuilt(table=source.table, sha256s=sha256s, peak_bytes=_peak_bytes())


class SubprocessRebuilder:
    """Runs `rebuild` in a process of its own.

    Args:
        timeout_s: before the process is killed.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    def __call__(self, store: Path, base: Manifest | None, steps: Sequence[RebuildStep]) -> Rebuilt:
        """See `rebuild`.

        Raises:
            RebuildFailed: the process died, or did not end in time.
        """
        job = {
            "store": str(store),
            "base": None if base is None else base.as_json(),
            "steps": [[str(step.payload), step.weights] for step in steps],
            "parent": os.getpid(),
        }
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            done = subprocess.run(  # our own interpreter and module
                [sys.executable, "-m", "sprat_client.agent.rebuild"],
                input=json.dumps(job).encode(),
                stdout=subprocess.PIPE,
                timeout=self._timeout_s,
                check=False,
                env={**os.environ, **one_thread},
            )
        except subprocess.TimeoutExpired:
            raise RebuildFailed(f"the rebuild did not end in {self._timeout_s:g} s and was killed") from None
        try:
            result = json.loads(done.stdout)
        except ValueError:
            raise RebuildFailed(
                f"the rebuild's process ended with status {done.returncode} and without a result; "
                "a status of -9 means that memory ran out"
            ) from None
        if "error" in result:
            raise _ERRORS[result["kind"]](result["error"], code=result["code"])
        return Rebuilt.of(result)


_ERRORS: Final[Mapping[str, type[SpratError]]] = {
    "rejected": UpdateRejected,
    "later": TryLater,
    "failed": SpratError,
}


def _kind(error: SpratError) -> str:
    return next(kind for kind, base in _ERRORS.items() if isinstance(error, base))


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(_PEAK)), 0)


def _die_with(parent: int) -> None:
    """Let the kernel end this process when the agent ends, and nothing else: two rebuilds must not write at once."""
    for stop in (signal.SIGTERM, signal.SIGINT):  # a service's stop reaches the whole group; the agent decides
        signal.signal(stop, signal.SIG_IGN)
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:
        sys.exit(1)


def main() -> int:
    """Read a job on stdin, write the result or the error as JSON on stdout."""
    job = json.load(sys.stdin)
    _die_with(job["parent"])
    root = Path(job["store"])
    disk: Disk = PosixDisk()
    base = None if job["base"] is None else Manifest.of(job["base"])
    steps = [RebuildStep(payload=Path(payload), weights=weights) for payload, weights in job["steps"]]
    try:
        with FolderLock(root / "rebuild.lock", wait=True):
            result = rebuild(TensorStore(root, disk), base, steps).as_json()
    except SpratError as bad:
        result = {"error": str(bad), "code": bad.code, "kind": _kind(bad)}
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
