"""Real data of the site's tasks: clip art and its names, sentences of WordNet, telephone prompts in five languages.

Pictures are Debian's openclipart-png, their words those of their file names; sentences are the glosses of
wordnet-base; speech is that of the packages asterisk-core-sounds-{en,es,fr,it,ru}-wav, 8 kHz, one speaker each.
"""

import re
import unicodedata
import wave
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly
from sharing.clipart import KINDS
from sizes.cases.case import CaseUnavailable
from sizes.cases.glosses import FILES
from sizes.cases.openclipart import FOLDER
from sizes.cases.packages import fetched

from siting.networks import MINILM, MINILM_FOLDER

__all__ = ["KINDS", "LANGUAGES", "glosses", "mels", "named_pictures", "tokens"]

SOUNDS: Final = Path("/usr/share/asterisk/sounds")
LANGUAGES: Final = ("en", "es", "fr", "it", "ru")
_LARGEST: Final = 4_000_000  # pixels of a picture that is read
_WHITE: Final = 255
_RATE, _STEP, _WINDOW, _BANDS = 16000, 160, 400, 40
_CLS, _SEP, _UNKNOWN = 101, 102, 100


def named_pictures(side: int, most: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[str]]:
    """Return pictures (n, 3, side, side) on white, their kinds (n,) as places in `KINDS`, and the words of their names.

    Args:
        side: pixels.
        most: pictures of a kind, drawn.

    Raises:
        CaseUnavailable: the package or Pillow is not installed.
    """
    try:
        from PIL import Image  # noqa: PLC0415 - comes with mlxtend, and is needed here alone
    except ImportError as missing:
        raise CaseUnavailable("pictures cannot be read without Pillow: pip install pillow") from missing
    Image.MAX_IMAGE_PIXELS = None  # large ones are left out by their headers, and never decoded
    shown, kinds, names = [], [], []
    for kind, folder in enumerate(KINDS):
        files = {file.name: file for file in sorted((FOLDER / folder).rglob("*.png")) if said(file)}
        if not files:
            raise CaseUnavailable(f"{FOLDER / folder} has no pictures; install Debian's package openclipart-png")
        drawn = [list(files.values())[at] for at in np.random.default_rng(kind).permutation(len(files))]
        found = 0
        for file in drawn:
            with Image.open(file) as picture:
                if picture.width * picture.height > _LARGEST:
                    continue
                picture.thumbnail((side, side))
                whole = Image.new("RGBA", (side, side), (_WHITE,) * 4)
                own = picture.convert("RGBA")
                whole.alpha_composite(own, ((side - own.width) // 2, (side - own.height) // 2))
            shown.append(np.asarray(whole.convert("RGB")).transpose(2, 0, 1))
            kinds.append(kind)
            names.append(said(file))
            found += 1
            if found == most:
                break
    return np.stack(shown), np.array(kinds, np.int64), names


def said(file: Path) -> str:
    """Return the words of a file's name, without numbers and names of authors; '' where none are left."""
    words = re.findall(r"[a-z]{2,}", file.stem.lower().replace("_", " "))
    return " ".join(words[:8])


def glosses(most: int, seed: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return sentences of WordNet, and the field (n,) of each, one of 45.

    Raises:
        CaseUnavailable: the package is not installed.
    """
    found: list[tuple[str, int]] = []
    for path in FILES:
        if not path.exists():
            raise CaseUnavailable(f"{path} is not there; install Debian's package wordnet-base")
        for line in path.read_text(encoding="latin-1").splitlines():
            before, bar, gloss = line.partition(" | ")
            if bar and not line.startswith(" "):
                found.append((gloss.split("; ")[0].strip(), int(before.split(" ", 2)[1])))
    drawn = [found[at] for at in np.random.default_rng(seed).permutation(len(found))[:most]]
    return [text for text, _ in drawn], np.array([field for _, field in drawn], np.int64)


@cache
def _vocabulary() -> dict[str, int]:
    with zipfile.ZipFile(fetched(MINILM)) as archive:
        lines = archive.read(f"{MINILM_FOLDER}vocab.txt").decode().splitlines()
    return {word: number for number, word in enumerate(lines)}


def tokens(texts: Sequence[str], length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return word pieces and mask (n, length) of lower-cased texts, as BERT's uncased vocabulary has them."""
    ids, mask = np.zeros((len(texts), length), np.int64), np.zeros((len(texts), length), np.int64)
    for row, text in enumerate(texts):
        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        pieces = [piece for word in re.findall(r"\w+|[^\w\s]", plain) for piece in _pieces(word)]
        found = [_CLS, *pieces[: length - 2], _SEP]
        ids[row, : len(found)], mask[row, : len(found)] = found, 1
    return ids, mask


def _pieces(word: str) -> list[int]:
    """Return the longest pieces of a word, from its beginning."""
    vocabulary, found, begin = _vocabulary(), [], 0
    while begin < len(word):
        for end in range(len(word), begin, -1):
            piece = word[begin:end] if begin == 0 else f"##{word[begin:end]}"
            if piece in vocabulary:
                found.append(vocabulary[piece])
                begin = end
                break
        else:
            return [_UNKNOWN]
    return found


def mels(frames: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return mel spectrograms (n, frames, 40) of prompts and their languages (n,), as places in `LANGUAGES`.

    Raises:
        CaseUnavailable: a package is not installed.
    """
    heard, languages = [], []
    for language, code in enumerate(LANGUAGES):
        files = sorted(file for folder in SOUNDS.glob(f"{code}_*") for file in folder.rglob("*.wav"))
        if not files:
            raise CaseUnavailable(f"{SOUNDS} has no {code}; install Debian's package asterisk-core-sounds-{code}-wav")
        for file in files:
            mel = _mel(_samples(file))
            if len(mel) >= frames // 2 and mel.max() > 0:
                whole = np.tile(mel, (-(-frames // len(mel)), 1))[:frames]
                heard.append(whole)
                languages.append(language)
    return np.stack(heard).astype(np.float32), np.array(languages, np.int64)


def _samples(file: Path) -> npt.NDArray[np.float64]:
    with wave.open(str(file)) as opened:
        raw = np.frombuffer(opened.readframes(opened.getnframes()), "<i2") / 32768
        found: npt.NDArray[np.float64] = resample_poly(raw, _RATE, opened.getframerate())
    loud = np.sqrt(np.mean(found**2)) if len(found) else 0.0
    return found * (10 ** (-30 / 20) / loud) if loud > 0 else found


def _mel(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return power in 40 mel bands, every 10 ms over 25 ms (Slaney's scale and areas, as librosa has them)."""
    if len(samples) < _WINDOW:
        return np.zeros((0, _BANDS))
    padded = np.pad(samples, _WINDOW // 2, mode="reflect")
    count = 1 + (len(padded) - _WINDOW) // _STEP
    frames = np.lib.stride_tricks.as_strided(
        padded, (count, _WINDOW), (padded.strides[0] * _STEP, padded.strides[0]), writeable=False
    )
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW + 1)[:-1], axis=1)) ** 2
    found: npt.NDArray[np.float64] = power @ _bands().T
    return found


@cache
def _bands() -> npt.NDArray[np.float64]:
    edge = 1000 / (200 / 3)  # mels at 1 kHz: below, the scale is linear
    step = np.log(6.4) / 27

    def hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(mel < edge, mel * 200 / 3, 1000 * np.exp(step * (mel - edge)))

    top = edge + np.log(_RATE / 2 / 1000) / step
    points = hertz(np.linspace(0, top, _BANDS + 2))
    bins = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
    up = (bins - points[:-2, None]) / np.diff(points)[:-1, None]
    down = (points[2:, None] - bins) / np.diff(points)[1:, None]
    areas: npt.NDArray[np.float64] = np.maximum(0, np.minimum(up, down)) * (2 / (points[2:] - points[:-2]))[:, None]
    return areas
