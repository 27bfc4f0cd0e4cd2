"""From points to the table: the smallest setting that proves enough on validation data, and its median over seeds."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

import numpy as np

from sizes.ledger import Point
from sizes.method import Method

SHARES: Final = (0.90, 0.95, 0.99)
_RESAMPLED: Final = 2000


def smallest(points: Sequence[Point], share: float) -> Point | None:
    """Return the point of fewest bytes that proves the share on the validation split; None if none does.

    Proof takes the margin of a retrain, for every method alike: the luckiest of many on the validation split is a
    little worse elsewhere.
    """
    enough = [point for point in points if point.keeps(share)]
    return min(enough, key=lambda point: point.bytes, default=None)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median (percentiles; seeds are what is resampled)."""
    drawn = np.random.default_rng(0).choice(np.array(values), (_RESAMPLED, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975), method="nearest")
    return float(low), float(high)


def best_points(by_seed: Mapping[int, Sequence[Point]]) -> dict[str, dict[str, Any] | None]:
    """Return, for each share, what one method needs.

    None where half of the seeds or more never get there; else bytes (median over the seeds, one that never gets there
    counting as infinite), its interval, the recovered gain on the test split (median of the points chosen), and how
    many seeds got there.
    """
    found: dict[str, dict[str, Any] | None] = {}
    for share in SHARES:
        chosen = {seed: smallest(points, share) for seed, points in by_seed.items()}
        there = {seed: point for seed, point in chosen.items() if point is not None}
        sizes = [float("inf") if point is None else float(point.bytes) for point in chosen.values()]
        middle = median(sizes)
        if middle == float("inf"):
            found[f"{share:.2f}"] = None
            continue
        low, high = interval(sizes)
        tests = [point.test for point in there.values() if point.test is not None]
        found[f"{share:.2f}"] = {
            "bytes": round(middle),
            "interval": [round(low), None if high == float("inf") else round(high)],
            "test": round(median(tests), 4) if tests else None,
            "seeds": len(there),
            "settings": {seed: point.setting for seed, point in there.items()},
        }
    return found


def table(methods: Sequence[Method], rows: Mapping[str, Mapping[str, Any]], seeds: int) -> list[str]:
    """Return the lines of one case's table, in Markdown.

    Args:
        methods: in order.
        rows: key of a method -> its `best_points`; a method without one is left out.
        seeds: how many there are; a cell where fewer got there says so.
    """
    titles = [f"{100 * share:.0f} % of the gain" for share in SHARES]
    lines = [f"| method | {' | '.join(titles)} |", f"|---|{'---:|' * len(SHARES)}"]
    for method in methods:
        if method.key in rows:
            cells = [_cell(rows[method.key][f"{share:.2f}"], seeds) for share in SHARES]
            title = f"**{method.title}**" if method.ours else method.title
            lines.append(f"| {title} | {' | '.join(cells)} |")
    ratios = [_ratio(methods, rows, f"{share:.2f}") for share in SHARES]
    return [*lines, f"| best peer / best of sprat | {' | '.join(ratios)} |"]


def _ratio(methods: Sequence[Method], rows: Mapping[str, Mapping[str, Any]], share: str) -> str:
    """Return how many times fewer bytes sprat's best row needs than the best peer's; below 1 where a peer is ahead."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for method in methods:
        if found := rows.get(method.key, {}).get(share):
            sizes[method.ours].append(found["bytes"])
    return f"{min(sizes[False]) / min(sizes[True]):.1f} times" if sizes[True] and sizes[False] else "-"


def _cell(found: Mapping[str, Any] | None, seeds: int) -> str:
    if found is None:
        return "-"
    low, high = found["interval"]
    spread = f"{low:,} to {'never' if high is None else f'{high:,}'}; " if seeds > 1 else ""  # one seed has none
    test = "?" if found["test"] is None else f"{100 * found['test']:.1f} %"
    fewer = "" if found["seeds"] == seeds else f"; {found['seeds']} of {seeds} seeds"
    return f"{found['bytes']:,} B ({spread}{test}{fewer})"
