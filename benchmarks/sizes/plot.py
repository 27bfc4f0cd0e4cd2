"""The plot: bytes on a logarithmic axis against recovered gain, one panel a case.

Of each method those settings are drawn that are worth their bytes: by the validation split, whose medians over the
seeds no smaller setting reaches. What they recover is of the test split.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from sizes.ledger import Point
from sizes.method import Method

LOWEST = -0.05
COLOURS = (*(f"C{number}" for number in range(10)), "black", "navy")
LINES = ("-", "--", ":")
COLUMNS = 3


def draw(methods: Sequence[Method], points: Mapping[str, Mapping[str, Mapping[int, Sequence[Point]]]], to: Path) -> str:
    """Write the plot and say so, or say why there is none.

    Args:
        methods: in order of the legend.
        points: case -> key of a method -> seed -> its points.
        to: PNG file.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "no plot: matplotlib is not installed (it comes with mlxtend: pip install mlxtend)"
    import matplotlib as mpl  # noqa: PLC0415 - only where it is installed

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415 - after the choice of what draws

    across = min(len(points), COLUMNS)
    down = math.ceil(len(points) / across)
    figure, panels = plt.subplots(
        down,
        across,
        figsize=(max(9.0, 6.2 * across), 2.2 + 4.4 * down),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    drawn = {}
    for panel in panels.flat[len(points) :]:
        panel.set_axis_off()
    for panel, (case, of_case) in zip(panels.flat, points.items(), strict=False):
        for number, method in enumerate(methods):
            if method.key not in of_case:
                continue
            way = front(of_case[method.key])
            if not way:
                continue
            style = {"linewidth": 2.2, "marker": "o"} if method.ours else {"linewidth": 1.1, "marker": "."}
            x, y = zip(*way, strict=True)
            turn, colour = divmod(number, len(COLOURS))
            [drawn[number]] = panel.plot(x, y, LINES[turn], label=method.title, color=COLOURS[colour], **style)
        panel.set(title=case, xscale="log", xlabel="bytes of the update", ylim=(LOWEST, 1.1))
        panel.grid(visible=True, alpha=0.3)
    for panel in panels[:, 0]:
        panel.set_ylabel("recovered gain, test split, median of seeds")
    lines = [drawn[number] for number in sorted(drawn)]
    figure.legend(handles=lines, fontsize=8, loc="outside lower center", ncols=COLUMNS)
    figure.savefig(to, dpi=110)
    return f"plot: {to} ({to.stat().st_size / 1000:.0f} kB)"


def front(by_seed: Mapping[int, Sequence[Point]]) -> list[tuple[float, float]]:
    """Return (bytes, recovered gain on the test split) of the settings worth their bytes, medians over the seeds."""
    together: dict[str, list[Point]] = {}
    for point in (point for points in by_seed.values() for point in points):
        together.setdefault(point.setting, []).append(point)
    known = []
    for same in together.values():
        tests = [point.test for point in same if point.test is not None]
        if tests:
            size, validation = median(point.bytes for point in same), median(point.validation for point in same)
            known.append((float(size), validation, median(tests)))
    worth: list[tuple[float, float]] = []
    best = -math.inf
    for size, validation, test in sorted(known, key=lambda one: (one[0], -one[1])):
        if validation > best:
            best = validation
            worth.append((size, test))
    return worth
