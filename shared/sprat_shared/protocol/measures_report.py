"""What a device measured of the modules that it holds and of the links to other devices of its site."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields, canonical_json

MOST_MODULES: Final = 200
MOST_LINKS: Final = 200
MOST_SECONDS: Final = 1e6
MOST_MEMORY_BYTES: Final = 1 << 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What was measured of one thing.

    Attributes:
        count: how often.
        p10: 10th percentile of the newest values,
        median: of them, and
        p90: 90th percentile.
    """

    count: int
    p10: float
    median: float
    p90: float

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"count": self.count, "p10": self.p10, "median": self.median, "p90": self.p90}

    @classmethod
    def of(cls, value: Any, where: str) -> "Spread":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong, negative or not finite, or the percentiles do not rise.
        """
        said = Fields(value, where)
        spread = cls(
            count=said.integer("count", minimum=1),
            p10=_seconds(said, "p10", where),
            median=_seconds(said, "median", where),
            p90=_seconds(said, "p90", where),
        )
        if not spread.p10 <= spread.median <= spread.p90:
            raise InvalidInput(f"{where}: p10, median and p90 must not fall, got {spread.as_json()}")
        return spread


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleFigures:
    """What one release took on the device. What is not known is left out of the report.

    Attributes:
        model: its name.
        release: its number.
        memory_bytes: peak resident memory while it was loaded and tried, above what the process had before.
        tried_s: seconds of a run of one row that was made up to try it.
        runs: seconds of the runs of one row in service.
    """

    model: str
    release: int
    memory_bytes: int | None = None
    tried_s: float | None = None
    runs: Spread | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        said = {"memory_bytes": self.memory_bytes, "tried_s": self.tried_s, "runs": _json(self.runs)}
        return {"model": self.model, "release": self.release, **_known(said)}

    @classmethod
    def of(cls, value: Any) -> "ModuleFigures":
        """Read the JSON object. Raises InvalidInput."""
        model = Fields(value, "report: module").model("model")
        where = f"report: module {model}"
        said = Fields(value, where)
        memory = said.has("memory_bytes")
        return cls(
            model=model,
            release=said.integer("release", minimum=1, maximum=2**31 - 1),
            memory_bytes=said.integer("memory_bytes", minimum=1, maximum=MOST_MEMORY_BYTES) if memory else None,
            tried_s=_seconds(said, "tried_s", where) if said.has("tried_s") else None,
            runs=_spread(said, "runs", where),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFigures:
    """What the way to another device of the site took. What is not known is left out of the report.

    Attributes:
        device: the other one.
        round_trip: seconds of a small request and its answer, over a connection that was there.
        sent: seconds per byte from here to there, of large bodies, and
        received: from there to here.
    """

    device: UUID
    round_trip: Spread | None = None
    sent: Spread | None = None
    received: Spread | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        said = {"round_trip": _json(self.round_trip), "sent": _json(self.sent), "received": _json(self.received)}
        return {"device": str(self.device), **_known(said)}

    @classmethod
    def of(cls, value: Any) -> "LinkFigures":
        """Read the JSON object. Raises InvalidInput."""
        device = Fields(value, "report: link").uuid("device")
        where = f"report: link to {device}"
        said = Fields(value, where)
        return cls(
            device=device,
            round_trip=_spread(said, "round_trip", where),
            sent=_spread(said, "sent", where),
            received=_spread(said, "received", where),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuresReport:
    """All figures of the plans that a device serves by, in the place of those that it said before.

    It belongs to no assignment.

    Attributes:
        device: who says it.
        sequence: as a `Report`'s, in one row with them.
        modules: that it holds, each release once.
        links: to devices that it asks, each once.
        agent: version of the agent.
    """

    device: UUID
    sequence: int
    modules: tuple[ModuleFigures, ...]
    links: tuple[LinkFigures, ...]
    agent: str
    kind: Literal["measures"] = "measures"

    def to_json(self) -> bytes:
        """Return the canonical bytes that are signed and sent."""
        return canonical_json(
            {
                "kind": self.kind,
                "device": str(self.device),
                "sequence": self.sequence,
                "modules": [one.as_json() for one in self.modules],
                "links": [one.as_json() for one in self.links],
                "agent": self.agent,
            }
        )

    @classmethod
    def from_json(cls, body: bytes) -> "MeasuresReport":
        """Read a report.

        Raises:
            InvalidInput: a field is missing or wrong, there are too many figures, or one is there twice.
        """
        fields = Fields.parse(body, "report")
        if fields.text("kind") != "measures":
            raise InvalidInput(f"report: kind {fields.text('kind')[:40]!r} is not 'measures'")
        device = fields.uuid("device")
        modules, links = fields.list_of("modules"), fields.list_of("links")
        if len(modules) > MOST_MODULES or len(links) > MOST_LINKS:
            raise InvalidInput(
                f"report: {len(modules)} modules and {len(links)} links; at most {MOST_MODULES} and {MOST_LINKS}"
            )
        report = cls(
            device=device,
            sequence=fields.integer("sequence", minimum=1),
            modules=tuple(ModuleFigures.of(one) for one in modules),
            links=tuple(LinkFigures.of(one) for one in links),
            agent=fields.text("agent", max_length=100),
        )
        _require_once(f"{one.model}@{one.release}" for one in report.modules)
        _require_once([str(device), *(str(one.device) for one in report.links)])  # no link leads to itself
        return report


def _require_once(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidInput(f"report: {name} is measured twice, or by itself")
        seen.add(name)


def _json(spread: Spread | None) -> dict[str, Any] | None:
    return None if spread is None else spread.as_json()


def _known(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if value is not None}


def _spread(said: Fields, name: str, where: str) -> Spread | None:
    return Spread.of(said.mapping(name), f"{where}: {name}") if said.has(name) else None


def _seconds(said: Fields, name: str, where: str) -> float:
    value = said.number(name)
    if not math.isfinite(value) or not 0 <= value <= MOST_SECONDS:
        raise InvalidInput(f"{where}: field {name!r} must be 0 to {MOST_SECONDS:g} seconds, got {value!r}")
    return value
