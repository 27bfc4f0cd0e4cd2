"""Which new releases the holdout samples refuse, and which they let pass."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest

from sprat_client.agent import measure
from sprat_client.agent.judgement import ValidationRefused, judge, tail
from sprat_client.agent.measure import Memory, load_measured
from sprat_client.agent.samples import Holdout, load_holdout
from sprat_client.agent.settings import ValidationSettings
from sprat_client.agent.validate import validate
from sprat_client.runtime.ports import Array, InferenceFailed, PortSpec
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.safetensors import write_safetensors
from sprat_shared.wire.tensors import ArrayTensors

SETTINGS = ValidationSettings(latency_runs=3)
CLASSES = 10


class TableModel:
    """A model that looks its answers up: the input is the sample's number."""

    def __init__(self, answers: Array, *, spoil: float | None = None, axes: int = 2, classes: int = CLASSES) -> None:
        self._logits = np.eye(classes, dtype=np.float32)[answers]
        if spoil is not None:
            self._logits[-1, 0] = spoil
        self.inputs = [PortSpec("number", np.dtype(np.int64), (None,))]
        self.outputs = [PortSpec("logits", np.dtype(np.float32), (None, classes)[:axes])]

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        return [self._logits[values["number"].astype(np.int64)]]


class Broken(TableModel):
    """A model that fails."""

    def run(self, _values: Mapping[str, Array]) -> list[Array]:
        raise InferenceFailed("no such kernel")


def answers_with(labels: Array, wrong: range) -> Array:
    """Return the labels with those in `wrong` shifted by one class."""
    answers = labels.copy()
    answers[wrong] = (answers[wrong] + 1) % CLASSES
    return answers


def holdout_of(count: int) -> Holdout:
    labels = np.random.default_rng(1).integers(0, CLASSES, count)
    return Holdout(np.arange(count), labels)


@pytest.mark.parametrize(("losses", "discordant"), [(0, 0), (0, 5), (5, 5), (7, 9), (300, 500), (1000, 1000)])
def test_the_tail_is_exact(losses: int, discordant: int) -> None:
    exact = Fraction(sum(comb(discordant, k) for k in range(losses, discordant + 1)), 2**discordant)
    assert tail(losses, discordant) == float(exact)


