"""The row of what sprat does where nobody names a strategy: it may take any point of its trained rows."""

from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from sizes.ledger import Point
from sizes.method import Method

_ROWS: Final = ("factors", "subspace")
_ELSE: Final = "dense"  # where neither proves enough
AUTO: Final = Method(
    key="auto",
    title="sprat auto (factors or subspace, else dense, by the rule of choice)",
    ours=True,
    settings=(),
    sweep=lambda _problem, _settings, _store: iter(()),
    code=(Path(__file__),),
)


def unite(of_case: MutableMapping[str, dict[int, list[Point]]]) -> None:
    """Give the row the points of the rows that it chooses among; without the first two there is no such row.

    Args:
        of_case: key of a method -> seed -> its points; it is changed.
    """
    of_case.pop(AUTO.key, None)
    if all(key in of_case for key in _ROWS):
        seeds = set.intersection(*(set(of_case[key]) for key in _ROWS))
        known = [*_ROWS, _ELSE] if _ELSE in of_case else _ROWS
        of_case[AUTO.key] = {
            seed: [replace(p, setting=f"{key}: {p.setting}") for key in known for p in of_case[key].get(seed, ())]
            for seed in sorted(seeds)
        }
