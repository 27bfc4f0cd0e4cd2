"""`sprat_server.rollouts.gates` over thousands of rollouts at once: the same games, the same order of sums, in numpy.

That it gives the gate's own bits is tested (`tests/unit/benchmarks/test_gates_engine.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gating.devices import SITES, Devices, Draw, Flags, Floats
from sprat_server.rollouts.gate_policy import FAILURES, GatePolicy
from sprat_server.rollouts.gates import CAREFUL_FROM, CAREFUL_STEP
from sprat_shared.evidence.eprocess import Game

Counts = npt.NDArray[np.int64]
NEVER: Final = 2**40


class Table:
    """The capitals of one game in each of many rollouts, (bets, rollouts)."""

    def __init__(self, game: Game, rollouts: int) -> None:
        self.game = game
        self.capital = np.ones((len(game.bets), rollouts))
        of_bets = np.array([(bet.clip, bet.stake, bet.weight) for bet in game.bets])
        self._clip, self._stake, self._weight = of_bets.T[:, :, np.newaxis]

    def play(self, rows: Counts | slice, loss: Floats) -> None:
        """Play one observation in each of these rollouts."""
        gain = np.clip(loss, -self._clip, self._clip) - self.game.null
        with np.errstate(over="ignore"):
            self.capital[:, rows] *= 1.0 + self._stake * (gain if self.game.harm else -gain)

    def e_values(self, rows: Counts | slice) -> Floats:
        """Return the e-values of these rollouts, summed in the order of the bets."""
        parts = self._weight * self.capital[:, rows]
        total: Floats = parts[0].copy()
        for part in parts[1:]:
            total += part
        return total


class Gates:
    """The gate of each of many rollouts, over all devices and, with `sites`, over each of five.

    Args:
        policy: of all of them.
        rollouts: how many.
        sites: whether the false-alarm rate is split over sites, of so many devices each.
    """

    def __init__(self, policy: GatePolicy, rollouts: int, *, sites: int | None) -> None:
        cohort = {} if sites is None else {f"site={i}": sites for i in range(SITES)}
        self.policy, self.shares = policy, policy.scopes(cohort)
        self.tables = {
            (name, metric): Table(game, rollouts) for name in self.shares for metric, game in policy.games.items()
        }
        self.proofs = {
            (metric, margin): Table(game, rollouts)
            for metric, rule in policy.metrics.items()
            if rule.required
            for margin, game in zip(rule.margins, rule.no_harm, strict=True)
        }
        self.e_parts = {key: np.ones(rollouts) for key in self.tables}
        self.succeeded = np.zeros(rollouts, bool)
        self.first_failures = np.zeros(rollouts, np.int64)

    def report(self, draw: Draw) -> None:
        """Hear one device of each rollout."""
        everyone = slice(None)
        losses = {FAILURES: draw.failed.astype(float), **draw.losses}
        at_site = [np.nonzero(draw.site == site)[0] for site in range(SITES)]
        for (name, metric), table in self.tables.items():
            rows = everyone if "=" not in name else at_site[int(name.partition("=")[2])]
            table.play(rows, losses[metric][rows])
            self.e_parts[name, metric][rows] = table.e_values(rows)
        for (metric, _), table in self.proofs.items():
            table.play(everyone, losses[metric])
        self.succeeded |= ~draw.failed
        self.first_failures += ~self.succeeded

    def e_value(self) -> Floats:
        """Return the weighted e-value of each rollout, (rollouts,)."""
        weights, total = self.policy.weights, np.zeros(len(self.succeeded))
        for (name, metric), e_values in self.e_parts.items():
            total += self.shares[name] * weights[metric] * e_values
        return total

    def halted(self) -> Flags:
        """Say which rollouts halt now."""
        first = self.policy.first_failures
        hard = ~self.succeeded & (self.first_failures >= first) if first else np.zeros(len(self.succeeded), bool)
        return hard | (self.e_value() >= self.policy.halts_at)

    def reach(self, exposed: int) -> Floats:
        """Return how many devices may have the release in each rollout, when all `exposed` devices have reported."""
        enough = 1 / self.policy.open_alpha
        most = np.where(self.e_value() < CAREFUL_FROM, np.inf, exposed + max(1, exposed // CAREFUL_STEP))
        for metric, rule in self.policy.metrics.items():
            if not rule.required:
                continue
            reach = np.full(len(most), float(rule.reach(rule.clip)))
            for margin in reversed(rule.margins):
                proven = self.proofs[metric, margin].e_values(slice(None)) >= enough
                reach[proven] = rule.reach(margin)
            most = np.minimum(most, reach)
        return most

    def strongest(self) -> list[str]:
        """Return which scope has the greatest part in each rollout's e-value."""
        weights, keys = self.policy.weights, list(self.e_parts)
        parts = [self.shares[name] * weights[metric] * self.e_parts[name, metric] for name, metric in keys]
        return [keys[i][0] for i in np.argmax(np.stack(parts), axis=0)]

    def keep(self, rows: Flags) -> None:
        """Forget all rollouts but these."""
        for table in (*self.tables.values(), *self.proofs.values()):
            table.capital = table.capital[:, rows]
        self.e_parts = {key: e_values[rows] for key, e_values in self.e_parts.items()}
        self.succeeded, self.first_failures = self.succeeded[rows], self.first_failures[rows]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many rollouts ended.

    Attributes:
        halted_after: (rollouts,), reports at the halt; `NEVER` where there was none.
        exposed: (rollouts,), devices that were offered the release at the end.
        held: (rollouts,): it waits at a wave for a person.
        scopes: what spoke loudest at the halt, of those that halted.
    """

    halted_after: Counts
    exposed: Counts
    held: Flags
    scopes: Sequence[str]


def run(
    devices: Devices,
    policy: GatePolicy,
    *,
    rollouts: int,
    horizon: int,
    seed: int,
    sites: int | None = None,
    waves: Sequence[int] = (),
) -> Outcome:
    """Simulate rollouts, each looked at after every report.

    Args:
        devices: how a device behaves.
        policy: of the gate.
        rollouts: how many.
        horizon: devices of a fleet.
        seed: of the draws.
        sites: devices of a site, where sites are judged by themselves.
        waves: reach of each wave, the last that of the fleet; none: all devices are exposed at once. When all exposed
            devices have reported, as many more are as the next wave has and the gate lets; where that is none, the
            rollout is held.
    """
    rng = np.random.default_rng(seed)
    gates = Gates(policy, rollouts, sites=sites)
    there = np.arange(rollouts)
    halted_after, held, scopes = np.full(rollouts, NEVER), np.zeros(rollouts, bool), list[str]()
    plan = np.minimum(np.array(waves or [horizon]), horizon)
    exposed = np.full(rollouts, plan[0])
    for reported in range(1, horizon + 1):
        draw = _only(devices.draw(rng, rollouts), there)
        gates.report(draw)
        halts = gates.halted()
        halted_after[there[halts]] = reported
        if halts.any():
            strongest = gates.strongest()
            scopes += [strongest[i] for i in np.nonzero(halts)[0]]
        waits = np.zeros(len(there), bool)
        complete = ~halts & (exposed[there] == reported) & (reported < horizon)
        if complete.any():
            following = plan[np.minimum(np.searchsorted(plan, reported, side="right"), len(plan) - 1)]
            reach = np.minimum(following, gates.reach(reported))
            waits = complete & (reach.astype(np.int64) <= reported)
            goes = complete & ~waits
            exposed[there[goes]] = reach[goes].astype(np.int64)
            held[there[waits]] = True
        stays = ~halts & ~waits
        if not stays.all():
            gates.keep(stays)
            there = there[stays]
        if not len(there):
            break
    return Outcome(halted_after, exposed, held, scopes)


def _only(draw: Draw, rows: Counts) -> Draw:
    if len(rows) == len(draw.failed):
        return draw
    losses = {metric: loss[rows] for metric, loss in draw.losses.items()}
    return Draw(losses, draw.failed[rows], draw.refused[rows], draw.old[rows], draw.new[rows], draw.site[rows])
