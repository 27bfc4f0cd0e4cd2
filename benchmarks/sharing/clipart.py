"""Clip art of Debian's openclipart-png, by folder: all pictures of eight kinds, 48 x 48 on white."""

import struct
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from sizes.cases.case import CaseUnavailable

FOLDER: Final = Path("/usr/share/openclipart/png")
_SIDE: Final = 48
_LARGEST: Final = 4_000_000  # pixels of a picture that is read
_WHITE: Final = 255
KINDS: Final = (
    *("animals", "computer", "food", "people", "recreation", "shapes", "signs_and_symbols", "transportation"),
)


@cache
def pictures() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the pictures (n, 3, 48, 48) in [-1, 1] and their kinds (n,), as places in `KINDS`."""
    try:
        from PIL import Image  # noqa: PLC0415 - comes with mlxtend, and is needed here alone
    except ImportError as missing:
        raise CaseUnavailable("pictures cannot be read without Pillow: pip install pillow") from missing
    shown, kinds = [], []
    seen: set[str] = set()  # a picture may lie in several folders, and belongs to the first
    for kind, name in enumerate(KINDS):
        files = {file.name: file for file in sorted((FOLDER / name).rglob("*.png"))}
        if not files:
            raise CaseUnavailable(f"{FOLDER / name} has no pictures; install Debian's package openclipart-png")
        own = [file for name, file in sorted(files.items()) if name not in seen and _pixels(file) <= _LARGEST]
        seen.update(files)
        for file in own:
            with Image.open(file) as picture:
                picture.thumbnail((_SIDE, _SIDE))
                whole = Image.new("RGBA", (_SIDE, _SIDE), (_WHITE, _WHITE, _WHITE, _WHITE))
                drawn = picture.convert("RGBA")
                whole.alpha_composite(drawn, ((_SIDE - drawn.width) // 2, (_SIDE - drawn.height) // 2))
            shown.append(np.asarray(whole.convert("RGB")).transpose(2, 0, 1))
            kinds.append(kind)
    return np.stack(shown).astype(np.float32) / 127.5 - 1, np.array(kinds, np.int64)


def _pixels(file: Path) -> int:
    """Return width times height of a PNG file, out of its header."""
    with file.open("rb") as opened:
        width, height = struct.unpack(">16x2I", opened.read(24))
    return int(width * height)
