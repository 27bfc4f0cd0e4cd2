"""What the models see: clothes, digits and clip art, each in six splits that never meet.

Labels of `train` teach; labels of `test` say what sharing cost. `fit`, `tune`, `choose` and `certify` are inputs alone:
nothing that is chosen or certified has seen a label.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
from digits_demo import data as digits_data
from sizes.cases.case import CaseUnavailable
from sizes.cases.fashion import FOLDER as FASHION_FOLDER
from sizes.cases.fashion import _read as read_fashion

from sharing.clipart import pictures

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
SPLITS: Final = ("train", "tune", "choose", "certify", "test")
_SIZES: Final[Mapping[str, tuple[int, ...]]] = {
    "clothes": (6000, 1000, 1500, 4000, 4000),
    "digits": (2000, 400, 600, 1100, 900),
    "clipart": (2200, 400, 700, 1400, 1300),
}
_FIT: Final = 3000  # inputs of the train split that maps are fitted on, their labels unseen


@dataclass(frozen=True, slots=True)
class Domain:
    """One kind of input, split.

    Attributes:
        inputs: split -> (n, channels, height, width).
        labels: split -> (n,): the finest classes that there are; tasks are made of them.
    """

    inputs: Mapping[str, Images]
    labels: Mapping[str, Labels]


@cache
def domain(name: str, seed: int) -> Domain:
    """Return a domain's splits, drawn with the seed.

    Raises:
        CaseUnavailable: its data are not on this machine.
    """
    images, labels = {"clothes": _clothes, "digits": _digits, "clipart": pictures}[name]()
    sizes = _SIZES[name]
    order = np.random.default_rng((seed, 7)).permutation(len(images))[: sum(sizes)]
    parts = dict(zip(SPLITS, np.split(order, np.cumsum(sizes)[:-1]), strict=True))
    parts["fit"] = parts["train"][:_FIT]
    return Domain({key: images[at] for key, at in parts.items()}, {key: labels[at] for key, at in parts.items()})


@cache
def _clothes() -> tuple[Images, Labels]:
    if not FASHION_FOLDER.exists():
        raise CaseUnavailable(f"{FASHION_FOLDER} is not there; install Debian's package dataset-fashion-mnist")
    images: Images = read_fashion("train-images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32)
    return images / np.float32(255), read_fashion("train-labels-idx1", 8).astype(np.int64)


@cache
def _digits() -> tuple[Images, Labels]:
    digits = digits_data.clean(0)
    return digits.inputs, digits.labels
