"""Drift: whether the fleet's accuracy of a model has fallen below a bound, and what is to be done about it. Pure.

Accuracy is of the devices' own labelled samples (their newest word on the release that they serve), so a device is
what is drawn, not a sample: the bound on it comes from how much devices differ. The other signal needs no labels: how
far the newer inputs of a device lie from its older ones, as it said with its newest update.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median
from typing import Any, Final

from sprat_server.fleet.drift_policy import DriftPolicy

LOOK_BACK_S: Final = 30 * 86400.0
"""Over so long retrains are counted against `most_retrains`."""

_NORMAL_95: Final = 1.6448536269514722  # quantile of the normal distribution


class Verdict(StrEnum):
    """What is known."""

    UNKNOWN = "unknown"  # too few devices or samples have said something
    FINE = "fine"
    SUSPECTED = "suspected"  # below the bound, but devices differ too much to call it proven
    BREACHED = "breached"


_WORSE: Final = (Verdict.UNKNOWN, Verdict.FINE, Verdict.SUSPECTED, Verdict.BREACHED)


class Action(StrEnum):
    """What is done."""

    NONE = "none"
    NOTIFY = "notify"
    RETRAIN = "retrain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """What one device said of a model last; either half may be missing.

    Attributes:
        samples: labelled samples, and
        correct: how many of them the release that it serves has right.
        input_drift: distance (0 to 1) of its newer inputs from its older ones.
    """

    samples: int = 0
    correct: int = 0
    input_drift: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the words of a fleet come to.

    Attributes:
        verdict: of all.
        why: in a sentence.
        devices: that have labelled samples, and
        samples: of all of them.
        accuracy: share of these that is right; None: there are none.
        upper: below which it is at 95 %, by how much devices differ.
        drifting: devices that said how far their inputs moved, and
        drift: the median of that.
    """

    verdict: Verdict
    why: str
    devices: int
    samples: int
    accuracy: float | None
    upper: float | None
    drifting: int
    drift: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What was done before, and what stands in the way.

    Attributes:
        stopped: the reason of a person who stopped it; None: nobody did.
        since_last_s: since somebody was last told, or a retrain begun; None: never.
        retrains: begun within `LOOK_BACK_S`.
        busy: what is under way that a retrain would cross; None: nothing.
        dataset: digest of the newest dataset of the name that the policy says; None: there is none.
        used: digests that a retrain for drift has used.
    """

    stopped: str | None = None
    since_last_s: float | None = None
    retrains: int = 0
    busy: str | None = None
    dataset: str | None = None
    used: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done, and why no more than that."""

    action: Action
    why: str


def judge(words: Sequence[Word], policy: DriftPolicy) -> Finding:
    """Return what the words of a fleet come to: the worse of both signals."""
    said = [word for word in words if word.samples]
    samples = sum(word.samples for word in said)
    drifts = [word.input_drift for word in words if word.input_drift is not None]
    accuracy = sum(word.correct for word in said) / samples if samples else None
    upper = None if accuracy is None else min(1.0, accuracy + _error_95(said, samples, accuracy))
    drift = median(drifts) if drifts else None
    signals = [_by_accuracy(policy, len(said), samples, accuracy, upper), _by_inputs(policy, len(drifts), drift)]
    verdict, why = max((signal for signal in signals if signal is not None), key=lambda signal: _WORSE.index(signal[0]))
    return Finding(
        verdict=verdict,
        why=why,
        devices=len(said),
        samples=samples,
        accuracy=accuracy,
        upper=upper,
        drifting=len(drifts),
        drift=drift,
    )


def decide(finding: Finding, policy: DriftPolicy, history: History) -> Decision:
    """Return what is to be done about what was found."""
    if finding.verdict != Verdict.BREACHED:
        return Decision(Action.NONE, finding.why)
    if (held_back := _held_back(policy, history)) is not None:
        return Decision(Action.NONE, held_back)
    if policy.retrain is None:
        return Decision(Action.NOTIFY, finding.why)
    if (cannot := _cannot_retrain(policy, policy.retrain.dataset, history)) is not None:
        return Decision(Action.NOTIFY, f"{finding.why}; {cannot}")
    return Decision(Action.RETRAIN, finding.why)


def _held_back(policy: DriftPolicy, history: History) -> str | None:
    """Return why nothing at all is done now; None: something is."""
    if history.stopped is not None:
        return f"stopped by a person: {history.stopped}"
    if history.since_last_s is not None and history.since_last_s < policy.every_s:
        return f"it was told or acted on lately; again in {(policy.every_s - history.since_last_s) / 3600:.1f} h"
    if policy.retrain is not None and history.busy is not None:
        return f"waits: {history.busy}"
    return None


def _cannot_retrain(policy: DriftPolicy, name: str, history: History) -> str | None:
    """Return why a person must act instead; None: nothing stands in the way of a retrain."""
    if history.retrains >= policy.most_retrains:
        return f"{history.retrains} retrains in 30 days are as many as allowed: a person must look"
    if history.dataset is None:
        return f"there is no dataset {name!r} to retrain on: upload one"
    if history.dataset in history.used:
        return f"it was retrained on the newest dataset {name!r} already: upload new samples under that name"
    return None


def _by_accuracy(
    policy: DriftPolicy, devices: int, samples: int, accuracy: float | None, upper: float | None
) -> tuple[Verdict, str] | None:
    if policy.min_accuracy is None:
        return None
    if accuracy is None or upper is None or devices < policy.min_devices or samples < policy.min_samples:
        asked = f"{policy.min_devices} devices and {policy.min_samples} samples are asked for"
        return Verdict.UNKNOWN, f"{samples} labelled samples on {devices} devices are too few: {asked}"
    said = f"{accuracy:.1%} of {samples} samples on {devices} devices are right"
    if upper < policy.min_accuracy:
        return Verdict.BREACHED, f"{said}, at most {upper:.1%} at 95 %: below {policy.min_accuracy:.1%}"
    if accuracy < policy.min_accuracy:
        return Verdict.SUSPECTED, f"{said}, below {policy.min_accuracy:.1%}; but it may be {upper:.1%}: devices differ"
    return Verdict.FINE, f"{said}: {policy.min_accuracy:.1%} or more"


def _by_inputs(policy: DriftPolicy, devices: int, drift: float | None) -> tuple[Verdict, str] | None:
    most = policy.max_input_drift
    if most is None:
        return None
    if drift is None or devices < policy.min_devices:
        said = f"{devices} devices said how far their inputs moved, {policy.min_devices} are asked for"
        return Verdict.UNKNOWN, said
    said = f"inputs moved by {drift:.2f} on the median of {devices} devices"
    return (Verdict.BREACHED, f"{said}: more than {most:.2f}") if drift > most else (Verdict.FINE, said)


def _error_95(said: Sequence[Word], samples: int, accuracy: float) -> float:
    """Return by how much a share may be off at 95 %, one-sided: each device is one draw; of one device, each sample."""
    if len(said) == 1:
        return _student_95(samples) * math.sqrt(accuracy * (1 - accuracy) / samples)
    spread = sum((word.correct - accuracy * word.samples) ** 2 for word in said)
    return _student_95(len(said) - 1) * math.sqrt(spread * len(said) / (len(said) - 1)) / samples


def _student_95(freedom: int) -> float:
    """Return the 95 % quantile of Student's t (Cornish-Fisher, Abramowitz and Stegun 26.7.5): 1.3 % low at 2."""
    z = _NORMAL_95
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
