"""onnxruntime, but for one release, which answers as a test wants: wrong, late, not at all."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_client.runtime.ports import Array, ModelHost

Spoil = Callable[[list[Array]], list[Array]]  # outputs as the release gives them to outputs as they are given


@dataclass
class SpoiledRuntime:
    """Loads release folders; requests of more than one sample to `release` go through `spoil`.

    Validation's timing, warm-up and made-up samples are of one sample, so what a test asks for begins in shadow or
    trial, as long as the device has no holdout.
    """

    release: int
    spoil: Spoil

    def load(self, folder: Path) -> ModelHost:
        """See `Runtime.load`."""
        host = OnnxRuntime().load(folder)
        release = json.loads((folder / "manifest.json").read_bytes())["release"]
        return _Spoiled(host, self.spoil) if release == self.release else host

    def warm_up(self) -> None:
        """See `Runtime.warm_up`."""


class _Spoiled:
    def __init__(self, host: ModelHost, spoil: Spoil) -> None:
        self._host, self._spoil = host, spoil
        self.inputs, self.outputs = host.inputs, host.outputs

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        """See `ModelHost.run`."""
        outputs = self._host.run(values)
        return self._spoil(outputs) if len(outputs[0]) > 1 else outputs
