"""Paired validation: old and new release answer the same holdout samples; `judgement` says what that shows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from sprat_client.agent.agreement import Agreement, compare_unlabelled
from sprat_client.agent.answers import check_finite
from sprat_client.agent.judgement import NOTHING_SEEN, ValidationRefused, brief, judge, tail
from sprat_client.agent.measure import Memory, Times, made_up, time_in_turn
from sprat_client.agent.samples import Holdout
from sprat_client.agent.settings import ValidationSettings
from sprat_client.runtime.memory import resident_bytes
from sprat_client.runtime.ports import Array, InferenceFailed, ModelHost, PortSpec, fit_input
from sprat_shared.errors import InvalidInput
from sprat_shared.evidence.bounds import is_slower, lowest_share
from sprat_shared.evidence.certificate import samples_needed
from sprat_shared.protocol.report import Evidence

Mode = Literal["paired", "labelled", "unlabelled", "unvalidated"]
_PAIRS: Final = 200  # timed of each before a release is refused for its latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What validation could say.

    Attributes:
        mode: `paired`; `labelled` where there was no old release; `unlabelled` where inputs had no labels, which is
            weaker; `unvalidated` where there was neither.
        evidence: counts, latencies and bytes.
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

    @property
    def told(self) -> str:
        """The mode, as the status says it: with `unproven` where too few samples were compared."""
        return f"{self.mode}, unproven" if self.evidence.unproven else self.mode


def validate(
    new: ModelHost,
    old: ModelHost | None,
    holdout: Holdout | None,
    settings: ValidationSettings,
    *,
    inputs: Array | None = None,
    memory: Memory | None = None,
    budget: float | None = None,
) -> Validation:
    """Compare a new release with the old one.

    Args:
        new: the new release, loaded.
        old: the release that serves; None before the first.
        holdout: labelled samples; None: there are none, and the comparison is weaker.
        settings: thresholds.
        inputs: (n, ...) without labels, older ones first; asked where there are no labels.
        memory: what both take; None: not measured.
        budget: the new release is a near copy of the old one: the share of answers that may differ, as it was signed.
            Inputs without labels are held against it; None: it is a release by itself.

    Raises:
        ValidationRefused: the new release is worse, too slow or too large, its answers are not finite or have another
            shape, or more of them differ than its budget allows, or there are too few samples and the policy refuses
            that.
        InvalidInput: the samples do not fit the model.
    """
    _check_ports(new, old)
    if holdout is not None:
        mode, evidence, why, detail = _on_holdout(new, old, holdout, settings)
        sample = {new.inputs[0].name: fit_input(_only_input(new), holdout.inputs[:1])}
    elif inputs is not None:
        mode, evidence, why, detail = _on_inputs(new, old, fit_input(_only_input(new), inputs), settings, budget)
        sample = {new.inputs[0].name: fit_input(new.inputs[0], inputs[:1])}
    else:
        mode, evidence, why, detail = "unvalidated", NOTHING_SEEN, None, _NO_SAMPLES
        sample = made_up(new)
    evidence = replace(evidence, mode=mode)
    if old is not None and (few := _too_few(evidence, settings, budget)) is not None:
        evidence, detail = replace(evidence, unproven=True), f"{detail}; unproven: {few}"
        if why is None and settings.too_few == "refuse":
            why = ValidationRefused(f"validation: {few}", code="validation.too-few")
    times = Times()
    try:
        if holdout is None and inputs is None:
            _check_finite(new.run(sample))
        times = time_in_turn(new, old, sample, settings.latency_runs, budget_s=settings.latency_budget_s)
        why = why or _too_slow(new, old, sample, times, settings)
    except InferenceFailed as bad:
        if holdout is not None or inputs is not None or not _has_free_axes(new):
            raise ValidationRefused(f"validation: {bad}", code="validation.fails") from bad
        detail = "no holdout samples, and the model has free axes that made-up inputs do not fit: nothing was checked"
    evidence = _with_costs(evidence, times, memory)
    why = why or _too_large(memory, settings)
    if why is not None:
        why.evidence = evidence
        raise why
    latency, old_latency = times.percentiles()
    return Validation(
        mode=mode,
        evidence=evidence,
        latency_s=latency,
        old_latency_s=old_latency,
        resident_bytes=resident_bytes(),
        detail=detail,
    )


_NO_SAMPLES: Final = "no holdout samples: only finite answers to made-up inputs were asked for"
_Why = ValidationRefused | None
_Said = tuple[Mode, Evidence, _Why, str]


def _on_holdout(new: ModelHost, old: ModelHost | None, holdout: Holdout, settings: ValidationSettings) -> _Said:
    """Count right and wrong answers of both to labelled samples."""
    inputs = fit_input(_only_input(new), holdout.inputs)
    new_right = np.asarray(_answers(new, inputs, settings.batch) == holdout.labels)
    old_right = None if old is None else _old_right(old, inputs, holdout.labels, settings.batch)
    samples = len(holdout.labels)
    only_old = only_new = 0
    if old_right is not None:
        only_old, only_new = int((old_right & ~new_right).sum()), int((new_right & ~old_right).sum())
    evidence = replace(
        NOTHING_SEEN,
        samples=samples,
        old_correct=None if old_right is None else int(old_right.sum()),
        new_correct=int(new_right.sum()),
        only_old=only_old,
        only_new=only_new,
        p_worse=tail(only_old, only_old + only_new),
    )
    worse = judge(samples=samples, only_old=only_old, only_new=only_new, settings=settings)
    why = None if worse is None else ValidationRefused(f"validation on {samples} holdout samples: {worse}")
    detail = f"{evidence.new_correct} of {samples} right, {only_old} lost, {only_new} won"
    return "labelled" if old is None else "paired", evidence, why, detail


def _on_inputs(
    new: ModelHost, old: ModelHost | None, inputs: Array, settings: ValidationSettings, budget: float | None
) -> _Said:
    """Count where both say the same of inputs without labels."""
    seen = None if old is None else _agreement(new, old, inputs, settings.batch)
    if seen is None:
        for start in range(0, len(inputs), settings.batch):
            _run(new, inputs[start : start + settings.batch])
        detail = f"finite answers to {len(inputs)} inputs without labels, and nothing to compare them with"
        return "unvalidated", NOTHING_SEEN, None, detail
    counts: dict[str, Any] = {name: brief(one) if isinstance(one, float) else one for name, one in asdict(seen).items()}
    evidence = replace(NOTHING_SEEN, **counts)
    detail = (
        f"without labels: {seen.agreed} of {seen.compared} answers were the old release's, so accuracy fell by at most "
        f"{seen.max_drop:.3f} (95 %)"
    )
    why = None
    if settings.min_agreement is not None and seen.agreed < settings.min_agreement * seen.compared:
        why = ValidationRefused(
            f"validation {detail}; {settings.min_agreement:g} of them are asked for", code="validation.disagrees"
        )
    if budget is not None and lowest_share(seen.compared - seen.agreed, seen.compared) > budget:
        why = ValidationRefused(
            f"validation {detail}; its answers differ here by more than the {budget:.2%} for which it was certified",
            code="validation.over-budget",
        )
    return "unlabelled", evidence, why, detail


def _agreement(new: ModelHost, old: ModelHost, inputs: Array, batch: int) -> Agreement | None:
    try:
        return compare_unlabelled(partial(_run, new), partial(_run_old, old), inputs, batch)
    except InferenceFailed:
        return None  # the old release fails: there is nothing to agree with


def _too_few(evidence: Evidence, settings: ValidationSettings, budget: float | None) -> str | None:
    """Return why the comparison is too weak to count; inputs count for samples where a bound of agreement is asked.

    Of a near copy they count if they certify it within its budget.
    """
    if not evidence.samples and budget is not None and evidence.compared:
        if evidence.max_drop is not None and evidence.max_drop <= budget:
            return None
        least = samples_needed(budget)
        return (
            f"{evidence.compared} inputs without labels do not certify it within its budget of {budget:.2%}; that "
            f"takes {least} of which none differs"
        )
    counted = evidence.samples
    if not counted and settings.min_agreement is not None:
        counted = evidence.compared or 0
    if counted >= settings.min_samples:
        return None
    return f"{counted} samples could be compared, and {settings.min_samples} are asked for"


def _too_slow(
    new: ModelHost, old: ModelHost | None, sample: dict[str, Array], times: Times, settings: ValidationSettings
) -> _Why:
    """Return why a release is too slow: only where times of so many inferences show it, by `bounds.is_slower`."""
    ratio, (latency, old_latency) = settings.max_latency_ratio, times.percentiles()
    if ratio is None or old_latency is None or latency[1] <= ratio * old_latency[1]:
        return None
    more = time_in_turn(new, old, sample, _PAIRS - len(times.new), budget_s=settings.latency_budget_s)
    times.new += more.new
    times.old += more.old
    if not is_slower(times.new, times.old, ratio):
        return None
    now, before = (one or (0.0, 0.0) for one in times.percentiles())
    return ValidationRefused(
        f"validation: 95 % of its answers take up to {now[1]:.3g} s, those of the old release {before[1]:.3g} s; "
        f"{ratio:g} times are allowed",
        code="validation.slow",
    )


def _too_large(memory: Memory | None, settings: ValidationSettings) -> _Why:
    ratio = settings.max_memory_ratio
    if ratio is None or memory is None or not memory.exceeds(ratio):
        return None
    return ValidationRefused(
        f"validation: loaded it takes {memory.new} bytes, the old release {memory.old}; {ratio:g} times are allowed",
        code="validation.memory",
    )


def _with_costs(evidence: Evidence, times: Times, memory: Memory | None) -> Evidence:
    latency, old_latency = times.percentiles()
    return replace(
        evidence,
        old_latency_s=None if old_latency is None else brief(old_latency[0]),
        new_latency_s=brief(latency[0]),
        old_latency_p95_s=None if old_latency is None else brief(old_latency[1]),
        new_latency_p95_s=brief(latency[1]) or None,
        old_memory_bytes=None if memory is None else memory.old,
        new_memory_bytes=None if memory is None else memory.new,
    )


def _has_free_axes(host: ModelHost) -> bool:
    return any(n is None for spec in host.inputs for n in spec.shape[1:])


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
    try:
        check_finite(outputs)
    except InferenceFailed as bad:
        raise ValidationRefused(f"validation: {bad}", code="validation.not-finite") from bad


def _run(host: ModelHost, values: Array) -> list[Array]:
    """Return the outputs; refuse the release where it fails or an answer is not finite."""
    try:
        outputs = host.run({host.inputs[0].name: values})
    except InferenceFailed as bad:
        raise ValidationRefused(f"validation: {bad}", code="validation.fails") from bad
    _check_finite(outputs)
    return outputs


def _run_old(host: ModelHost, values: Array) -> list[Array]:
    """Return the outputs of the old release; what goes wrong there is no fault of the new one."""
    outputs = host.run({host.inputs[0].name: values})
    check_finite(outputs)
    return outputs


def _answers(host: ModelHost, inputs: Array, batch: int) -> Array:
    """Return the class with the largest logit of every sample, (n,).

    Raises:
        ValidationRefused: an answer is not finite, or is not (batch, classes).
    """
    classes = []
    for start in range(0, len(inputs), batch):
        values = inputs[start : start + batch]
        logits = _run(host, values)[0]
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
