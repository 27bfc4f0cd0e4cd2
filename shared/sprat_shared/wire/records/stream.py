"""Where the records of a file put their integers and frames, and from where they take them, in order."""

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from sprat_shared.errors import InvalidInput, MalformedUpdate
from sprat_shared.wire.integers import MAX_LOG2_LANES, Family, IntegerDecoder, IntegerEncoder
from sprat_shared.wire.scales import SCALES
from sprat_shared.wire.tensors import REBUILDABLE, TensorSpec

MAX_COEFFICIENTS: Final = 1 << 20
_FIRST_SCALE: Final = 128
_Integer = TypeVar("_Integer", bound=np.signedinteger)


class RecordWriter:
    """Collects what the records of one file say."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self._runs: list[tuple[Family, npt.NDArray[Any] | Sequence[int]]] = []
        self._scale = _FIRST_SCALE
        self._seed: int | None = None
        self._coefficients: npt.NDArray[np.int16] | None = None

    def put(self, family: Family, values: npt.NDArray[Any] | Sequence[int]) -> None:
        """Append a run of integers, arrays row-major."""
        self._runs.append((family, values))

    def put_scale(self, scale: int) -> None:
        """Append a scale, as the difference to the one before."""
        self.put(Family.SCALE, [scale - self._scale])
        self._scale = scale

    def put_seed(self, seed: int) -> None:
        """Append the seed of what is drawn, once for the file.

        Raises:
            InvalidInput: an earlier record has another.
        """
        if self._seed is None:
            self._seed = seed
            self.put(Family.SEED, [seed])
        if self._seed != seed:
            raise InvalidInput(f"seeds {self._seed} and {seed}: all records of a file have one")

    def put_coefficients(self, q: npt.NDArray[np.int16]) -> None:
        """Append the coefficients of subspaces, once for the file.

        Raises:
            InvalidInput: an earlier record has others, or there are too many.
        """
        if self._coefficients is None:
            _check_coefficients(q.size)
            self._coefficients = q
            self.put(Family.COUNT, [q.size])
            self.put(Family.CORE, q)
        if self._coefficients is not q and not np.array_equal(self._coefficients, q):
            raise InvalidInput("two records have other coefficients: all records of a file share them")

    def put_frame(self, frame: bytes | memoryview) -> None:
        """Append a frame and its length."""
        self.put(Family.LENGTH, [len(frame)])
        self.frames.append(bytes(frame))

    def finish(self) -> tuple[int, bytes]:
        """Return log2 of the lanes and the integer stream."""
        log2_lanes = _lanes_for(sum(np.size(values) for _, values in self._runs))
        integers = IntegerEncoder(log2_lanes)
        for family, values in self._runs:
            integers.put(family, values)
        return log2_lanes, integers.finish()


def _lanes_for(integers: int) -> int:
    """Return log2 of the lanes: one until 2**17 integers, then one (4 bytes) for every 512 to 1,024 of them."""
    return 0 if integers < 1 << 17 else min(MAX_LOG2_LANES, (integers >> 9).bit_length() - 1)


class RecordReader:
    """Gives the records of one file what they say; nothing is trusted, and memory follows what was read, not declared.

    Raises:
        MalformedUpdate: from every method, when the file is cut or corrupted.
    """

    def __init__(self, stream: memoryview, log2_lanes: int, frames: memoryview) -> None:
        self._integers = IntegerDecoder(stream, log2_lanes)
        self._frames = frames
        self._scale = _FIRST_SCALE
        self._seed: int | None = None
        self._coefficients: npt.NDArray[np.int16] | None = None

    @property
    def integer_bytes_read(self) -> int:
        """Return how many bytes of the integer stream were read so far."""
        return self._integers.bytes_read

    def take_one(self, family: Family) -> int:
        """Return the next integer."""
        return self._integers.take_one(family)

    def take(self, family: Family, count: int, dtype: type[_Integer]) -> npt.NDArray[_Integer]:
        """Return the next `count` integers, which `dtype` must hold: (count,)."""
        out, at = np.empty(count, dtype), 0
        for chunk in self._integers.chunks(family, count):
            out[at : at + chunk.size] = chunk
            at += chunk.size
        return out

    def chunks(self, family: Family, count: int) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the next `count` integers in pieces."""
        return self._integers.chunks(family, count)

    def take_scale(self, spec: TensorSpec) -> int:
        """Return the next scale."""
        self._scale += self.take_one(Family.SCALE)
        check_scale(spec, self._scale)
        return self._scale

    def take_seed(self) -> int:
        """Return the file's seed."""
        if self._seed is None:
            self._seed = self.take_one(Family.SEED)
        return self._seed

    def take_coefficients(self) -> npt.NDArray[np.int16]:
        """Return the file's coefficients, int16 (count,)."""
        if self._coefficients is None:
            count = self.take_one(Family.COUNT)
            _check_coefficients(count)
            self._coefficients = self.take(Family.CORE, count, np.int16)
        return self._coefficients

    def take_frame(self) -> memoryview:
        """Return the next frame, a view of the file."""
        length = self.take_one(Family.LENGTH)
        if length > len(self._frames):
            raise MalformedUpdate(f"a frame takes {length} bytes, {len(self._frames)} are there; the file is cut")
        frame, self._frames = self._frames[:length], self._frames[length:]
        return frame

    def finish(self) -> None:
        """Check that everything was read."""
        self._integers.finish()
        if self._frames:
            raise MalformedUpdate(f"{len(self._frames)} bytes after the last record")


def _check_coefficients(count: int) -> None:
    if not 0 < count <= MAX_COEFFICIENTS:
        raise InvalidInput(f"{count} coefficients: a subspace has 1 to {MAX_COEFFICIENTS}")


def check_scale(spec: TensorSpec, scale: int) -> None:
    """Raise InvalidInput unless there is such a scale."""
    if not 0 <= scale < SCALES:
        raise InvalidInput(f"tensor {spec.name!r}: scale {scale} is not 0 to {SCALES - 1}")


def check_rebuildable(spec: TensorSpec) -> None:
    """Raise InvalidInput unless integers times a step can be added to this tensor."""
    if spec.dtype not in REBUILDABLE:
        raise InvalidInput(f"tensor {spec.name!r}: {spec.dtype} can change only by a lossless record")
