"""What is known of sharing, as drawings (PNG): scores between models, and what each bound would save."""

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
    _save(figure, output)


def draw_front(result: Mapping[str, Any], budgets: Mapping[str, float], output: Path) -> None:
    """Draw the share of all bytes that is saved within each bound, the budgets, and what the plan saves.

    Args:
        result: of a plan.
        budgets: of each model.
        output: the file.

    Raises:
        InvalidInput: the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - of the extra `plot`

    total = max(1, result["total_bytes"])
    bounds = [100 * point["bound"] for point in result["front"]]
    saved = [100 * point["saved_bytes"] / total for point in result["front"]]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.step(bounds, saved, where="post", label="what each bound would save, as measured")
    for budget in sorted(set(budgets.values())):
        axes.axvline(100 * budget, color="grey", linestyle=":")
    certified = [100 * one["levels"][0]["bound"] for one in result["chosen"]]
    if certified:
        axes.plot(max(certified), 100 * result["saved_bytes"] / total, "o", color="k", label="the plan, certified")
    axes.set_xlabel("largest bound of a model, points (dotted: budgets)")
    axes.set_ylabel("bytes saved, %")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.legend()
    _save(figure, output)


def _save(figure: Any, output: Path) -> None:
    try:
        figure.savefig(output, format="png", dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise InvalidInput(f"--png {output}: {error.strerror}") from None