@pytest.mark.parametrize("count", [40, 300, 2000])
def test_a_model_trained_on_permuted_labels_is_refused(count: int) -> None:
    holdout = holdout_of(count)
    permuted = np.random.default_rng(2).permutation(CLASSES)[holdout.labels]
    old = TableModel(answers_with(holdout.labels, range(count // 20)))
    with pytest.raises(ValidationRefused, match="worse") as refused:
        validate(TableModel(permuted), old, holdout, SETTINGS)
    assert refused.value.code == "validation.worse"
    assert refused.value.evidence is not None
    assert refused.value.evidence.only_old > count // 2


def test_a_good_update_is_kept_and_its_evidence_counts_both_sides() -> None:
    holdout = holdout_of(300)
    old = TableModel(answers_with(holdout.labels, range(60)))
    new = TableModel(answers_with(holdout.labels, range(50, 70)))
    result = validate(new, old, holdout, SETTINGS)
    assert (result.mode, result.evidence.only_old, result.evidence.only_new) == ("paired", 10, 50)
    assert (result.evidence.old_correct, result.evidence.new_correct) == (240, 280)
    assert result.old_latency_s is not None
    assert 0 < result.latency_s[0] <= result.latency_s[1]
    assert result.resident_bytes > 0


def test_the_noise_of_a_small_holdout_refuses_nothing() -> None:
    assert judge(samples=30, only_old=2, only_new=0, settings=SETTINGS) is None


def test_a_significant_trifle_of_a_large_holdout_refuses_nothing() -> None:
    assert tail(90, 100) < SETTINGS.alpha
    assert judge(samples=100_000, only_old=90, only_new=10, settings=SETTINGS) is None


def test_a_large_drop_is_refused_even_where_it_is_not_significant() -> None:
    assert tail(3, 3) > SETTINGS.alpha
    assert judge(samples=20, only_old=3, only_new=0, settings=SETTINGS) is not None


def test_equally_good_models_are_refused_rarely() -> None:
    draw = np.random.default_rng(3)
    losses = draw.binomial(40, 0.5, 2000)
    refused = [judge(samples=400, only_old=int(lost), only_new=40 - int(lost), settings=SETTINGS) for lost in losses]
    assert sum(why is not None for why in refused) / len(refused) < SETTINGS.alpha


@pytest.mark.parametrize("spoil", [np.nan, np.inf])
def test_an_answer_that_is_not_finite_refuses_the_release(spoil: float) -> None:
    holdout = holdout_of(100)
    with pytest.raises(ValidationRefused, match="NaN or Inf") as refused:
        validate(TableModel(holdout.labels, spoil=spoil), TableModel(holdout.labels), holdout, SETTINGS)
    assert refused.value.code == "validation.not-finite"


def test_outputs_of_another_kind_refuse_the_release() -> None:
    holdout = holdout_of(10)
    with pytest.raises(ValidationRefused, match="outputs changed") as refused:
        validate(TableModel(holdout.labels, axes=1), TableModel(holdout.labels), holdout, SETTINGS)
    assert refused.value.code == "validation.shape"


def test_a_label_beyond_the_outputs_of_a_release_is_wrong_there_and_nothing_else() -> None:
    labels = np.tile(np.arange(CLASSES), 20)
    known = np.minimum(labels, 6)  # the old release has seven classes
    holdout = Holdout(np.arange(len(labels)), labels)
    result = validate(TableModel(labels), TableModel(known, classes=7), holdout, SETTINGS)
    assert (result.mode, result.evidence.only_old, result.evidence.only_new) == ("paired", 0, 60)
    with pytest.raises(ValidationRefused, match="worse"):
        validate(TableModel(known, classes=7), TableModel(labels), holdout, SETTINGS)


def test_a_release_that_fails_is_refused_and_an_old_one_that_fails_is_no_reason_to_keep_it() -> None:
    holdout = holdout_of(10)
    with pytest.raises(ValidationRefused, match="no such kernel"):
        validate(Broken(holdout.labels), TableModel(holdout.labels), holdout, SETTINGS)
    result = validate(TableModel(holdout.labels), Broken(holdout.labels), holdout, SETTINGS)
    assert (result.evidence.old_correct, result.old_latency_s) == (0, None)


def test_without_an_old_release_the_labels_are_counted_and_nothing_is_compared() -> None:
    holdout = holdout_of(50)
    result = validate(TableModel(answers_with(holdout.labels, range(9))), None, holdout, SETTINGS)
    assert (result.mode, result.evidence.old_correct, result.evidence.new_correct) == ("labelled", None, 41)


def test_without_samples_the_result_says_unvalidated() -> None:
    result = validate(TableModel(np.arange(10)), TableModel(np.arange(10)), None, SETTINGS)
    assert result.mode == "unvalidated"
    assert result.evidence.samples == 0


def test_without_samples_an_answer_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValidationRefused, match="NaN or Inf"):
        validate(TableModel(np.zeros(1, np.int64), spoil=np.nan), None, None, SETTINGS)


def test_holdouts_are_read_from_files_and_folders(tmp_path: Path) -> None:
    inputs, labels = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 1, 2, 3])
    np.savez(tmp_path / "a.npz", inputs=inputs, labels=labels)
    write_safetensors(
        tmp_path / "b.safetensors",
        ArrayTensors({"inputs": ("F32", inputs + 1), "labels": ("I64", labels + 1)}),
    )
    assert load_holdout(tmp_path / "a.npz").inputs.shape == (4, 3)
    both = load_holdout(tmp_path)
    assert both.inputs.shape == (8, 3)
    assert both.labels.tolist() == [0, 1, 2, 3, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"inputs": np.zeros((3, 2))}, "labels"),
        ({"inputs": np.zeros((3, 2)), "labels": np.zeros(3)}, "one integer per sample"),
        ({"inputs": np.zeros((3, 2)), "labels": np.zeros(2, np.int64)}, "one integer per sample"),
        ({"inputs": np.full((1, 2), np.nan), "labels": np.zeros(1, np.int64)}, "NaN or Inf"),
        ({"inputs": np.zeros((0, 2)), "labels": np.zeros(0, np.int64)}, "no samples"),
    ],
)
def test_a_holdout_that_cannot_be_used_says_why(tmp_path: Path, arrays: dict[str, Array], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InvalidInput, match=said) as bad:
        load_holdout(tmp_path)
    assert bad.value.code == "holdout.invalid"


