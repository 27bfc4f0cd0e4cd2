"""Whether a rollout's next wave opens, waits, or all of it halts: a pure function of evidence in commit order.

Halt on proof of harm, however often one looks: a weighted mean of e-processes over metrics (accuracy, latencies,
failures) and scopes (all devices, each segment) reaches one over the false-alarm rate, or the very first devices all
failed. Open on proof of no harm and enough reports that are not one-sided. Otherwise hold: nothing passes in silence.

`judge` folds the evidence from the start. A caller that keeps a `GateState` gets the same bits one event at a time with
`expose`, `report` and `decide`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from sprat_server.rollouts.evidence import Acknowledged, Event, Evidence, Exposed, Left, Reported, Segment, kind_of
from sprat_server.rollouts.gate_policy import FAILURES, GatePolicy
from sprat_server.rollouts.gate_state import ALL, GateState, Scope, in_order
from sprat_shared.evidence.eprocess import Game, Wealth, scaled

_PRIOR_DEVICES: Final = 10.0  # a segment's response rate is drawn to everyone's as if so many devices had said so


CAREFUL_FROM: Final = 5.0  # evidence of harm from which the release spreads in small steps
CAREFUL_STEP: Final = 4  # one more device for so many that have it


class Decision(StrEnum):
    """What the gate says."""

    OPEN = "open"  # the next wave may open
    HOLD = "hold"  # not yet: neither harm nor its absence is shown
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and why.

    Attributes:
        decision: open, hold or halt.
        reasons: one sentence each.
        reach: devices that may have the release now, at most those of the next wave; where it does not open, those that
            have it.
    """

    decision: Decision
    reasons: tuple[str, ...]
    reach: int


