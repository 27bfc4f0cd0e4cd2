"""What others halt on, looked at after every report like the gate, each at eight settings.

Each is given the tolerance: a device or a sample counts as worse only beyond it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from scipy import stats

from gating.devices import Devices, Draw, Floats
from gating.engine import NEVER, Counts

LEVELS: Final = (0.01, 0.2, 0.1, 0.05, 0.005, 1e-3, 1e-4, 1e-5)
"""The first is what people set: a test at 1 %."""
THRESHOLDS: Final = tuple((share, least) for least in (10, 50) for share in (0.05, 0.1, 0.2, 0.3))
"""Share of devices that failed, and reports before it counts. The first is what people set: 5 % after 10."""
_LEAST: Final = 5  # devices before a test is asked


class Peer(Protocol):
    """One method at all its settings."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def settings(self) -> Sequence[str]:
        """Its settings; the first is what people set."""

    def report(self, draw: Draw, reported: int) -> Floats:
        """Hear a device of each rollout; return (settings, rollouts), 1 where it halts now."""


class FailedShare:
    """Halt when more than a share of the devices failed: AWS IoT Jobs' abort criteria, Mender's and balena's way.

    A device fails an update, or refuses it because its own test on its holdout says that it is worse.
    """

    name = "share of failed devices"
    settings = tuple(f"{share:.0%} after {least}" for share, least in THRESHOLDS)

    def __init__(self, rollouts: int) -> None:
        self._failed = np.zeros(rollouts)

    def report(self, draw: Draw, reported: int) -> Floats:
        """See `Peer`."""
        self._failed += draw.failed | draw.refused
        return np.stack([(reported >= n) & (self._failed / reported > share) for share, n in THRESHOLDS]).astype(float)


class MannWhitney:
    """One-sided Mann-Whitney U test of new accuracies against old ones: the judge of canary analysis (Kayenta)."""

    name = "Mann-Whitney"
    settings = tuple(f"p < {level:g}" for level in LEVELS)

    def __init__(self, rollouts: int, horizon: int, tolerance: float) -> None:
        self._old, self._new = np.empty((horizon, rollouts)), np.empty((horizon, rollouts))
        self._worse = np.zeros(rollouts)
        self._tolerance, self._z = tolerance, stats.norm.isf(LEVELS)

    def report(self, draw: Draw, reported: int) -> Floats:
        """See `Peer`."""
        n = reported
        self._old[n - 1], self._new[n - 1] = draw.old - self._tolerance, draw.new
        self._worse += (self._new[n - 1] < self._old[:n]).sum(axis=0) + (self._new[: n - 1] < self._old[n - 1]).sum(
            axis=0
        )
        z = (self._worse - n * n / 2) / (n * n * (2 * n + 1) / 12) ** 0.5
        return np.stack([(n >= _LEAST) & (z > level) for level in self._z]).astype(float)


class Binomial:
    """One-sided exact binomial test: of failures against the allowed rate, or of devices that lost more than allowed.

    For accuracy this is the sign test of the paired differences.
    """

    name = "binomial"
    settings = tuple(f"p < {level:g}" for level in LEVELS)

    def __init__(self, rollouts: int, tolerance: float, *, allowed: float | None) -> None:
        self._hits, self._trials = np.zeros(rollouts), np.zeros(rollouts)
        self._tolerance, self._allowed = tolerance, allowed

    def report(self, draw: Draw, reported: int) -> Floats:
        """See `Peer`."""
        if self._allowed is not None:
            self._hits += draw.failed
            self._trials[:] = reported
        else:
            loss = draw.losses["accuracy"] - self._tolerance
            self._hits += loss > 0
            self._trials += loss != 0
        rate = 0.5 if self._allowed is None else self._allowed
        p = stats.binom.sf(self._hits - 1, self._trials, rate)
        return np.stack([(reported >= _LEAST) & (p < level) for level in LEVELS]).astype(float)


@dataclass(frozen=True, slots=True)
class Stops:
    """Reports at the halt, (rollouts,) for each setting; `NEVER` where there was none."""

    after: Mapping[str, Counts]


def run(devices: Devices, peer: Peer, *, rollouts: int, horizon: int, seed: int) -> Stops:
    """Let a peer watch the very devices that the gate is given with this seed."""
    rng = np.random.default_rng(seed)
    after = np.full((len(peer.settings), rollouts), NEVER)
    for reported in range(1, horizon + 1):
        halts = peer.report(devices.draw(rng, rollouts), reported) > 0
        after[halts & (after == NEVER)] = reported
        if (after < NEVER).all():
            break
    return Stops(dict(zip(peer.settings, after, strict=True)))