def test_an_empty_folder_is_no_holdout(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no \.npz"):
        load_holdout(tmp_path)


def test_a_holdout_of_another_shape_does_not_fit_the_model() -> None:
    with pytest.raises(InvalidInput, match="the model takes shape"):
        validate(TableModel(np.arange(4)), None, Holdout(np.zeros((4, 2)), np.arange(4)), SETTINGS)


# too few samples --------------------------------------------------------------------------------------------------


def test_too_few_samples_are_accepted_as_unproven_or_refused_as_the_policy_says() -> None:
    holdout = holdout_of(29)
    good, accept = TableModel(holdout.labels), SETTINGS
    result = validate(good, good, holdout, accept)
    assert result.evidence.unproven
    assert result.told == "paired, unproven"
    assert "29 samples" in result.detail
    with pytest.raises(ValidationRefused, match="29 samples could be compared, and 30") as refused:
        validate(good, good, holdout, replace(SETTINGS, too_few="refuse"))
    assert refused.value.code == "validation.too-few"
    assert refused.value.evidence is not None
    assert refused.value.evidence.unproven
    assert not validate(good, good, holdout, replace(SETTINGS, too_few="refuse", min_samples=29)).evidence.unproven


def test_a_worse_release_is_refused_as_worse_even_where_samples_are_few() -> None:
    holdout = holdout_of(20)
    worse = TableModel(answers_with(holdout.labels, range(10)))
    with pytest.raises(ValidationRefused) as refused:
        validate(worse, TableModel(holdout.labels), holdout, replace(SETTINGS, too_few="refuse"))
    assert refused.value.code == "validation.worse"


def test_the_first_release_of_a_device_has_nothing_to_be_compared_with_and_is_not_refused_for_that() -> None:
    result = validate(TableModel(np.arange(10)), None, None, replace(SETTINGS, too_few="refuse"))
    assert (result.mode, result.evidence.unproven) == ("unvalidated", False)


# without labels ---------------------------------------------------------------------------------------------------


def test_without_labels_old_and_new_are_compared_and_accuracy_can_have_fallen_by_no_more_than_the_bound() -> None:
    labels = np.random.default_rng(7).integers(0, CLASSES, 200)
    inputs = np.arange(200)
    old, new = TableModel(labels), TableModel(answers_with(labels, range(6)))
    result = validate(new, old, None, SETTINGS, inputs=inputs)
    seen = result.evidence
    assert (result.mode, seen.samples, seen.compared, seen.agreed) == ("unlabelled", 0, 200, 194)
    assert seen.max_drop == pytest.approx(0.0583, abs=1e-4)  # Clopper and Pearson, 6 of 200, one-sided 95 %
    assert result.told == "unlabelled, unproven"
    for seed in range(20):  # whatever the true labels are
        true = np.random.default_rng(seed).integers(0, CLASSES, 200)
        fall = (labels == true).mean() - (answers_with(labels, range(6)) == true).mean()
        assert fall <= seen.max_drop
    assert seen.old_confidence == 1.0, "rows that sum to one are probabilities"


def test_without_labels_a_release_that_agrees_too_little_is_refused_where_the_policy_says_so() -> None:
    labels = np.random.default_rng(7).integers(0, CLASSES, 100)
    old, new = TableModel(labels), TableModel(answers_with(labels, range(6)))
    policy = replace(SETTINGS, min_agreement=0.95, too_few="refuse")
    with pytest.raises(ValidationRefused, match="94 of 100") as refused:
        validate(new, old, None, policy, inputs=np.arange(100))
    assert refused.value.code == "validation.disagrees"
    kept = validate(new, old, None, replace(policy, min_agreement=0.94), inputs=np.arange(100))
    assert not kept.evidence.unproven, "inputs count where a bound of agreement is asked for"
    with pytest.raises(ValidationRefused, match="29 samples") as few:
        validate(new, old, None, replace(policy, min_agreement=0.5), inputs=np.arange(29))
    assert few.value.code == "validation.too-few"


def test_without_labels_an_old_release_that_fails_leaves_only_finite_answers_to_ask_for() -> None:
    inputs = np.arange(20)
    assert (
        validate(TableModel(inputs % CLASSES), Broken(inputs % CLASSES), None, SETTINGS, inputs=inputs).mode
        == "unvalidated"
    )
    with pytest.raises(ValidationRefused, match="NaN or Inf"):
        validate(TableModel(inputs % CLASSES, spoil=np.nan), None, None, SETTINGS, inputs=inputs)


def test_a_drift_of_the_inputs_is_measured_between_their_older_and_their_newer_half() -> None:
    draw = np.random.default_rng(4)
    still = draw.integers(0, 50, 400)
    moved = np.concatenate([draw.integers(0, 50, 200), draw.integers(40, 90, 200)])
    model = TableModel(np.arange(90) % CLASSES)
    near, far = (
        validate(model, model, None, SETTINGS, inputs=inputs).evidence.input_drift for inputs in (still, moved)
    )
    assert near is not None
    assert far is not None
    assert near < 0.2
    assert far > 0.6


# latency and memory -----------------------------------------------------------------------------------------------


class Clock:
    """A clock that stands still but for the models that take their time."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class Late(TableModel):
    """A model that takes its time, and now and then much more, as on a busy device."""

    def __init__(self, answers: Array, clock: Clock, seconds: float, *, hiccups: float = 0.0) -> None:
        super().__init__(answers)
        self.clock, self.seconds, self.hiccups = clock, seconds, hiccups
        self.draw, self.runs = np.random.default_rng(5), 0

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        self.runs += 1
        self.clock.now += self.seconds * self.draw.uniform(1, 1.2) * (20 if self.draw.random() < self.hiccups else 1)
        return super().run(values)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


def test_a_release_of_three_times_the_time_is_refused_and_not_where_nobody_asks(clock: Clock) -> None:
    holdout = holdout_of(40)
    policy = replace(SETTINGS, max_latency_ratio=1.5)
    slow, old = Late(holdout.labels, clock, 0.003), Late(holdout.labels, clock, 0.001)
    with pytest.raises(ValidationRefused, match=r"1\.5 times are allowed") as refused:
        validate(slow, old, holdout, policy)
    assert refused.value.code == "validation.slow"
    seen = refused.value.evidence
    assert seen is not None
    assert seen.new_latency_p95_s == pytest.approx(0.0036, rel=0.05)
    assert seen.old_latency_p95_s == pytest.approx(0.0012, rel=0.05)
    assert old.runs > 200
    quiet = Late(holdout.labels, clock, 0.001)
    assert validate(slow, quiet, holdout, SETTINGS).evidence.new_latency_p95_s is not None
    assert quiet.runs < 20, "without a limit nothing more is timed"


def test_hiccups_of_a_busy_device_refuse_no_release_of_the_same_speed(clock: Clock) -> None:
    holdout = holdout_of(40)
    policy = replace(SETTINGS, max_latency_ratio=1.5, latency_runs=30)
    refused = 0
    for seed in range(40):
        old, new = (Late(holdout.labels, clock, 0.001, hiccups=0.03) for _ in range(2))
        old.draw, new.draw = np.random.default_rng(seed), np.random.default_rng(1000 + seed)
        try:
            validate(new, old, holdout, policy)
        except ValidationRefused:
            refused += 1
    assert refused <= 2, "5 % of the good ones at most"


def test_the_times_of_a_slow_model_end_with_their_budget(clock: Clock) -> None:
    holdout = holdout_of(40)
    policy = replace(SETTINGS, max_latency_ratio=1.5, latency_runs=30, latency_budget_s=10.0)
    slow, old = Late(holdout.labels, clock, 3.0), Late(holdout.labels, clock, 1.0)
    assert validate(slow, old, holdout, policy).mode == "paired", "a few times show nothing"
    assert old.runs < 12


def test_made_up_inputs_are_finite_and_lie_as_standard_normal_numbers_do() -> None:
    host = TableModel(np.zeros(1, np.int64))
    host.inputs = [PortSpec("x", np.dtype(np.float32), (None, 3, 224, 224))]
    made = measure.made_up(host)["x"]
    assert made.shape == (1, 3, 224, 224)
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    quantiles = np.quantile(made, [0.0228, 0.1587, 0.5, 0.8413, 0.9772])
    np.testing.assert_allclose(quantiles, [-2, -1, 0, 1, 2], atol=0.02)
    assert abs(np.corrcoef(made.ravel()[:-1], made.ravel()[1:])[0, 1]) < 0.5


def test_a_release_that_takes_too_much_memory_is_refused_after_it_was_measured_three_times() -> None:
    holdout, measured = holdout_of(40), []

    def again() -> tuple[int, int]:
        measured.append(1)
        return 100 << 20, 300 << 20

    model, policy = TableModel(holdout.labels), replace(SETTINGS, max_memory_ratio=2.0)
    with pytest.raises(ValidationRefused, match="2 times are allowed") as refused:
        validate(model, model, holdout, policy, memory=Memory(old=100 << 20, new=299 << 20, again=again))
    assert refused.value.code == "validation.memory"
    assert refused.value.evidence is not None
    assert refused.value.evidence.new_memory_bytes == 299 << 20
    assert len(measured) == 2
    spike = Memory(old=100 << 20, new=300 << 20, again=lambda: (100 << 20, 110 << 20))
    assert validate(model, model, holdout, policy, memory=spike).mode == "paired"
    tiny = Memory(old=1000, new=9000, again=again)
    assert validate(model, model, holdout, policy, memory=tiny).mode == "paired"


def test_the_memory_of_a_release_is_its_mapped_files_and_what_it_takes_beside_them(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "0").write_bytes(bytes(5 << 20))

    class Greedy:
        def load(self, _folder: Path) -> TableModel:
            model = TableModel(np.arange(4))
            model.hoard = np.ones(8 << 20, np.uint8)  # type: ignore[attr-defined]
            return model

        def warm_up(self) -> None:
            pass

    _, taken = load_measured(Greedy(), tmp_path)
    assert 12 << 20 < taken < 20 << 20
