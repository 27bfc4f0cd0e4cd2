"""Why a gate says what it says: the evidence, the thresholds, and what would change the verdict. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sprat_server.rollouts.evidence import Evidence, Exposed, Reported, Segment
from sprat_server.rollouts.gate_policy import FAILURES, GatePolicy, MetricRule
from sprat_server.rollouts.gate_state import ALL, GateState, Scope
from sprat_server.rollouts.gates import Decision, Gate, Verdict
from sprat_shared.evidence.eprocess import no_harm_game

MOST_MORE: Final = 2000
"""So many further devices are imagined at most."""
_HALVINGS: Final = 12  # of the interval in which a bound lies: to a hundredth of a point


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLine:
    """One game against harm.

    Attributes:
        scope: `all`, or the segment.
        metric: what is judged.
        devices: how many were measured.
        mean: their mean loss, or share of failures; None where none was measured.
        tolerance: what is accepted.
        e_value: evidence of harm, 1 at the start.
        halts_at: e-value at which this game halts by itself, whatever the others say; None: it has no weight.
    """

    scope: str
    metric: str
    devices: int
    mean: float | None
    tolerance: float
    e_value: float
    halts_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofLine:
    """What is proven of one metric over all devices.

    Attributes:
        metric: what is judged.
        required: whether waves wait for it.
        proven: least margin (of those that are tried) that the mean loss is proven to be below; the clip where none is.
        reach: devices that may have the release by that; None: any number.
        tolerance: what must be proven for any number.
        e_value: evidence that the mean loss is below the tolerance.
        opens_at: e-value that proves it.
        bound: upper confidence bound of the mean loss (clipped), valid at all times together; None: not below the clip.
    """

    metric: str
    required: bool
    proven: float
    reach: int | None
    tolerance: float
    e_value: float
    opens_at: float
    bound: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioLine:
    """Whether silence is random over the segments of a kind."""

    kind: str
    e_value: float
    holds_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A verdict with all that it rests on.

    Attributes:
        verdict: decision and reasons.
        exposed: devices that were offered the release.
        reported: devices whose update ended.
        failed: of these.
        lost: of these, by silence.
        e_value: evidence of harm, over all games.
        halts_at: where it halts.
        next_reach: devices that will have the release with the next wave.
        gates: games against harm, strongest first.
        proofs: what is proven for opening.
        ratios: silence by kind of segment.
        would_change: sentences.
        halted_after: reports at the halt; None: there was none.
        exposed_at_halt: devices that had been offered the release by then.
    """

    verdict: Verdict
    exposed: int
    reported: int
    failed: int
    lost: int
    e_value: float
    halts_at: float
    next_reach: int | None
    gates: tuple[GateLine, ...]
    proofs: tuple[ProofLine, ...]
    ratios: tuple[RatioLine, ...]
    would_change: tuple[str, ...]
    halted_after: int | None
    exposed_at_halt: int | None


def explain(evidence: Evidence, policy: GatePolicy) -> Explanation:
    """Explain what `judge` says of the same evidence and policy. Seconds for tens of thousands of devices."""
    gate = Gate(policy)
    state, halt = _fold(gate, evidence)
    verdict = gate.decide(state, evidence.next_reach)
    everyone = state.scopes[ALL]
    return Explanation(
        verdict=verdict,
        exposed=everyone.exposed,
        reported=everyone.reported,
        failed=everyone.failed,
        lost=everyone.lost,
        e_value=gate.e_value(state),
        halts_at=policy.halts_at,
        next_reach=evidence.next_reach,
        gates=_gate_lines(gate, state),
        proofs=tuple(_proof_line(gate, state, metric, rule, evidence) for metric, rule in policy.metrics.items()),
        ratios=tuple(
            RatioLine(kind=kind, e_value=math.ldexp(*wealth), holds_at=1 / policy.ratio_alpha)
            for kind, wealth in state.ratios.items()
        ),
        would_change=tuple(_would_change(gate, state, verdict, evidence)),
        halted_after=None if halt is None else halt.reported,
        exposed_at_halt=None if halt is None else halt.exposed,
    )


