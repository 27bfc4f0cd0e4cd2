"""How a release does on a played device: drawn, from what is wrong with it. No clock, no network.

A device's holdout has `SAMPLES` labelled samples. On 4 % of them two releases of equal quality disagree, which makes
the difference of their accuracies noisy by 1.4 points a device. The device judges by the agent's own test.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType
from typing import Final

from sprat_client.agent.judgement import judge, tail
from sprat_client.agent.settings import ValidationSettings
from sprat_shared.protocol.report import Evidence, Outcome

SAMPLES: Final = 200
PROFILES: Final = ("cam-a", "cam-b")
_DISAGREE: Final = 0.02  # each way
_LATENCY_S, _LATENCY_NOISE = 0.02, 0.08
_P95: Final = 1.6  # of the median


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What is wrong with a release; nothing by default.

    Attributes:
        accuracy_drop: share of the samples that it gets wrong and the one before got right, beyond noise.
        slower: an inference takes so many times as long.
        crashes: share of the devices on which it ends the trial.
        silent: share of the devices that are never heard of again.
        profile: it shows on devices of this profile only; None: on all.
    """

    accuracy_drop: float = 0.0
    slower: float = 1.0
    crashes: float = 0.0
    silent: float = 0.0
    profile: str | None = None

    def on(self, profile: str) -> "Trouble":
        """Return what of it shows on devices of a profile."""
        return self if self.profile in {None, profile} else Trouble()


TROUBLES: Final[Mapping[str, Trouble]] = MappingProxyType(
    {
        "none": Trouble(),
        "worse": Trouble(accuracy_drop=0.05),
        "worse-on-one-profile": Trouble(accuracy_drop=0.05, profile=PROFILES[1]),
        "crashes": Trouble(crashes=0.3),
        "silence": Trouble(silent=0.3),
        "slow": Trouble(slower=1.5),
    }
)
"""By what they are called on the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """What a device says of a release: how it ended, why, and what it measured."""

    outcome: Outcome
    evidence: Evidence
    error_code: str | None = None
    error_detail: str | None = None


def react(trouble: Trouble, profile: str, draw: Random) -> Reaction | None:
    """Return what a device of a profile does with a release instead of the one before; None: it is silent for good."""
    here = trouble.on(profile)
    if draw.random() < here.silent:
        return None
    evidence = _measured(here, draw)
    worse = judge(
        samples=SAMPLES, only_old=evidence.only_old, only_new=evidence.only_new, settings=ValidationSettings()
    )
    if worse is not None:
        detail = f"validation on {SAMPLES} holdout samples: {worse}"
        return Reaction(outcome=Outcome.REFUSED, evidence=evidence, error_code="validation.worse", error_detail=detail)
    if draw.random() < here.crashes:
        detail = "the host process died in the trial"
        return Reaction(outcome=Outcome.ROLLED_BACK, evidence=evidence, error_code="trial.crashed", error_detail=detail)
    return Reaction(outcome=Outcome.COMMITTED, evidence=evidence)


def first(draw: Random) -> Reaction:
    """Return what a device says of its first release: there is nothing to compare it with."""
    seen = _measured(Trouble(), draw)
    alone = replace(seen, old_correct=None, only_old=0, only_new=0, p_worse=1.0, old_latency_s=None, mode="labelled")
    return Reaction(outcome=Outcome.COMMITTED, evidence=replace(alone, old_latency_p95_s=None))


def _measured(trouble: Trouble, draw: Random) -> Evidence:
    only_old = sum(draw.random() < _DISAGREE + trouble.accuracy_drop for _ in range(SAMPLES))
    only_new = sum(draw.random() < _DISAGREE for _ in range(SAMPLES - only_old))
    both = sum(draw.random() < draw.uniform(0.8, 0.95) for _ in range(SAMPLES - only_old - only_new))
    old_s = _LATENCY_S * math.exp(draw.gauss(0.0, _LATENCY_NOISE))
    new_s = _LATENCY_S * math.exp(draw.gauss(0.0, _LATENCY_NOISE)) * trouble.slower
    return Evidence(
        samples=SAMPLES,
        old_correct=both + only_old,
        new_correct=both + only_new,
        only_old=only_old,
        only_new=only_new,
        p_worse=tail(only_old, only_old + only_new),
        old_latency_s=old_s,
        new_latency_s=new_s,
        old_latency_p95_s=old_s * _P95,
        new_latency_p95_s=new_s * _P95,
        mode="paired",
    )
