"""What simulated devices report: one draw is the next device of each of many rollouts."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Noise: TypeAlias = Callable[[np.random.Generator, int], Floats]
"""Deviations of a device's accuracy difference from the mean, in shares of answers."""

NOISE: Final = 0.014  # of the paired accuracy difference of one device: 1.4 points
SPREAD: Final = 0.04  # of accuracy between devices, which pairing takes away
HOLDOUT, DIFFER = 200, 0.04  # samples, and share of them that both releases answer differently: noise of 1.4 points
SITES: Final = 5


@dataclass(frozen=True, slots=True)
class Draw:
    """The next device of each rollout.

    Attributes:
        losses: metric to (rollouts,), as `sprat_server.rollouts.evidence.Reported` has them.
        failed: (rollouts,): refused, rolled back, or could not.
        refused: (rollouts,): its own paired test on its holdout says that it is worse (p < 0.01).
        old: (rollouts,), accuracy of the old release on this device, and
        new: of the new one.
        site: (rollouts,), 0 to `SITES` - 1.
    """

    losses: Mapping[str, Floats]
    failed: Flags
    refused: Flags
    old: Floats
    new: Floats
    site: npt.NDArray[np.int64]


def normal(rng: np.random.Generator, count: int) -> Floats:
    """Independent normal noise."""
    return rng.normal(0.0, NOISE, count)


def student(rng: np.random.Generator, count: int) -> Floats:
    """Student's t with three degrees of freedom, of the same standard deviation: its fourth moment is infinite."""
    return rng.standard_t(3, count) * (NOISE / 3**0.5)


def contaminated(rng: np.random.Generator, count: int) -> Floats:
    """One device of twenty has ten times the noise (a holdout of a hundredth of the size)."""
    return rng.normal(0.0, NOISE, count) * np.where(rng.random(count) < 0.05, 10.0, 1.0)  # noqa: PLR2004 - the share


def skewed(rng: np.random.Generator, count: int) -> Floats:
    """Most devices gain a little, few lose much: minus a lognormal, centred, of the same standard deviation."""
    drawn: Floats = rng.lognormal(0.0, 1.0, count)
    scale = NOISE / ((math.e - 1) * math.e) ** 0.5
    centred: Floats = (math.exp(0.5) - drawn) * scale
    return centred


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """How the devices of a release behave.

    Attributes:
        shift: mean accuracy difference, in shares of answers; negative is worse.
        noise: around it; None: counts of right answers on `HOLDOUT` samples.
        failing: probability that an update fails.
        slower: factor of latency.
        jitter: standard deviation of the log ratio of latency of a device.
        bad_site: only site 0 has the shift.
    """

    shift: float = 0.0
    noise: Noise | None = normal
    failing: float = 0.0
    slower: float = 1.0
    jitter: float = 0.1
    bad_site: bool = False

    def draw(self, rng: np.random.Generator, rollouts: int) -> Draw:
        """Return the next device of each of so many rollouts."""
        site = rng.integers(0, SITES, rollouts)
        shift = np.where(site == 0, self.shift, 0.0) if self.bad_site else np.full(rollouts, self.shift)
        if self.noise is None:
            differ = rng.binomial(HOLDOUT, DIFFER, rollouts)
            won = rng.binomial(differ, np.clip(0.5 + 0.5 * shift / DIFFER, 0.0, 1.0))
            change = (2 * won - differ) / HOLDOUT
        else:
            change = np.clip(shift + self.noise(rng, rollouts), -1.0, 1.0)
        old = rng.normal(0.9, SPREAD, rollouts)
        slow = np.log(self.slower)
        return Draw(
            losses={
                "accuracy": -change,
                "latency_p50": rng.normal(slow, self.jitter, rollouts),
                "latency_p95": rng.normal(slow, 2 * self.jitter, rollouts),
            },
            failed=rng.random(rollouts) < self.failing,
            refused=change < -2.33 * NOISE,
            old=old,
            new=old + change,
            site=site,
        )
