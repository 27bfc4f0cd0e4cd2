"""What a rollout's gate tolerates, and how its false-alarm rate is split."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final

from sprat_server.rollouts.evidence import Segment, kind_of
from sprat_server.rollouts.gate_state import ALL
from sprat_shared.errors import InvalidInput
from sprat_shared.evidence.eprocess import Game, harm_game, no_harm_game, rate_game

CODE: Final = "gates.bad-policy"
FAILURES: Final = "failures"
"""The metric of devices that failed, beside those that they measure."""
_MARGINS: Final = (1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.4)  # of the tolerance, as far as the clip lets


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRule:
    """How one measured loss is judged.

    Attributes:
        tolerance: mean loss that is accepted: share of answers for accuracy, log ratio for latencies.
        clip: losses and gains beyond this count as this, for the most sensitive bets; above the tolerance.
        weight: share of the false-alarm rate.
        required: whether more devices are exposed only where this metric is proven to be no worse.
        budget: what all exposed devices may lose together before the tolerance is proven, in whole devices: with a
            margin `m` proven, `budget / m` devices may have the release. 0: none before the tolerance is proven but
            the first wave.
    """

    tolerance: float
    clip: float
    weight: float
    required: bool = False
    budget: float = 0.0

    @property
    def harm(self) -> Game:
        """The game that halts."""
        return harm_game(self.tolerance, self.clip)

    @property
    def margins(self) -> tuple[float, ...]:
        """Margins that can be proven, least first."""
        return tuple(self.tolerance * wide for wide in _MARGINS if self.tolerance * wide < self.clip)

    @property
    def no_harm(self) -> tuple[Game, ...]:
        """The games that open, one for each margin."""
        return tuple(no_harm_game(margin, self.tolerance, self.clip) for margin in self.margins)

    def reach(self, margin: float) -> float:
        """Return how many devices may have the release when a margin is proven; the clip needs no proof."""
        return math.inf if margin <= self.tolerance else math.floor(self.budget / margin)


_METRICS: Final = MappingProxyType(
    {
        "accuracy": MetricRule(
            tolerance=0.005, clip=0.04, weight=0.4, required=True, budget=2.0
        ),  # half a point, four points
        "latency_p50": MetricRule(tolerance=0.1, clip=0.5, weight=0.15),  # 10.5 % slower, 65 % slower
        "latency_p95": MetricRule(tolerance=0.2, clip=0.8, weight=0.15),  # tails are noisier
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """The whole gate of a rollout.

    Attributes:
        alpha: bound of the probability that a rollout in which nothing is wrong is ever halted.
        open_alpha: bound of the probability that a wave opens although a required metric is worse than its margin.
        min_reports: devices that must have reported before a wave opens; fewer where fewer were exposed.
        min_reported: share of the exposed devices that must have reported before a wave opens.
        allowed_failures: share of devices that may fail.
        failures_weight: share of the false-alarm rate of failures.
        first_failures: so many failures before the first success halt at once; 0: never.
        segment_weight: share of the false-alarm rate that segments get together, where there are any.
        min_segment: devices of the cohort that a segment needs to be judged by itself.
        ratio_alpha: bound of the probability that a wave is held for silence that is not random, where it is random.
        metrics: by name.
    """

    alpha: float = 0.01
    open_alpha: float = 0.05
    min_reports: int = 10
    min_reported: float = 0.9
    allowed_failures: float = 0.02
    failures_weight: float = 0.3
    first_failures: int = 2
    segment_weight: float = 0.5
    min_segment: int = 5
    ratio_alpha: float = 0.001
    metrics: Mapping[str, MetricRule] = field(default_factory=lambda: dict(_METRICS))

    def __post_init__(self) -> None:
        """Refuse a policy that cannot hold what it promises."""
        for name, low, high in _SHARES:
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidInput(f"gates: {name} must be {low} to {high}, got {value!r}", code=CODE)
        for name in ("min_reports", "min_segment", "first_failures"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"gates: {name} cannot be {getattr(self, name)}", code=CODE)
        for name, rule in self.metrics.items():
            if not 0 < rule.tolerance < rule.clip or not math.isfinite(rule.clip):
                raise InvalidInput(
                    f"gates: {name} needs 0 < tolerance < clip, got {rule.tolerance!r} and {rule.clip!r}", code=CODE
                )
            if not 0 <= rule.weight <= 1 or not 0 <= rule.budget < math.inf:
                raise InvalidInput(f"gates: {name} needs a weight of 0 to 1 and a budget from 0", code=CODE)
        total = self.failures_weight + sum(rule.weight for rule in self.metrics.values())
        if total > 1 + 1e-9:
            raise InvalidInput(f"gates: the weights of metrics and failures make {total:g}; at most 1", code=CODE)
        if self.first_failures and self.hard_stop_rate >= self.alpha:
            raise InvalidInput(
                f"gates: {self.first_failures} first failures have a false-alarm rate of {self.hard_stop_rate:g}, "
                f"which alpha {self.alpha:g} does not hold; ask for more of them",
                code=CODE,
            )

    @property
    def hard_stop_rate(self) -> float:
        """Probability that the hard stop on first failures is a false alarm: it comes out of `alpha`."""
        rate = 1.0 if self.first_failures else 0.0
        for _ in range(self.first_failures):
            rate *= self.allowed_failures
        return rate

    @property
    def halts_at(self) -> float:
        """The e-value, weighted over all games, that halts: one over what the hard stop leaves of `alpha`."""
        return 1.0 / (self.alpha - self.hard_stop_rate)

    @property
    def games(self) -> dict[str, Game]:
        """The games against harm, by metric."""
        return {FAILURES: rate_game(self.allowed_failures)} | {name: rule.harm for name, rule in self.metrics.items()}

    @property
    def weights(self) -> dict[str, float]:
        """Share of each metric in the e-value of a scope."""
        return {FAILURES: self.failures_weight} | {name: rule.weight for name, rule in self.metrics.items()}

    def scopes(self, cohort: Mapping[Segment, int]) -> dict[str, float]:
        """Return the share of each scope: all devices, and each segment that is judged by itself, in sorted order.

        A kind with one segment says nothing beyond all devices and gets no share; kinds share equally, and segments
        within a kind.
        """
        kinds: dict[str, list[str]] = {}
        for segment in sorted(cohort):
            kinds.setdefault(kind_of(segment), []).append(segment)
        split = {
            kind: judged
            for kind, segments in kinds.items()
            if len(segments) > 1 and (judged := [one for one in segments if cohort[one] >= self.min_segment])
        }
        if not split or not self.segment_weight:
            return {ALL: 1.0}
        each = self.segment_weight / len(split)
        return {ALL: 1.0 - self.segment_weight} | {
            segment: each / len(segments) for segments in split.values() for segment in segments
        }

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object, all values said."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}
        said["metrics"] = {
            name: {one.name: getattr(rule, one.name) for one in fields(rule)} for name, rule in self.metrics.items()
        }
        return said

    @classmethod
    def of(cls, value: Any) -> "GatePolicy":
        """Read a JSON object: what is not said keeps its default; metrics are joined to the default ones by name.

        A metric that is null is judged no more.

        Raises:
            InvalidInput: a field is not known, of the wrong type, or the values contradict each other.
        """
        said = _known(value, "gates", {one.name: one.type for one in fields(cls)})
        policy = cls()
        metrics = dict(policy.metrics)
        wanted = said.pop("metrics", {})
        if not isinstance(wanted, Mapping):
            raise InvalidInput("gates: metrics must be an object of metrics by name", code=CODE)
        for name, rule in wanted.items():
            if rule is None:
                metrics.pop(name, None)
                continue
            changed = _known(rule, f"gates: metric {name}", {one.name: one.type for one in fields(MetricRule)})
            if name not in metrics and not {"tolerance", "clip", "weight"} <= set(changed):
                raise InvalidInput(f"gates: metric {name} needs tolerance, clip and weight", code=CODE)
            metrics[name] = replace(metrics[name], **changed) if name in metrics else MetricRule(**changed)
        return replace(policy, **said, metrics=metrics)


_SHARES: Final = (
    ("alpha", 1e-9, 0.5),
    ("open_alpha", 1e-9, 0.5),
    ("min_reported", 0.0, 1.0),
    ("allowed_failures", 1e-6, 0.5),
    ("failures_weight", 0.0, 1.0),
    ("segment_weight", 0.0, 0.99),
    ("ratio_alpha", 1e-9, 0.5),
)


def _known(value: Any, where: str, types: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object's fields, each of the type that the dataclass has."""
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: expected an object, got {type(value).__name__}", code=CODE)
    for name, one in value.items():
        if name not in types:
            raise InvalidInput(f"{where}: {name!r:.60} is not known; known are {', '.join(sorted(types))}", code=CODE)
        wanted = types[name]
        fits = isinstance(one, bool) if wanted is bool else isinstance(one, int) and not isinstance(one, bool)
        fits = fits or (wanted is float and isinstance(one, float)) or wanted not in {bool, int, float}
        if not fits:
            raise InvalidInput(f"{where}: {name} must be of type {wanted.__name__}, got {one!r:.60}", code=CODE)
    return {name: float(one) if types[name] is float else one for name, one in value.items()}
