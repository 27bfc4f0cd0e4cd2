"""Paired validation: old and new release answer the same holdout samples; only the samples they differ on can speak.

If both were equally good, each discordant sample would be as likely lost as won, so the number of losses is binomial
with 1/2 and its tail is exact (McNemar, Psychometrika 12, 1947, in the exact form). A release is refused
- when it loses significantly and by more than a tolerance: neither a harmless significant trifle of a large holdout
  nor the noise of a small one refuses a good update;
- when it loses very much, even where the samples are too few for significance.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from sprat_client.agent.samples import Holdout
from sprat_client.agent.settings import ValidationSettings
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost, PortSpec, fit_input
from sprat_shared.errors import InvalidInput, UpdateRejected
from sprat_shared.protocol.report import Evidence

Mode = Literal["paired", "labelled", "unvalidated"]
_SEED: Final = 20
_FREE_AXIS: Final = 16  # length given to free axes other than the batch's, for the probe


class ValidationRefused(UpdateRejected):
    """The new release is worse than the old one on this device, or gives no usable answers."""

    code = "validation.worse"

    def __init__(self, message: str, *, code: str | None = None, evidence: Evidence | None = None) -> None:
        super().__init__(message, code=code)
        self.evidence = evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What validation could say.

    Attributes:
        mode: `paired`; `labelled` where there was no old release; `unvalidated` where there were no labels.
        evidence: counts and latencies.
        latency_s: 50th and 95th percentile of the new release, and
        old_latency_s: of the old one.
        resident_bytes: memory of the process with the releases loaded.
        detail: a sentence for people.
    """

    mode: Mode
    evidence: Evidence
    latency_s: tuple[float, float]
    old_latency_s: tuple[float, float] | None
    resident_bytes: int
    detail: str


def tail(losses: int, discordant: int) -> float:
    """Return the exact probability of at least `losses` heads in `discordant` fair throws."""
    return float(sum(math.comb(discordant, k) for k in range(losses, discordant + 1)) / 2**discordant)


def judge(*, samples: int, only_old: int, only_new: int, settings: ValidationSettings) -> str | None:
    """Return why the new release is refused, or None where it may be kept.

    Args:
        samples: all samples.
        only_old: samples that only the old release had right.
        only_new: samples that only the new one had right.
        settings: thresholds.
    """
    lost = only_old - only_new
    drop = lost / samples
    p_worse = tail(only_old, only_old + only_new)
    counts = f"{only_old} samples lost, {only_new} won of {samples}"
    if drop > settings.tolerance and p_worse < settings.alpha:
        return f"it is worse: {counts} (p = {p_worse:.2g})"
    if drop > settings.large_drop and lost >= settings.large_drop_samples:
        return f"it is much worse: {counts}"
    return None


def validate(
    new: ModelHost, old: ModelHost | None, holdout: Holdout | None, settings: ValidationSettings
) -> Validation:
    """Compare a new release with the old one.

    Args:
        new: the new release, loaded.
        old: the release that serves; None before the first.
        holdout: labelled samples; None: only finite answers are asked for, and the result says `unvalidated`.
        settings: thresholds.

    Raises:
        ValidationRefused: the new release is worse, or its answers are not finite or have another shape.
        InvalidInput: the holdout does not fit the model.
    """
    _check_ports(new, old)
    if holdout is None:
        return _probe(new, old, settings)
    inputs = fit_input(_only_input(new), holdout.inputs)
    new_right = np.asarray(_answers(new, inputs, settings.batch) == holdout.labels)
    old_right = None if old is None else _old_right(old, inputs, holdout.labels, settings.batch)
    samples = len(holdout.labels)
    only_old = only_new = 0
    if old_right is not None:
        only_old, only_new = int((old_right & ~new_right).sum()), int((new_right & ~old_right).sum())
    latency, old_latency = _latencies(new, old, {new.inputs[0].name: inputs[:1]}, settings.latency_runs)
    evidence = Evidence(
        samples=samples,
        old_correct=None if old_right is None else int(old_right.sum()),
        new_correct=int(new_right.sum()),
        only_old=only_old,
        only_new=only_new,
        p_worse=tail(only_old, only_old + only_new),
        old_latency_s=None if old_latency is None else old_latency[0],
        new_latency_s=latency[0],
    )
    why = judge(samples=samples, only_old=only_old, only_new=only_new, settings=settings)
    if why is not None:
        raise ValidationRefused(f"validation on {samples} holdout samples: {why}", evidence=evidence)
    return Validation(
        mode="labelled" if old is None else "paired",
        evidence=evidence,
        latency_s=latency,
        old_latency_s=old_latency,
        resident_bytes=resident_bytes(),
        detail=f"{evidence.new_correct} of {samples} right, {only_old} lost, {only_new} won",
    )