def _fold(gate: Gate, evidence: Evidence) -> tuple[GateState, Scope | None]:
    """Return the state after the evidence, and what was known of all devices when it halted."""
    state, halt = gate.start(evidence.cohort), None
    segments: dict[str, tuple[Segment, ...]] = {}
    for event in evidence.events:
        state = gate.hear(state, event, segments)
        if state.halted_by is None:
            halt = None  # not yet, or a person had it go on
        elif halt is None:
            halt = state.scopes[ALL]
    return state, halt


def _gate_lines(gate: Gate, state: GateState) -> tuple[GateLine, ...]:
    policy, lines = gate.policy, []
    for name, share in state.shares.items():
        scope = state.scopes[name]
        for metric, e_value in gate.parts(scope):
            count, total = scope.sums.get(metric, (0, 0.0))
            if metric == FAILURES:
                count, total = scope.reported, float(scope.failed)
            weight = share * policy.weights[metric]
            line = GateLine(
                scope=name,
                metric=metric,
                devices=count,
                mean=total / count if count else None,
                tolerance=policy.allowed_failures if metric == FAILURES else policy.metrics[metric].tolerance,
                e_value=e_value,
                halts_at=policy.halts_at / weight if weight else None,
            )
            lines.append(line)
    return tuple(sorted(lines, key=lambda line: -line.e_value / (line.halts_at or math.inf)))


def _proof_line(gate: Gate, state: GateState, metric: str, rule: MetricRule, evidence: Evidence) -> ProofLine:
    proven = gate.proven(state, metric)
    reach = rule.reach(proven)
    losses = [
        event.losses[metric] for event in evidence.events if isinstance(event, Reported) and metric in event.losses
    ]
    return ProofLine(
        metric=metric,
        required=rule.required,
        proven=proven,
        reach=None if math.isinf(reach) else int(reach),
        tolerance=rule.tolerance,
        e_value=gate.proof(state, metric, rule.tolerance),
        opens_at=1 / gate.policy.open_alpha,
        bound=_bound(losses, rule, gate.policy.open_alpha),
    )


def _bound(losses: Sequence[float], rule: MetricRule, alpha: float) -> float | None:
    """Return the least margin (within 2^-12 of tolerance to clip) that the losses refute."""

    def refuted(margin: float) -> bool:
        game = no_harm_game(margin, rule.tolerance, rule.clip)
        capital = game.start()
        for loss in losses:
            capital = game.play(capital, loss)
        return game.e_value(capital) >= 1 / alpha

    low, high = rule.tolerance, rule.clip
    if not refuted(high):
        return None
    if refuted(low):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


def _would_change(gate: Gate, state: GateState, verdict: Verdict, evidence: Evidence) -> list[str]:
    if verdict.decision is Decision.HALT:
        return ["nothing: a halt stands; another policy can be tried on the same evidence"]
    segments = {event.device: event.segments for event in evidence.events if isinstance(event, Exposed)}
    reports = [event for event in evidence.events if isinstance(event, Reported)]
    said = []
    if reports:
        more, then = _imagine(gate, state, reports, segments, evidence.next_reach)
        if then is None:
            said.append(f"{MOST_MORE} further devices that report as these did would not change it")
        else:
            said.append(f"{more} further devices that report as these did: {then.value}")
    failing = [Reported(one.device, failed=True) for one in reports] or [Reported("", failed=True)]
    more, then = _imagine(gate, state, failing, segments, None)
    if then is Decision.HALT:
        said.append(f"{more} further devices that all fail: halt")
    for metric, rule in gate.policy.metrics.items():
        if rule.required:
            losing = [replace(one, losses={metric: rule.clip}) for one in reports if not one.failed]
            more, then = _imagine(gate, state, losing, segments, None)
            if then is Decision.HALT:
                said.append(f"{more} further devices that each lose {rule.clip:.3g} of {metric}: halt")
    return said


def _imagine(
    gate: Gate,
    state: GateState,
    reports: Sequence[Reported],
    segments: Mapping[str, tuple[Segment, ...]],
    reach: int | None,
) -> tuple[int, Decision | None]:
    """Let the same reports come again, of further devices, until the verdict changes."""
    before = gate.decide(state, reach).decision
    for more in range(1, MOST_MORE + 1 if reports else 1):
        report = reports[(more - 1) % len(reports)]
        own = segments.get(report.device, ())
        state = gate.report(gate.expose(state, own), own, report)
        now = gate.decide(state, reach).decision
        if now is not before and (now is Decision.HALT or reach is not None):
            return more, now
    return MOST_MORE, None
