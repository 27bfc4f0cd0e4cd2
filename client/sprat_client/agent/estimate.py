"""The local tensors of a release: running statistics of its batch norms, computed from this device's own inputs.

    python -m sprat_client.agent.estimate < job.json > result.json
Norm by norm in the order of the graph, so that each sees inputs computed with the new statistics of those before it,
as in training over the whole set of inputs at once: what passes a norm is scaled by the biased variance, what is kept
is the unbiased one (torch's convention). The sums are float64. The same inputs give the same bits on one machine.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sprat_client.agent.child import serve_job
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.estimator import Estimated, EstimateJob
from sprat_client.agent.samples import load_inputs
from sprat_client.agent.settings import StatisticsSettings
from sprat_client.agent.store import TensorStore
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_client.runtime.ports import Array, InferenceFailed, PortSpec, ProbedHost, fit_input
from sprat_shared.errors import InvalidInput, UpdateRejected
from sprat_shared.trust.statistics import NORM_OUTPUT, STATISTIC_INPUT
from sprat_shared.wire.tensors import raw_bytes, tensor_sha256

_BATCH: Final = 16
_NEEDED_MORE_THAN: Final = 1  # values of a channel: one has no variance


class StatisticsGraphRefused(UpdateRejected):
    """The release's statistics graph fails, or does not give the tensors that are signed as local."""

    code = "local-statistics.graph"


class StatisticsRefused(UpdateRejected):
    """The release needs statistics of this device's own inputs, and they cannot be computed."""

    code = "local-statistics.no-inputs"