def _probe(new: ModelHost, old: ModelHost | None, settings: ValidationSettings) -> Validation:
    """Ask for finite answers to made-up inputs, where there are no samples."""
    values = {spec.name: _made_up(spec) for spec in new.inputs}
    detail = "no holdout samples: only finite answers to made-up inputs were asked for"
    free = any(n is None for spec in new.inputs for n in spec.shape[1:])
    latency: tuple[float, float] = (0.0, 0.0)
    old_latency = None
    try:
        _check_finite(new.run(values))
        latency, old_latency = _latencies(new, old, values, settings.latency_runs)
    except InferenceFailed as bad:
        if not free:
            raise ValidationRefused(f"validation: {bad}", code="validation.fails") from bad
        detail = "no holdout samples, and the model has free axes that made-up inputs do not fit: nothing was checked"
    evidence = Evidence(
        samples=0,
        old_correct=None,
        new_correct=0,
        only_old=0,
        only_new=0,
        p_worse=1.0,
        old_latency_s=None if old_latency is None else old_latency[0],
        new_latency_s=latency[0],
    )
    return Validation(
        mode="unvalidated",
        evidence=evidence,
        latency_s=latency,
        old_latency_s=old_latency,
        resident_bytes=resident_bytes(),
        detail=detail,
    )


def _made_up(spec: PortSpec) -> Array:
    """Return one sample of standard normal numbers, or zeros for integers."""
    shape = [1 if axis == 0 else n or _FREE_AXIS for axis, n in enumerate(spec.shape)]
    if spec.dtype.kind == "f":
        return np.random.default_rng(_SEED).standard_normal(shape).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)


def _check_ports(new: ModelHost, old: ModelHost | None) -> None:
    """Refuse other inputs or outputs than the old release's; only the last axis of an output, its classes, may differ.

    A label beyond the outputs of either release is wrong there: the paired comparison says what classes are worth.
    """
    if old is None:
        return
    if list(new.inputs) != list(old.inputs):
        raise _changed("inputs", new.inputs, old.inputs)
    if [_but_classes(port) for port in new.outputs] != [_but_classes(port) for port in old.outputs]:
        raise _changed("outputs", new.outputs, old.outputs)


def _but_classes(port: PortSpec) -> tuple[PortSpec, int]:
    return replace(port, shape=port.shape[:-1]), len(port.shape)


def _changed(kind: str, ours: Sequence[PortSpec], theirs: Sequence[PortSpec]) -> ValidationRefused:
    return ValidationRefused(f"validation: {kind} changed from {theirs} to {ours}", code="validation.shape")


def _only_input(host: ModelHost) -> PortSpec:
    if len(host.inputs) != 1:
        raise InvalidInput(
            f"the model has {len(host.inputs)} inputs; a holdout of one array `inputs` does not fit",
            code="holdout.invalid",
        )
    return host.inputs[0]


def _check_finite(outputs: Sequence[Array]) -> None:
    for output in outputs:
        if output.dtype.kind == "f" and not np.isfinite(output).all():
            raise ValidationRefused("validation: an answer holds NaN or Inf", code="validation.not-finite")


def _answers(host: ModelHost, inputs: Array, batch: int) -> Array:
    """Return the class with the largest logit of every sample, (n,).

    Raises:
        ValidationRefused: an answer is not finite, or is not (batch, classes).
    """
    classes = []
    name = host.inputs[0].name
    for start in range(0, len(inputs), batch):
        values = inputs[start : start + batch]
        try:
            outputs = host.run({name: values})
        except InferenceFailed as bad:
            raise ValidationRefused(f"validation: {bad}", code="validation.fails") from bad
        _check_finite(outputs)
        logits = outputs[0]
        if logits.ndim != 2 or len(logits) != len(values):  # noqa: PLR2004  # (batch, classes)
            raise ValidationRefused(
                f"validation: {len(values)} samples gave an answer of shape {logits.shape}, not (batch, classes)",
                code="validation.shape",
            )
        classes.append(logits.argmax(axis=1))
    return np.concatenate(classes)


def _old_right(old: ModelHost, inputs: Array, labels: Array, batch: int) -> npt.NDArray[np.bool_]:
    """Return which samples the old release has right: none, where it fails itself."""
    try:
        return np.asarray(_answers(old, inputs, batch) == labels)
    except ValidationRefused:
        return np.zeros(len(labels), np.bool_)


def _latencies(
    new: ModelHost, old: ModelHost | None, values: Mapping[str, Array], runs: int
) -> tuple[tuple[float, float], tuple[float, float] | None]:
    """Time single inferences, new and old in turn, after one to warm up; return 50th and 95th percentiles, seconds.

    An old release that fails has no latency.
    """
    times: dict[bool, list[float]] = {True: [], False: []}
    for run in range(runs + 1):
        for is_new, host in ((True, new), (False, old)):
            start = time.perf_counter()
            try:
                answered = host is not None and bool(host.run(values))
            except InferenceFailed:
                if is_new:
                    raise
                answered = False
            if run and answered:
                times[is_new].append(time.perf_counter() - start)
    return _percentiles(times[True]) or (0.0, 0.0), _percentiles(times[False])


def _percentiles(times: list[float]) -> tuple[float, float] | None:
    if not times:
        return None
    p50, p95 = np.percentile(times, [50, 95])
    return float(p50), float(p95)


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where the system does not say."""
    try:
        fields = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in fields.splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
