"""Ways from the releases that a device holds to the one it should run: which takes the fewest bytes. Pure.

Dijkstra's algorithm with weights as nodes and signed updates as edges. From nothing the release's own full update leads
there; an older one and a chain from it would be one more way, which the server does not reckon with either.
"""

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

FILE_BYTES: Final = 60
"""What fetching a file costs beyond its own bytes, as the server reckons too: a request, or a place in an answer."""

MOST_STEPS: Final = 16
"""A chain is rebuilt step by step: one that is longer is no way, however small it is."""

_NOTHING: Final = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One signed update.

    Attributes:
        path: its target path.
        base: weights digest of what it needs; None: nothing.
        weights: weights digest of what it gives.
        release: number of the release that it gives.
        cost: bytes that are still to be read for it; 0: its payload is here.
    """

    path: str
    base: str | None
    weights: str
    release: int
    cost: int


def cheapest_way(steps: Iterable[Step], held: Collection[str], *, release: int, weights: str) -> tuple[Step, ...]:
    """Return the steps with the lowest cost that lead to a release, from nothing or from what is held.

    Of equal costs the way with fewer steps, and of those the first by their paths. Empty where there is none.

    Args:
        steps: what is signed.
        held: weights digests of the releases to start from.
        release: number of the release that the last step must give, and
        weights: its weights digest.
    """
    leads_on: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        if step.base is not None or step.release == release:
            leads_on[step.base or _NOTHING].append(step)
    starts = sorted({_NOTHING, *held})
    queue: list[tuple[int, int, tuple[str, ...], str, tuple[Step, ...]]] = [(0, 0, (), start, ()) for start in starts]
    seen: set[tuple[str, int]] = set()  # by length too: the cheapest way to a node may leave no steps to go on
    while queue:
        cost, length, names, here, way = heapq.heappop(queue)
        if way and (way[-1].release, here) == (release, weights):
            return way
        if (here, length) in seen or length == MOST_STEPS:
            continue
        seen.add((here, length))
        for step in leads_on.get(here, ()):
            reached = (cost + step.cost, length + 1, (*names, step.path))
            heapq.heappush(queue, (*reached, step.weights, (*way, step)))
    return ()
