"""Reads clip art of Debian's openclipart-png: pictures of a size, labelled by the folder that they lie in."""

import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sizes.cases.case import CaseUnavailable

FOLDER: Final = Path("/usr/share/openclipart/png")
SIDE: Final = 48
_LARGEST: Final = 4_000_000  # pixels of a picture that is read
_WHITE: Final = 255


@cache
def pictures(kinds: Sequence[str], most: int | None = None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return pictures (n, 3, 48, 48) on white, and their kinds (n,), as places in `kinds`.

    Args:
        kinds: folders; a picture that lies in several belongs to the first. A tuple: what was read is kept.
        most: of a kind, drawn; None: all, by name.

    Raises:
        CaseUnavailable: the package or Pillow is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415 - comes with mlxtend, and is needed here alone
    except ImportError as missing:
        raise CaseUnavailable("pictures cannot be read without Pillow: pip install pillow") from missing
    shown, labels = [], []
    seen: set[str] = set()
    for kind, name in enumerate(kinds):
        files = {file.name: file for file in sorted((FOLDER / name).rglob("*.png"))}
        if not files:
            raise CaseUnavailable(f"{FOLDER / name} has no pictures; install Debian's package openclipart-png")
        own = [file for name, file in sorted(files.items()) if name not in seen and _pixels(file) <= _LARGEST]
        seen.update(files)
        drawn = range(len(own)) if most is None else np.random.default_rng(kind).permutation(len(own))[:most]
        for at in drawn:
            with Image.open(own[at]) as picture:
                picture.thumbnail((SIDE, SIDE))
                whole = Image.new("RGBA", (SIDE, SIDE), (_WHITE, _WHITE, _WHITE, _WHITE))
                own_size = picture.convert("RGBA")
                whole.alpha_composite(own_size, ((SIDE - own_size.width) // 2, (SIDE - own_size.height) // 2))
            shown.append(np.asarray(whole.convert("RGB")).transpose(2, 0, 1))
            labels.append(kind)
    return np.stack(shown), np.array(labels, np.int64)


def _pixels(file: Path) -> int:
    """Return width times height of a PNG file, out of its header."""
    with file.open("rb") as opened:
        width, height = struct.unpack(">16x2I", opened.read(24))
    return int(width * height)