class Gate:
    """A policy with its games made once. Pure: every method returns a new state.

    Args:
        policy: what is tolerated.
    """

    def __init__(self, policy: GatePolicy) -> None:
        self.policy = policy
        self.games: Mapping[str, Game] = MappingProxyType(policy.games)
        self.no_harm = MappingProxyType({metric: rule.no_harm for metric, rule in policy.metrics.items()})
        self._weights = policy.weights

    def start(self, cohort: Mapping[Segment, int]) -> GateState:
        """Return the state before any event.

        Args:
            cohort: segment to devices of the whole cohort.
        """
        shares = self.policy.scopes(cohort)
        judged = Scope(
            capitals={metric: game.start() for metric, game in self.games.items()},
            e_values=dict.fromkeys(self.games, 1.0),
        )
        kinds = sorted({kind_of(segment) for segment in cohort})
        return GateState(
            scopes={name: judged if name in shares else Scope() for name in (ALL, *sorted(cohort))},
            shares={name: shares[name] for name in in_order(shares)},
            openings={metric: tuple(game.start() for game in games) for metric, games in self.no_harm.items()},
            ratios=dict.fromkeys(kinds, (0.5, 1)),
        )

    def expose(self, state: GateState, segments: tuple[Segment, ...]) -> GateState:
        """Return the state after a device of these segments was offered the release."""
        changed = {name: replace(scope, exposed=scope.exposed + 1) for name, scope in _touched(state, segments)}
        return replace(state, scopes={**state.scopes, **changed})

    def leave(self, state: GateState, segments: tuple[Segment, ...]) -> GateState:
        """Return the state after an exposed device of these segments was revoked before it reported."""
        changed = {name: replace(scope, exposed=scope.exposed - 1) for name, scope in _touched(state, segments)}
        return replace(state, scopes={**state.scopes, **changed})

    def hear(self, state: GateState, event: Event, segments: dict[str, tuple[Segment, ...]]) -> GateState:
        """Return the state after any event.

        Args:
            state: before it.
            event: what happened.
            segments: of the devices that were exposed so far; an exposure adds its own.
        """
        if isinstance(event, Exposed):
            segments[event.device] = event.segments
            return self.expose(state, event.segments)
        if isinstance(event, Acknowledged):
            return self.acknowledge(state)
        if isinstance(event, Left):
            return self.leave(state, segments[event.device])
        return self.report(state, segments[event.device], event)

    def report(self, state: GateState, segments: tuple[Segment, ...], reported: Reported) -> GateState:
        """Return the state after a device of these segments reported: each device once, and only if it was exposed."""
        losses = {FAILURES: float(reported.failed)} | {
            metric: reported.losses[metric] for metric in self.policy.metrics if metric in reported.losses
        }
        ratios = state.ratios if reported.lost else self._ratios(state, segments)
        changed = {name: self._scope_after(scope, reported, losses) for name, scope in _touched(state, segments)}
        openings = {
            metric: tuple(
                game.play(capital, losses[metric]) if metric in losses else capital
                for game, capital in zip(self.no_harm[metric], capitals, strict=True)
            )
            for metric, capitals in state.openings.items()
        }
        succeeded = state.succeeded or not reported.failed
        after = replace(
            state,
            scopes={**state.scopes, **changed},
            openings=openings,
            ratios=ratios,
            first_failures=state.first_failures + (not succeeded),
            succeeded=succeeded,
        )
        return after if after.halted_by is not None else replace(after, halted_by=self._harm(after))

    def acknowledge(self, state: GateState) -> GateState:
        """Return the state after a person has forgiven the failures so far.

        What the games on failures have won is burnt (`Game.burn`), and the hard stop on the first failures is spent.
        The false-alarm rate stays what it is; what was measured (accuracy, latency) is not touched, and where that
        halts by itself it still does.
        """
        game = self.games[FAILURES]
        scopes = {}
        for name, scope in state.scopes.items():
            if FAILURES not in scope.capitals:
                scopes[name] = scope
                continue
            capital = game.burn(scope.capitals[FAILURES])
            scopes[name] = replace(
                scope,
                capitals={**scope.capitals, FAILURES: capital},
                e_values={**scope.e_values, FAILURES: game.e_value(capital)},
            )
        after = replace(state, scopes=scopes, succeeded=True, halted_by=None)
        return replace(after, halted_by=self._harm(after))

    def fold(self, evidence: Evidence) -> GateState:
        """Return the state after all of the evidence."""
        state = self.start(evidence.cohort)
        segments: dict[str, tuple[Segment, ...]] = {}
        for event in evidence.events:
            state = self.hear(state, event, segments)
        return state

    def e_value(self, state: GateState) -> float:
        """Return the weighted e-value of all games; it halts at `policy.halts_at`."""
        total = 0.0
        for name, share in state.shares.items():
            for metric, e_value in self.parts(state.scopes[name]):
                total += share * self._weights[metric] * e_value
        return total

    def parts(self, scope: Scope) -> list[tuple[str, float]]:
        """Return the metrics and e-values of a scope in the order in which they are summed."""
        return [(metric, scope.e_values[metric]) for metric in self.games if metric in scope.e_values]

    def decide(self, state: GateState, next_reach: int | None) -> Verdict:
        """Return the verdict in this state.

        Args:
            state: after all events so far.
            next_reach: devices that will have the release with the next wave; None: none waits.
        """
        exposed = state.scopes[ALL].exposed
        if state.halted_by is not None:
            return Verdict(Decision.HALT, (state.halted_by,), exposed)
        missing = [*self._unreported(state), *self._one_sided(state)]
        if next_reach is not None:
            missing += self._unmeasured(state)
        reach = exposed if next_reach is None else int(min(next_reach, self.reach(state)))
        if next_reach is not None and reach <= exposed and not missing:
            missing += self._unproven(state)
        if missing:
            return Verdict(Decision.HOLD, tuple(missing), exposed)
        reported, harm = state.scopes[ALL].reported, self.e_value(state)
        why = f"{reported} devices reported; evidence of harm {harm:.3g}, of {self.policy.halts_at:.0f}"
        return Verdict(Decision.OPEN, (why, *self._proven(state)), reach)

    def reach(self, state: GateState) -> float:
        """Return how many devices may have the release.

        As many as what is proven of every required metric lets; a quarter more than now while there is some evidence of
        harm, until it halts or fades.
        """
        most = math.inf
        if self.e_value(state) >= CAREFUL_FROM:
            most = state.scopes[ALL].exposed + max(1, state.scopes[ALL].exposed // CAREFUL_STEP)
        for metric, rule in self.policy.metrics.items():
            if rule.required:
                most = min(most, rule.reach(self.proven(state, metric)))
        return most

    def proven(self, state: GateState, metric: str) -> float:
        """Return the least margin that is proven to exceed the mean loss; the clip where none is."""
        rule = self.policy.metrics[metric]
        for margin in rule.margins:
            if self.proof(state, metric, margin) >= 1 / self.policy.open_alpha:
                return margin
        return rule.clip

    def _scope_after(self, scope: Scope, reported: Reported, losses: Mapping[str, float]) -> Scope:
        capitals, e_values, sums = dict(scope.capitals), dict(scope.e_values), dict(scope.sums)
        for metric, loss in losses.items():
            if metric != FAILURES:
                count, total = sums.get(metric, (0, 0.0))
                sums[metric] = (count + 1, total + loss)
            if metric in capitals:
                capitals[metric] = self.games[metric].play(capitals[metric], loss)
                e_values[metric] = self.games[metric].e_value(capitals[metric])
        return Scope(
            exposed=scope.exposed,
            reported=scope.reported + 1,
            failed=scope.failed + reported.failed,
            lost=scope.lost + reported.lost,
            capitals=capitals,
            e_values=e_values,
            sums=sums,
        )

    @staticmethod
    def _ratios(state: GateState, segments: tuple[Segment, ...]) -> dict[str, Wealth]:
        """Bet on which segment the next answer comes from.

        Where silence is random, it is any of the devices that are still awaited, each as likely. The bet weighs a
        segment's devices by how often its devices have answered so far.
        """
        everyone = state.scopes[ALL]
        rate = (everyone.reported - everyone.lost + 1.0) / (everyone.exposed + 1.0)
        ratios = dict(state.ratios)
        for own in segments:
            kind = kind_of(own)
            awaited, expected, ours = 0.0, 0.0, 0.0
            for name in in_order(state.scopes):
                if kind_of(name) != kind or name == ALL:
                    continue
                scope = state.scopes[name]
                left = scope.exposed - scope.reported
                answering = (scope.reported - scope.lost + _PRIOR_DEVICES * rate) / (scope.exposed + _PRIOR_DEVICES)
                awaited += left
                expected += left * answering
                ours = answering if name == own else ours
            ratios[kind] = scaled(ratios[kind], ours * awaited / expected)
        return ratios

    def _harm(self, state: GateState) -> str | None:
        first = self.policy.first_failures
        if first and not state.succeeded and state.first_failures >= first:
            return f"the first {first} devices that reported all failed"
        e_value = self.e_value(state)
        if e_value < self.policy.halts_at:
            return None
        share, metric, name = max(
            (self.policy.weights[metric] * share * e, metric, name)
            for name, share in state.shares.items()
            for metric, e in self.parts(state.scopes[name])
        )
        scope = state.scopes[name]
        if metric == FAILURES:
            what = f"{scope.failed} of {scope.reported} failed, where {self.policy.allowed_failures:.3g} may"
        else:
            count, total = scope.sums[metric]
            what = f"{metric} is worse by {total / count:.4g} on average over {count}"
            what += f", where {self.policy.metrics[metric].tolerance:.3g} may"
        return (
            f"evidence of harm {e_value:.4g} reached {self.policy.halts_at:.4g}, {share / e_value:.0%} of it from "
            f"{metric} of {name}: {what}"
        )

    def _unreported(self, state: GateState) -> list[str]:
        scope = state.scopes[ALL]
        wanted = max(1, min(self.policy.min_reports, scope.exposed))
        missing = []
        if scope.reported < wanted:
            missing.append(f"{scope.reported} devices reported, {wanted} must")
        if scope.reported < self.policy.min_reported * scope.exposed:
            missing.append(
                f"{scope.reported} of {scope.exposed} exposed devices reported, {self.policy.min_reported:.0%} must"
            )
        return missing

    def _one_sided(self, state: GateState) -> list[str]:
        most = 1 / self.policy.ratio_alpha
        return [
            f"silence is not random by {kind} (evidence {value:.3g}, of {most:.0f}): the answers that are missing may "
            f"be the bad ones; {_quietest(state, kind)}"
            for kind, (mantissa, exponent) in state.ratios.items()
            if (value := math.ldexp(mantissa, exponent)) >= most
        ]

    def _unmeasured(self, state: GateState) -> list[str]:
        scope = state.scopes[ALL]
        wanted = max(1, math.ceil(self.policy.min_reported * min(self.policy.min_reports, scope.exposed)))
        return [
            f"{count} devices measured {metric}, at least {wanted} must"
            for metric, rule in self.policy.metrics.items()
            if rule.required and (count := scope.sums.get(metric, (0, 0.0))[0]) < wanted
        ]

    def _unproven(self, state: GateState) -> list[str]:
        enough = 1 / self.policy.open_alpha
        return [
            f"{metric} is proven to fall by less than {margin:.3g} only, enough for {rule.reach(margin):.0f} devices; "
            f"for {rule.tolerance:.3g} the evidence is {self.proof(state, metric, rule.tolerance):.3g}, of {enough:.0f}"
            for metric, rule in self.policy.metrics.items()
            if rule.required and rule.reach(margin := self.proven(state, metric)) <= state.scopes[ALL].exposed
        ]

    def proof(self, state: GateState, metric: str, margin: float) -> float:
        """Return the evidence that a metric's mean loss is below one of its margins."""
        at = self.policy.metrics[metric].margins.index(margin)
        return self.no_harm[metric][at].e_value(state.openings[metric][at])

    def _proven(self, state: GateState) -> list[str]:
        return [
            f"{metric} falls by less than {self.proven(state, metric):.3g}"
            for metric, rule in self.policy.metrics.items()
            if rule.required
        ]


def judge(evidence: Evidence, policy: GatePolicy) -> Verdict:
    """Return what the gate says of the evidence; the same evidence and policy always give the same verdict."""
    gate = Gate(policy)
    return gate.decide(gate.fold(evidence), evidence.next_reach)


def _touched(state: GateState, segments: tuple[Segment, ...]) -> list[tuple[str, Scope]]:
    return [(name, state.scopes[name]) for name in (ALL, *segments)]


def _quietest(state: GateState, kind: str) -> str:
    rates = [
        ((scope.reported - scope.lost) / scope.exposed, name)
        for name, scope in state.scopes.items()
        if name != ALL and kind_of(name) == kind and scope.exposed
    ]
    rate, name = min(rates)
    return f"{name} answered for {rate:.0%}"
