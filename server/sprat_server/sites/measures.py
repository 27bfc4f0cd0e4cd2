"""What a module takes on a device, by what devices measured: the device itself, others of its class, an estimate. Pure.

The nearest word counts: this device with this release; with another release of the same model and graph, whose weights
alone differ; other devices of its class, likewise; the seconds of another device, by the ratio of how fast both run
what both have run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median
from typing import Any, Final

from sprat_shared.protocol.measures_report import Spread

_IN_SERVICE: Final = "in service"
_AS_LOADED: Final = "as loaded"


class Origin(StrEnum):
    """Where a figure is from, the nearest first."""

    SAID = "said"  # by people
    MEASURED = "measured"  # on this device, of this release
    OTHER_RELEASE = "other-release"  # on this device, of the same graph
    CLASS = "class"  # on other devices of its class
    ESTIMATED = "estimated"  # from another device, by the ratio of their speeds
    WEIGHTS = "weights"  # memory: that of the weights, which is too little
    ASSUMED = "assumed"  # a link of which nothing is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A figure, and where it is from.

    Attributes:
        value: it; the median of what was measured.
        origin: its kind, and
        detail: what exactly it is from, for people.
        count: how many measurements, or devices of a class, it is from; None: that says nothing.
        p10: 10th percentile; of a class the lowest of its devices'; None: not known.
        p90: 90th percentile, likewise the highest.
    """

    value: float
    origin: Origin
    detail: str = ""
    count: int | None = None
    p10: float | None = None
    p90: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {
            "value": self.value,
            "origin": self.origin.value,
            "detail": self.detail,
            "count": self.count,
            "p10": self.p10,
            "p90": self.p90,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one device said of one release.

    Attributes:
        device: name of it, unique, and
        profile: its class; None: it is one by itself.
        model: name of it, and
        release: number.
        graph: digest of the release's graph.
        memory_bytes: None: not known.
        tried_s: likewise.
        runs: likewise.
    """

    device: str
    profile: str | None
    model: str
    release: int
    graph: str
    memory_bytes: int | None = None
    tried_s: float | None = None
    runs: Spread | None = None

    @property
    def seconds(self) -> Figure | None:
        """Return the seconds of one run of one row: as in service, else as it was tried."""
        if (runs := self.runs) is not None:
            return Figure(
                value=runs.median,
                origin=Origin.MEASURED,
                count=runs.count,
                p10=runs.p10,
                p90=runs.p90,
                detail=_IN_SERVICE,
            )
        return None if self.tried_s is None else Figure(value=self.tried_s, origin=Origin.MEASURED, detail=_AS_LOADED)

    @property
    def memory(self) -> Figure | None:
        """Return the bytes while it is loaded."""
        if self.memory_bytes is None:
            return None
        return Figure(value=self.memory_bytes, origin=Origin.MEASURED, detail=_AS_LOADED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The release of a model that is asked about."""

    model: str
    release: int
    graph: str


Cells = dict[str, dict[str, Figure]]
"""By model and device."""
_Speeds = dict[tuple[str, str, str], float]  # seconds by model, graph, and how it ran


def memory_of(wanted: Sequence[Wanted], devices: Mapping[str, str | None], seen: Sequence[Seen]) -> Cells:
    """Return the bytes of modules on devices (name -> class), as far as they are known."""
    return _near(wanted, devices, seen, lambda one: one.memory)


def seconds_of(wanted: Sequence[Wanted], devices: Mapping[str, str | None], seen: Sequence[Seen]) -> Cells:
    """Return the seconds of one run of modules on devices (name -> class), estimated where nothing nearer is known."""
    near = _near(wanted, devices, seen, lambda one: one.seconds)
    speeds = _speeds(devices, seen)
    graph = {one.model: one.graph for one in wanted}
    for model, cells in near.items():
        for device, figure in cells.items():
            if figure.origin is Origin.CLASS:
                speeds[device].setdefault((model, graph[model], _IN_SERVICE), figure.value)
    found: Cells = {}
    for model, cells in near.items():
        estimates = {
            device: estimate
            for device in devices
            if device not in cells and (estimate := _estimated(device, cells, speeds)) is not None
        }
        found[model] = cells | estimates
    return found


def _near(
    wanted: Sequence[Wanted],
    devices: Mapping[str, str | None],
    seen: Sequence[Seen],
    told: Callable[[Seen], Figure | None],
) -> Cells:
    found: Cells = {}
    for one in wanted:
        of_model: dict[str, list[Seen]] = {}
        for each in seen:
            if (each.model, each.graph) == (one.model, one.graph) and told(each) is not None:
                of_model.setdefault(each.device, []).append(each)
        own = {device: _nearest(one, words, told) for device, words in of_model.items()}
        profiles = {device: words[0].profile for device, words in of_model.items()}
        cells: dict[str, Figure] = {}
        for device, profile in devices.items():
            if device in own:
                cells[device] = own[device]
            elif profile is not None:
                others = [figure for other, figure in own.items() if profiles[other] == profile]
                if others:
                    cells[device] = _of_class(profile, others)
        found[one.model] = cells
    return found


def _nearest(wanted: Wanted, words: Sequence[Seen], told: Callable[[Seen], Figure | None]) -> Figure:
    """Return what a device said of a release, or of the newest one beside it."""
    nearest = max(words, key=lambda one: (one.release == wanted.release, one.release))
    figure = told(nearest)
    assert figure is not None  # noqa: S101 - the caller looked
    if nearest.release == wanted.release:
        return figure
    return replace(figure, origin=Origin.OTHER_RELEASE, detail=f"{wanted.model}@{nearest.release}, {figure.detail}")


def _of_class(profile: str, others: Sequence[Figure]) -> Figure:
    lows = [one.value if one.p10 is None else one.p10 for one in others]
    highs = [one.value if one.p90 is None else one.p90 for one in others]
    return Figure(
        value=median(one.value for one in others),
        origin=Origin.CLASS,
        detail=f"{len(others)} of {profile}",
        count=len(others),
        p10=min(lows),
        p90=max(highs),
    )


def _speeds(devices: Mapping[str, str | None], seen: Sequence[Seen]) -> dict[str, _Speeds]:
    """Return by device the seconds of what it ran, of the newest release of each graph, in service and as loaded."""
    speeds: dict[str, _Speeds] = {device: {} for device in devices}
    for one in sorted(seen, key=lambda one: one.release):
        if one.device in speeds:
            if one.runs is not None:
                speeds[one.device][one.model, one.graph, _IN_SERVICE] = one.runs.median
            if one.tried_s is not None:
                speeds[one.device][one.model, one.graph, _AS_LOADED] = one.tried_s
    return speeds


def _estimated(device: str, cells: Mapping[str, Figure], speeds: Mapping[str, _Speeds]) -> Figure | None:
    """Return the seconds on a device by those on the one with which it has most in common; None: it has nothing.

    Sums are compared, of the same runs of the same modules: short ones, which a timer's noise is large beside, say
    little.
    """
    own, best = speeds[device], None
    for other, figure in sorted(cells.items()):
        both = own.keys() & speeds[other].keys()
        models, theirs = len({key[:2] for key in both}), sum(speeds[other][key] for key in both)
        if theirs > 0 and (best is None or models > best[0]):
            best = models, other, figure.value * sum(own[key] for key in both) / theirs
    if best is None:
        return None
    common, other, value = best
    by = "a module" if common == 1 else f"{common} modules"
    return Figure(value=value, origin=Origin.ESTIMATED, detail=f"from {other}, by {by} of both", count=common)
