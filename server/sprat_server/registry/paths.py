"""Ways from one release to another over the updates that there are: which costs fewest bytes. Pure.

Dijkstra's algorithm with releases as nodes and update files as edges.
"""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sprat_server.registry.models import UpdateFile
from sprat_shared.errors import NotFound

FILE_BYTES: Final = 60
"""What a file costs beyond its own bytes: its digest, length and target in a poll's body, after compression."""

# A chain is rebuilt step by step on the device: beyond this many steps the full update is the better answer.
_MAX_STEPS: Final = 16


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a route: an update, or, where it is undone, the way back from what it gives to what it needs."""

    update: UpdateFile
    undone: bool = False


_Edges = Mapping[int, Sequence[tuple[int, Hop]]]  # release -> (the release that a hop leads to, the hop)


def cost(files: Iterable[UpdateFile]) -> int:
    """Return the bytes that these files cost a device, each with what its delivery adds."""
    return sum(file.bytes + FILE_BYTES for file in files)


def cheapest_path(updates: Sequence[UpdateFile], base: int | None, target: int) -> list[UpdateFile]:
    """Return the updates with the fewest bytes that lead from release `base` (None: from nothing) to `target`.

    A direct update, a chain, or the full one alone, whichever costs least; of equal costs the one with fewer files.
    (An older full update and a chain from it would be one more way; devices that lack the base take no such detour.)
    Empty when base is the target.

    Raises:
        NotFound: no update leads there.
    """
    if base == target:
        return []
    full = [[file] for file in updates if file.base_number is None and file.number == target]
    edges: dict[int, list[tuple[int, Hop]]] = defaultdict(list)
    for file in updates:
        if file.base_number is not None:
            edges[file.base_number].append((file.number, Hop(file)))
    chain = None if base is None else _search(edges, base, target)
    ways = full if chain is None else [[hop.update for hop in chain], *full]
    if not ways:
        raise NotFound(f"no update leads to release {target}", code="update.unknown")
    return min(ways, key=lambda files: (cost(files), len(files)))


def cheapest_from(updates: Sequence[UpdateFile], held: Sequence[int], target: int) -> list[UpdateFile]:
    """Return the cheapest path to `target` for a device that holds these releases, the active one first.

    A device can start from the release that it could go back to as well. Of equal costs the first one's path.

    Raises:
        NotFound: no update leads there.
    """
    ways = [cheapest_path(updates, base, target) for base in held] or [cheapest_path(updates, None, target)]
    return min(ways, key=lambda files: (cost(files), len(files)))


def cheapest_route(updates: Sequence[UpdateFile], base: int, target: int) -> list[Hop] | None:
    """Return the hops with the fewest bytes from `base` to `target`, updates undone among them; None: there is none.

    No device can go this way, for what is undone is not exact. But it says what a direct update may consist of: two
    releases made from the same one are an update undone and another one apart.
    """
    edges: dict[int, list[tuple[int, Hop]]] = defaultdict(list)
    for file in updates:
        if file.base_number is not None:
            edges[file.base_number].append((file.number, Hop(file)))
            edges[file.number].append((file.base_number, Hop(file, undone=True)))
    return _search(edges, base, target)


def _search(edges: _Edges, base: int, target: int) -> list[Hop] | None:
    best = {base: (0, 0)}  # release -> (bytes, steps) of the best way known
    tie = itertools.count()
    queue: list[tuple[tuple[int, int], int, int, list[Hop]]] = [((0, 0), next(tie), base, [])]
    while queue:
        (spent, steps), _, here, way = heapq.heappop(queue)
        if here == target:
            return way
        if best[here] < (spent, steps) or steps == _MAX_STEPS:
            continue
        for there, hop in edges.get(here, ()):
            reached = (spent + hop.update.bytes + FILE_BYTES, steps + 1)
            if there not in best or reached < best[there]:
                best[there] = reached
                heapq.heappush(queue, (reached, next(tie), there, [*way, hop]))
    return None
