"""The default runtime: onnxruntime on the CPU, one thread, weights mapped from the release folder.

Weights stay the mapped pages of the store's files, shared with other sessions and given back under pressure, only
where onnxruntime neither repacks nor folds them: `session.disable_prepacking`, and no fusion of convolution and batch
norm. That costs time for convolutions; `prepack=True` trades the memory back. Last bits differ between the two, so
releases are compared under one setting.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from sprat_client.runtime.background import giving_way

if TYPE_CHECKING:
    from sprat_client.runtime.onnxruntime_model import OnnxModel


class OnnxRuntime:
    """Loads release folders into onnxruntime.

    Args:
        threads: threads per session; more than one hurts beside a busy process.
        prepack: let onnxruntime repack and fold weights into memory of its own.
    """

    def __init__(self, *, threads: int = 1, prepack: bool = False) -> None:
        self._threads, self._prepack = threads, prepack

    def load(self, folder: Path) -> "OnnxModel":
        """See `Runtime.load`."""
        # numpy and onnxruntime: 150 ms and 40 MB that an agent without a model need not have
        from sprat_client.runtime.onnxruntime_model import open_model  # noqa: PLC0415

        def opened() -> "OnnxModel":
            return open_model(folder, threads=self._threads, prepack=self._prepack)

        return giving_way(opened) if self._threads == 1 else opened()  # threads of a session would stay nice

    def warm_up(self) -> None:
        """See `Runtime.warm_up`."""
        from sprat_client.runtime.onnxruntime_model import warm_up  # noqa: PLC0415  # likewise

        warm_up(threads=self._threads, prepack=self._prepack)
