"""The curve of a retrain: what each update that was tried took and kept, as records and as a drawing (PNG or SVG)."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sprat_client.cli.output import size
from sprat_shared.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = Mapping[str, Any]

FORMATS: Final = frozenset({".png", ".svg"})
"""What a drawing can be, by the end of its file's name."""

_INCHES: Final = (7.5, 4.6)
_DOTS_PER_INCH: Final = 150
_MARK: Final = "#2563eb"
_CHOSEN: Final = "#dc2626"
_SHAPES: Final = {"factors": "o", "subspace": "s", "dense": "D", "post-hoc": "^", "lossless": "v"}
_FAINT: Final = "#d1d5db"
_LONG: Final = 10_000_000  # bytes from which whole numbers run into each other
_LOWEST: Final = -1.0  # a share far below zero would press the rest of the curve flat


def points_of(release: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every point that the retrain of this release tried, fewest bytes first; `chosen` marks its own.

    Raises:
        NotFound: the release was not made by a retrain.
    """
    metrics = release["metrics"]
    curve = metrics.get("curve")
    if not curve:
        name = f"{release['model']}@{release['number']}"
        raise NotFound(f"{name} was {release['origin']}, not retrained here: it has no curve")
    points = [{**point, "chosen": point == metrics.get("chosen")} for point in curve]
    return sorted(points, key=lambda point: point["update_bytes"])


def check_drawable(output: Path) -> None:
    """Raise unless a curve can be drawn into a file of this name.

    Raises:
        InvalidInput: it is neither .png nor .svg, or the extra `plot` is not installed.
    """
    if output.suffix.lower() not in FORMATS:
        raise InvalidInput(f"-o {output}: a curve is drawn as .png or .svg; call the file {output.with_suffix('.png')}")
    if find_spec("matplotlib") is None:
        raise InvalidInput(
            f"-o {output}: drawing needs the extra 'plot' (matplotlib is missing): pip install 'sprat[cli,plot]'"
        )


def draw(release: Mapping[str, Any], output: Path) -> None:
    """Draw the curve into a file: bytes on a log axis, share of the gain upwards, the chosen point ringed and named.

    Args:
        release: as the API shows it.
        output: .png or .svg, checked by `check_drawable`; it is replaced.

    Raises:
        NotFound: the release was not made by a retrain.
        InvalidInput: the file cannot be written.
    """
    figure = drawing(release)
    try:
        figure.savefig(output, format=output.suffix.lower()[1:], dpi=_DOTS_PER_INCH)
    except OSError as error:
        raise InvalidInput(f"-o {output}: {error.strerror}") from None


def drawing(release: Mapping[str, Any]) -> "Figure":
    """Return the curve as a figure of matplotlib; see `draw`."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - of the extra `plot`; no command but this one needs it

    points, metrics = points_of(release), release["metrics"]
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    title = f"{release['model']}@{release['number']}: gain kept by size of the update (validation split)"
    axes.set_title(title, parse_math=False)
    _draw_points(axes, points)
    _draw_target(axes, metrics)
    _set_axes(axes, points, metrics)
    return figure


def _draw_points(axes: "Axes", points: Sequence[Point]) -> None:
    named: set[str] = set()
    for point in points:
        method = point["method"]
        at = (point["update_bytes"], max(point["share"], _LOWEST))
        axes.errorbar(
            *at,
            yerr=point["error"],
            fmt=_SHAPES.get(method, "X"),
            label=None if method in named else method,
            color=_MARK,
            markerfacecolor=_MARK if point["keeps"] else "white",
            markersize=6,
            elinewidth=1,
        )
        named.add(method)
        if point["chosen"]:
            axes.plot(*at, "o", markersize=14, markerfacecolor="none", markeredgecolor=_CHOSEN, markeredgewidth=2)
            label = f"{point['update_bytes']:,} bytes, {100 * point['share']:.1f} %"
            left = point["update_bytes"] ** 2 > points[0]["update_bytes"] * points[-1]["update_bytes"]
            axes.annotate(
                label,
                at,
                xytext=(-14 if left else 14, -22),
                textcoords="offset points",
                ha="right" if left else "left",
                color=_CHOSEN,
            )


def _draw_target(axes: "Axes", metrics: Mapping[str, Any]) -> None:
    keep, budget = metrics.get("keep"), metrics.get("budget")
    if keep is not None:
        axes.axhline(keep, color=_CHOSEN, linestyle="--", linewidth=1, label=f"{100 * keep:g} % asked for")
    if budget is not None:
        axes.axvline(budget, color=_CHOSEN, linestyle="--", linewidth=1, label=f"at most {size(budget)}")
    axes.legend(loc="best", edgecolor="none")


def _set_axes(axes: "Axes", points: Sequence[Point], metrics: Mapping[str, Any]) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator, PercentFormatter  # noqa: PLC0415

    sizes = [point["update_bytes"] for point in points] + [metrics.get("budget") or points[0]["update_bytes"]]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) * 0.7, max(sizes) * 1.5)
    wide, narrow = max(sizes) > 1000 * min(sizes), max(sizes) < 8 * min(sizes)
    digits = (1.0,) if wide else tuple(map(float, range(1, 10))) if narrow else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=digits))
    axes.xaxis.set_minor_locator(NullLocator())
    whole = FuncFormatter(lambda count, _at: f"{count:,.0f}")
    axes.xaxis.set_major_formatter(whole if max(sizes) < _LONG else EngFormatter("B"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("bytes of the update")
    axes.set_ylabel("share of the full retrain's gain")