class _Moments:
    """Count, mean and sum of squared deviations of each channel, taken up sample by sample (Chan et al., 1979)."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = np.zeros(channels)
        self._squares = np.zeros(channels)

    def add(self, sample: Array) -> None:
        """Take one sample of a norm's input, (channels, values)."""
        values = sample.astype(np.float64)
        mean = values.mean(axis=1)
        apart, count = mean - self.mean, values.shape[1]
        total = self.count + count
        self._squares += ((values - mean[:, None]) ** 2).sum(axis=1) + apart**2 * (self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    @property
    def biased(self) -> npt.NDArray[np.float64]:
        """Return the variance that the norm divides by in training."""
        return self._squares / self.count

    @property
    def unbiased(self) -> npt.NDArray[np.float64]:
        """Return the variance that it keeps."""
        return self._squares / (self.count - 1)


def estimate(host: ProbedHost, inputs: Array) -> dict[int, npt.NDArray[np.float32]]:
    """Return the statistics of every norm, (channels,) by index in the tensor table.

    Args:
        host: a graph with the inputs `t/<index>` for statistics and the outputs `norm:<mean>:<variance>` for what
            goes into each norm, (batch, channels, ...), in the order of the graph.
        inputs: (n, ...), as the model takes them.

    Raises:
        StatisticsGraphRefused: the graph is not of that form, or fails.
        StatisticsRefused: the statistics are not finite.
    """
    ports = {spec.name: spec for spec in host.inputs}
    model = [spec for name, spec in ports.items() if not name.startswith(STATISTIC_INPUT)]
    if len(model) != 1:
        raise StatisticsGraphRefused(f"the model has {len(model)} inputs; samples of one do not fit")
    fed = {name: _start(spec) for name, spec in ports.items() if name.startswith(STATISTIC_INPUT)}
    found: dict[int, npt.NDArray[np.float32]] = {}
    for output in host.outputs:
        mean, variance = _norm(output.name, fed)
        moments = _Moments(len(fed[mean]))
        for begin in range(0, len(inputs), _BATCH):
            batch = fit_input(model[0], inputs[begin : begin + _BATCH])
            for sample in _run(host, {**fed, model[0].name: batch}, output.name):
                moments.add(sample.reshape(len(fed[mean]), -1))
        if moments.count <= _NEEDED_MORE_THAN or not (np.isfinite(moments.mean) & np.isfinite(moments.unbiased)).all():
            raise StatisticsRefused(f"{output.name}: the statistics are not finite", code="local-statistics.not-finite")
        fed[mean], fed[variance] = (values.astype(np.float32) for values in (moments.mean, moments.biased))
        found[_index(mean)], found[_index(variance)] = fed[mean], moments.unbiased.astype(np.float32)
    return found


def _start(spec: PortSpec) -> npt.NDArray[np.float32]:
    """Return what stands for statistics that are not known yet: nothing that is asked for depends on them."""
    match spec.shape:
        case (int(channels),) if spec.dtype == np.float32:
            return np.ones(channels, np.float32)
    raise StatisticsGraphRefused(f"{spec.name} is {spec.dtype}{spec.shape}, not float32 per channel")


def _norm(output: str, fed: Mapping[str, Array]) -> tuple[str, str]:
    """Return the inputs that take mean and variance of a norm, from the name of its output."""
    named = [f"{STATISTIC_INPUT}{index}" for index in output.removeprefix(NORM_OUTPUT).split(":")]
    match named:
        case [mean, variance] if output.startswith(NORM_OUTPUT) and mean in fed and variance in fed:
            return mean, variance
    raise StatisticsGraphRefused(f"output {output!r:.80} of the graph is not named after statistics")


def _index(name: str) -> int:
    return int(name.removeprefix(STATISTIC_INPUT))


def _run(host: ProbedHost, values: Mapping[str, Array], output: str) -> Array:
    try:
        return host.output(values, output)
    except InferenceFailed as bad:
        raise StatisticsGraphRefused(str(bad)) from bad


def _chosen(job: EstimateJob) -> Array:
    """Return the inputs that are used: all of them, or as many as settings allow, evenly spread.

    Raises:
        StatisticsRefused: there are too few.
        InvalidInput: they cannot be read, or do not fit together.
    """
    read = [load_inputs(path) for path in job.samples]
    count = sum(map(len, read))
    if count < job.settings.least:
        raise StatisticsRefused(
            f"the release needs statistics of at least {job.settings.least} inputs of this device, it has {count}; "
            "give more with --unlabelled or --holdout, then assign the release again"
        )
    try:
        inputs = np.concatenate(read)
    except ValueError as bad:
        raise InvalidInput(
            f"unlabelled and holdout samples do not fit together: {bad}", code="holdout.invalid"
        ) from bad
    used = min(count, job.settings.most)
    return inputs[np.arange(used) * count // used]


def estimate_into(store: TensorStore, job: EstimateJob) -> Estimated:
    """Compute the local tensors of a release; they are durably in the store at return.

    Raises:
        StatisticsRefused: there are too few inputs, or their statistics are not finite.
        StatisticsGraphRefused: the graph does not give what was signed.
        ModelNotLoadable: the runtime refuses the graph.
        InvalidInput: the samples cannot be used.
    """
    inputs = _chosen(job)
    found = estimate(OnnxRuntime().load(job.folder), inputs)
    if set(found) != set(job.tensors):
        raise StatisticsGraphRefused(
            f"the graph gives statistics for tensors {sorted(found)}, the signed ones are {list(job.tensors)}"
        )
    sha256s = {index: tensor_sha256(values) for index, values in found.items()}
    for index, values in found.items():
        store.put(sha256s[index], raw_bytes(values))
    store.settle()
    return Estimated(sha256s=sha256s, samples=len(inputs))


def _work(store: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    asked = EstimateJob(
        folder=Path(job["folder"]),
        tensors=tuple(job["tensors"]),
        samples=tuple(Path(path) for path in job["samples"]),
        settings=StatisticsSettings(least=job["least"], most=job["most"]),
    )
    estimated = estimate_into(TensorStore(store, PosixDisk()), asked)
    sha256s = {str(index): sha256.hex() for index, sha256 in estimated.sha256s.items()}
    return {"sha256s": sha256s, "samples": estimated.samples}


if __name__ == "__main__":
    sys.exit(serve_job(_work))
