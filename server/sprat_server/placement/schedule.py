"""Who fetches when: devices of a site take turns on its link, so that the last one is done soonest. Pure.

All of a site's devices fetch over one link, and each over its own behind that. Those that fetch at the same time share
the site's link as transport protocols do: evenly, but for what a thin link of a device leaves to the others (max-min
fair). Rates cannot be told to devices; when they begin can. A turn is all that a device fetches, one module after the
other. A turn begins with the first, or when another one ends; which ones begin then is what is chosen.

No schedule is done before the thinnest link has carried its bytes (`Schedule.bound_s`), so it is always known how far
from the best one is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from sprat_server.placement.site import CODE
from sprat_shared.errors import InvalidInput

_FEW: Final = 8  # devices of which all turns are looked at, as far as that takes
_LOOKS: Final = 4000  # states at most: some tenths of a second
_SLIGHT: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """What a device is to fetch.

    Attributes:
        device: who.
        module: what.
        nbytes: of it.
    """

    device: str
    module: str
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedFetch:
    """When a device fetches a module, in seconds since the first turn began."""

    module: str
    nbytes: int
    starts_s: float
    ends_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """All that a device fetches, in one go.

    Attributes:
        device: who.
        starts_s: since the first turn began,
        ends_s: likewise.
        fetches: one after the other.
    """

    device: str
    starts_s: float
    ends_s: float
    fetches: tuple[TimedFetch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Turns, in their order.

    Attributes:
        turns: of all devices that fetch anything.
        ends_s: when all is there.
        bound_s: no schedule is done before.
    """

    turns: tuple[Turn, ...]
    ends_s: float
    bound_s: float

    @property
    def gap(self) -> float:
        """Return by what share of its time it may be later than the best."""
        return 0.0 if self.ends_s <= 0 else max(0.0, 1 - self.bound_s / self.ends_s)


def schedule(fetches: Sequence[Fetch], down: Mapping[str, float], uplink: float | None = None) -> Schedule:
    """Return the turns by which all is fetched soonest, and of those by which devices wait least.

    Of a handful of devices all turns are looked at; of more, good rules are bettered by swaps.

    Args:
        fetches: what devices lack.
        down: device -> bytes per second that it receives at most.
        uplink: bytes per second that all of them receive at most; None: each as much as it can.

    Raises:
        InvalidInput: a link carries nothing.
    """
    most = float("inf") if uplink is None else uplink
    jobs: dict[str, list[Fetch]] = {}
    for fetch in sorted(fetches, key=lambda one: (one.nbytes, one.module)):
        if not (min(down[fetch.device], most) > 0):
            raise InvalidInput(f"device {fetch.device}: its link must carry something", code=CODE)
        jobs.setdefault(fetch.device, []).append(fetch)
    sizes = {device: sum(one.nbytes for one in mine) for device, mine in jobs.items()}
    caps = {device: min(down[device], most) for device in jobs}
    bound = max(
        [sizes[one] / caps[one] for one in jobs] + [0.0 if uplink is None else sum(sizes.values()) / uplink],
        default=0.0,
    )
    turns = _Search(sizes, caps, most, bound).best() if jobs else ()
    timed = tuple(_timed(jobs[device], spans) for device, spans in turns)
    return Schedule(turns=timed, ends_s=max((one.ends_s for one in timed), default=0.0), bound_s=bound)


_Spans = tuple[tuple[float, float, float], ...]  # from, to, bytes a second
_Run = tuple[tuple[str, _Spans], ...]


@dataclass(frozen=True, slots=True)
class _State:
    """Where fetching stands at a time: bytes left of those under way, who waits, and how fast each was so far."""

    now: float
    left: Mapping[str, float]
    waiting: tuple[str, ...]
    spans: Mapping[str, _Spans]


