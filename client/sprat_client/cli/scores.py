"""The matrix of scores between models as a drawing: donors down, recipients across (PNG)."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sprat_shared.errors import InvalidInput

_INCHES_A_MODEL: Final = 1.1
_DOTS_PER_INCH: Final = 120


def check_png(output: Path) -> None:
    """Raise unless a matrix can be drawn into a file of this name.

    Raises:
        InvalidInput: it is no .png, or the extra `plot` is not installed.
    """
    if output.suffix.lower() != ".png":
        raise InvalidInput(f"--png {output}: call the file {output.with_suffix('.png')}")
    if find_spec("matplotlib") is None:
        raise InvalidInput(f"--png {output}: drawing needs the extra 'plot': pip install 'sprat[cli,plot]'")


def draw(matrix: Mapping[str, Any], output: Path) -> None:
    """Draw agreement and CKA of the best way of each pair, side by side.

    Raises:
        InvalidInput: the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - of the extra `plot`; no command but this one needs it

    names = matrix["models"]
    inches = 2.5 + _INCHES_A_MODEL * len(names)
    figure = Figure(figsize=(2 * inches, inches), layout="constrained")
    for ordinal, (score, title) in enumerate((("agreement", "agreement"), ("cka", "debiased CKA")), start=1):
        axes = figure.add_subplot(1, 2, ordinal)
        values = [[float("nan") if one is None else one for one in row] for row in matrix[score]]
        axes.imshow(values, vmin=0, vmax=1, cmap="cividis")
        axes.set_title(f"{title} of the best way", parse_math=False)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_xlabel("shares")
        axes.set_ylabel("donor")
        for row, of_row in enumerate(matrix[score]):
            for column, one in enumerate(of_row):
                if one is not None:
                    axes.text(column, row, f"{one:.2f}", ha="center", va="center", color="w" if one < 0.5 else "k")  # noqa: PLR2004
    try:
        figure.savefig(output, format="png", dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise InvalidInput(f"--png {output}: {error.strerror}") from None
