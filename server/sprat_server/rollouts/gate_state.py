"""Where a gate is: counts, capitals and e-values, which are stored and read back bit for bit."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sprat_shared.evidence.eprocess import Capital, Wealth, capital_as_json, capital_of

ALL: Final = "all"
"""The scope of every device, beside the segments."""
_COUNTS: Final = ("exposed", "reported", "failed", "lost")


@dataclass(frozen=True, slots=True)
class Scope:
    """What is known of all devices, or of one segment.

    Attributes:
        exposed: devices that were offered the release.
        reported: devices whose update ended, lost ones among them.
        failed: of these, and
        lost: of these.
        capitals: of the games against harm, by metric; empty for a segment that is not judged by itself.
        e_values: of the same games, by metric.
        sums: number and sum of the losses that were measured, by metric.
    """

    exposed: int = 0
    reported: int = 0
    failed: int = 0
    lost: int = 0
    capitals: Mapping[str, Capital] = field(default_factory=dict)
    e_values: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "counts": [self.exposed, self.reported, self.failed, self.lost],
            "capitals": {metric: capital_as_json(capital) for metric, capital in self.capitals.items()},
            "e_values": dict(self.e_values),
            "sums": {metric: list(seen) for metric, seen in self.sums.items()},
        }

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Scope":
        """Read what `as_json` wrote."""
        return cls(
            **dict(zip(_COUNTS, said["counts"], strict=True)),
            capitals={metric: capital_of(flat) for metric, flat in said["capitals"].items()},
            e_values={metric: float(value) for metric, value in said["e_values"].items()},
            sums={metric: (int(n), float(total)) for metric, (n, total) in said["sums"].items()},
        )


@dataclass(frozen=True, slots=True)
class GateState:
    """Where a gate is after some evidence; everything later depends on it and on what is still to come.

    Attributes:
        scopes: by name, `all` and every segment of the cohort.
        shares: of the e-value, by scope; fixed by the cohort.
        openings: capitals of the games against "no better than the margin", by metric, one for each margin.
        ratios: by kind of segment, evidence that silence is not random.
        first_failures: failures before the first success.
        succeeded: whether any device did, or a person has acknowledged what failed: the hard stop is spent.
        halted_by: why it halted; stands until the failures behind it are acknowledged.
    """

    scopes: Mapping[str, Scope]
    shares: Mapping[str, float]
    openings: Mapping[str, tuple[Capital, ...]]
    ratios: Mapping[str, Wealth]
    first_failures: int = 0
    succeeded: bool = False
    halted_by: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object but for the scopes, which are stored by name."""
        return {
            "shares": dict(self.shares),
            "openings": {metric: [capital_as_json(one) for one in all_] for metric, all_ in self.openings.items()},
            "ratios": {kind: list(wealth) for kind, wealth in self.ratios.items()},
            "first_failures": self.first_failures,
            "succeeded": self.succeeded,
            "halted_by": self.halted_by,
        }

    @classmethod
    def of(cls, said: Mapping[str, Any], scopes: Mapping[str, Mapping[str, Any]]) -> "GateState":
        """Read what `as_json` and the scopes' wrote."""
        return cls(
            scopes={name: Scope.of(one) for name, one in scopes.items()},
            shares={name: float(said["shares"][name]) for name in in_order(said["shares"])},
            openings={metric: tuple(map(capital_of, all_)) for metric, all_ in said["openings"].items()},
            ratios={kind: (float(m), int(e)) for kind, (m, e) in said["ratios"].items()},
            first_failures=said["first_failures"],
            succeeded=said["succeeded"],
            halted_by=said["halted_by"],
        )


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names with `all` first, then sorted: the order of every sum."""
    return sorted(names, key=lambda name: (name != ALL, name))