class _Search:
    def __init__(self, sizes: Mapping[str, int], caps: Mapping[str, float], most: float, bound: float) -> None:
        self._sizes, self._caps, self._most, self._bound = sizes, caps, most, bound
        self._looks = 0
        self._best: _Run = ()
        self._worth = (float("inf"), float("inf"))

    def best(self) -> _Run:
        """Return the best turns that are found."""
        small_first = sorted(self._sizes, key=lambda one: (self._sizes[one], one))
        if all(cap >= self._most for cap in self._caps.values()) or self._most == float("inf"):
            self._try(small_first, fits=False)  # one after the other, or all at once: nothing is better
            return self._best
        long_first = sorted(self._sizes, key=lambda one: (-self._sizes[one] / self._caps[one], one))
        thin_first = sorted(self._sizes, key=lambda one: (self._caps[one], self._sizes[one], one))
        rules = [(order, fits) for order in (small_first, long_first, thin_first) for fits in (True, False)]
        for order, fits in rules:
            self._try(order, fits=fits)
        if len(long_first) <= _FEW:
            self._branch(_State(0.0, {}, tuple(long_first), {}))
        else:
            order, fits = min(rules, key=lambda rule: _worth(self._run(rule[0], fits=rule[1])))
            self._swap(order, fits=fits)
        return self._best

    def _try(self, order: Sequence[str], *, fits: bool) -> bool:
        """Look at the turns that an order gives; return whether they are better than all before."""
        return self._take(self._run(order, fits=fits))

    def _take(self, found: _Run) -> bool:
        worth = _worth(found)
        if better := worth < self._worth:
            self._best, self._worth = found, worth
        return better

    def _branch(self, state: _State) -> None:
        """Look at all turns that go on from a state, but for those that cannot be better."""
        self._looks += 1
        if not state.waiting and not state.left:
            self._take(tuple(state.spans.items()))
            return
        least = max(
            [state.now + left / self._caps[one] for one, left in state.left.items()]
            + [state.now + self._sizes[one] / self._caps[one] for one in state.waiting]
            + [state.now + (sum(state.left.values()) + sum(self._sizes[one] for one in state.waiting)) / self._most]
        )
        ended = sum(spans[-1][1] for one, spans in state.spans.items() if one not in state.left)
        if (round(least, 9), ended + state.now * (len(state.left) + len(state.waiting))) >= self._worth:
            return
        for begun in self._choices(state):
            if self._looks >= _LOOKS:
                return
            self._branch(self._until_one_ends(state, begun))

    def _choices(self, state: _State) -> Iterator[tuple[str, ...]]:
        """Yield who may begin now: nobody, while others are under way, or some, as long as the link is not full."""
        full = self._most * (1 - _SLIGHT)
        used = sum(self._caps[one] for one in state.left)
        for count in range(len(state.waiting), 0, -1):
            for begun in combinations(state.waiting, count):
                caps = sorted(self._caps[one] for one in begun)
                if used + sum(caps[:-1]) < full:  # the largest may be what fills it
                    yield begun
        if state.left:
            yield ()

    def _until_one_ends(self, state: _State, begun: Sequence[str]) -> _State:
        left = dict(state.left) | {one: float(self._sizes[one]) for one in begun}
        spans = dict(state.spans)
        rates = _shared({one: self._caps[one] for one in left}, self._most)
        step = min(left[one] / rates[one] for one in left)
        for one in list(left):
            spans[one] = (*spans.get(one, ()), (state.now, state.now + step, rates[one]))
            left[one] -= rates[one] * step
            if left[one] <= _SLIGHT * max(1, self._sizes[one]):
                del left[one]
        waiting = tuple(one for one in state.waiting if one not in begun)
        return _State(state.now + step, left, waiting, spans)

    def _run(self, order: Sequence[str], *, fits: bool) -> _Run:
        """Return what comes of an order: the next one begins while the link is not full, or only where it `fits`."""
        state = _State(0.0, {}, tuple(order), {})
        while state.waiting or state.left:
            begun: list[str] = []
            used = sum(self._caps[one] for one in state.left)
            for one in state.waiting:
                needed = self._caps[one] if fits and used else 0.0
                if used + needed > self._most * (1 + _SLIGHT) or used >= self._most * (1 - _SLIGHT):
                    break
                begun.append(one)
                used += self._caps[one]
            state = self._until_one_ends(state, begun)
        return tuple(state.spans.items())

    def _swap(self, order: Sequence[str], *, fits: bool) -> None:
        """Better an order by swaps of two, as long as that goes on."""
        here, left, better = list(order), _LOOKS // len(order) + 1, True
        while better:
            better = False
            for one, other in combinations(range(len(here)), 2):
                if (left := left - 1) < 0 or self._worth[0] <= self._bound * (1 + _SLIGHT):
                    return
                here[one], here[other] = here[other], here[one]
                if self._try(here, fits=fits):
                    better = True
                else:
                    here[one], here[other] = here[other], here[one]


def _worth(turns: _Run) -> tuple[float, float]:
    """Return what turns are judged by: when the last is done, then how long all wait together."""
    ends = [spans[-1][1] for _, spans in turns]
    return round(max(ends), 9), round(sum(ends), 9)


def _shared(caps: Mapping[str, float], most: float) -> dict[str, float]:
    """Return the rate of each that shares a link evenly, but for what others cannot take."""
    rates, room, others = {}, most, len(caps)
    for one in sorted(caps, key=lambda one: caps[one]):
        rates[one] = min(caps[one], room / others)
        room, others = room - rates[one], others - 1
    return rates


def _timed(fetches: Sequence[Fetch], spans: _Spans) -> Turn:
    """Return when each of a device's modules is there."""
    timed, begins, done = [], spans[0][0], 0.0
    for fetch in fetches:
        done += fetch.nbytes
        ends = _reached(spans, done)
        timed.append(TimedFetch(module=fetch.module, nbytes=fetch.nbytes, starts_s=begins, ends_s=ends))
        begins = ends
    return Turn(device=fetches[0].device, starts_s=spans[0][0], ends_s=spans[-1][1], fetches=tuple(timed))


def _reached(spans: _Spans, nbytes: float) -> float:
    """Return when so many bytes are there."""
    for begins, ends, rate in spans:
        carried = (ends - begins) * rate
        if nbytes <= carried * (1 + _SLIGHT):
            return min(ends, begins + nbytes / rate)
        nbytes -= carried
    return spans[-1][1]
