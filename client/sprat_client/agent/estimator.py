"""Asks for local statistics, which a process of its own computes (`estimate`): from what, and what came of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from sprat_client.agent.child import ChildFailed, run_child
from sprat_client.agent.settings import StatisticsSettings

_CHILD: Final = "sprat_client.agent.estimate"


class StatisticsFailed(ChildFailed):
    """The process that computes local statistics died or did not end; the update may or may not be at fault."""

    code = "local-statistics.failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateJob:
    """What is to be computed, and from what.

    Attributes:
        folder: a release folder whose graph gives the norms' inputs.
        tensors: indices of the local tensors.
        samples: files or folders of inputs, in order; the first of them count first.
        settings: how many inputs are needed and used.
    """

    folder: Path
    tensors: tuple[int, ...]
    samples: tuple[Path, ...]
    settings: StatisticsSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimated:
    """Digests of the local tensors, which are in the store, by index; and how many inputs they come from."""

    sha256s: Mapping[int, bytes]
    samples: int


# (store folder, job) -> what was computed
Estimator: TypeAlias = Callable[[Path, EstimateJob], Estimated]


class SubprocessEstimator:
    """Runs `estimate.estimate_into` in a process of its own."""

    def __call__(self, store: Path, job: EstimateJob) -> Estimated:
        """See `estimate.estimate_into`.

        Raises:
            StatisticsFailed: the process died, or did not end in time.
        """
        asked = {
            "folder": str(job.folder),
            "tensors": list(job.tensors),
            "samples": [str(path) for path in job.samples],
            "least": job.settings.least,
            "most": job.settings.most,
        }
        result = run_child(_CHILD, store, asked, timeout_s=job.settings.timeout_s, failed=StatisticsFailed)
        sha256s = {int(index): bytes.fromhex(sha256) for index, sha256 in result["sha256s"].items()}
        return Estimated(sha256s=sha256s, samples=int(result["samples"]))
