"""The search: fewest bytes that keep the target on the validation split; it goes on, stops, and falls back."""

import inspect
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drifted import Drifted, samples
from small_recipes import OwnLoss

from sprat_server.registry.samples import UNLABELLED
from sprat_server.training import search as search_module
from sprat_server.training.checkpoints import Checkpoints
from sprat_server.training.data import DataMismatch, Samples, TrainingData, check_fit
from sprat_server.training.evaluate import HeldBack, Share, TestSamples, recovered, report, scores
from sprat_server.training.lesson import Lesson, teacher_outputs
from sprat_server.training.recipes import RecipeBroken, Trainable
from sprat_server.training.search import Retrained, SearchPlan, retrain
from sprat_server.training.states import to_torch
from sprat_server.training.strategies import FACTORS, Choice, Pace, Rung
from sprat_server.training.targets import Aim, Budget, BudgetTooSmall, Keep, MaxDrop, Target, Tried
from sprat_server.training.teacher import NothingToLearn, TeacherPlan

TEACHER = TeacherPlan(epochs=4, learning_rate=1e-2, min_steps=0)
KEEP = Keep(0.8)


class Cancelled(Exception):
    pass


def silent(_fraction: float, _message: str) -> None: ...


def run(
    drifted: Drifted,
    *,
    target: Target = KEEP,
    checkpoints: Checkpoints | None = None,
    progress=silent,
    strategy: Choice = "auto",
    max_candidates: int = 3,
) -> Retrained:
    pace = Pace(epochs=6, min_steps=0)
    plan = SearchPlan(target=target, strategy=strategy, max_candidates=max_candidates, pace=pace)
    return retrain(
        drifted.trainable,
        drifted.base,
        drifted.data,
        teacher=TEACHER,
        search=plan,
        progress=progress,
        checkpoints=checkpoints,
    )


def test_the_smallest_candidate_that_keeps_the_target_is_chosen(drifted: Drifted) -> None:
    done = run(drifted)
    enough = [tried for tried in done.curve if tried.keeps]
    assert done.chosen == min(enough, key=lambda tried: tried.update_bytes)
    assert done.chosen.update_bytes == len(done.updated.data)
    assert done.chosen.share >= 0.8


def test_the_accuracy_that_is_reported_is_the_decoded_releases(drifted: Drifted) -> None:
    done = run(drifted)
    test = samples(200, 3)
    held_back = HeldBack(lambda: TestSamples(test.inputs, test.labels, range(1000, 1200)))
    told = report(drifted.trainable, held_back, base=done.base, teacher=done.teacher, released=done.released)
    drifted.trainable.module.load_state_dict(done.released)
    with torch.no_grad():
        answers = drifted.trainable.module.eval()(test.inputs).argmax(1)
    assert told["accuracy_released"] == pytest.approx(float((answers == test.labels).float().mean()))
    gain = told["accuracy_retrained"] - told["accuracy_base"]
    assert told["recovered_gain"] == pytest.approx((told["accuracy_released"] - told["accuracy_base"]) / gain)
    assert told["test_indices"] == list(range(1000, 1200))


def test_training_code_has_no_way_to_receive_the_test_split() -> None:
    assert [field.name for field in fields(TrainingData)] == ["train", "validation"]
    taken = {p.annotation for p in inspect.signature(retrain).parameters.values()}
    assert TrainingData in taken
    assert not taken & {HeldBack, TestSamples, Samples}
    assert not any(kind in vars(search_module).values() for kind in (HeldBack, TestSamples))


def test_nobody_opens_the_test_split_before_training_has_ended(drifted: Drifted) -> None:
    opened = []
    held_back = HeldBack(lambda: opened.append(True) or TestSamples(*vars_of(samples(50, 4)), range(50)))
    done = run(drifted, progress=lambda _f, _m: not opened or pytest.fail("the test split was opened while training"))
    report(drifted.trainable, held_back, base=done.base, teacher=done.teacher, released=done.released)
    assert opened == [True]


def vars_of(given: Samples) -> tuple[torch.Tensor, torch.Tensor]:
    return given.inputs, given.labels


def test_a_second_attempt_goes_on_from_what_the_first_finished(drifted: Drifted, tmp_path: Path) -> None:
    first = run(drifted, checkpoints=Checkpoints(tmp_path))
    told: list[str] = []
    again = run(drifted, checkpoints=Checkpoints(tmp_path), progress=lambda _f, m: told.append(m))
    assert told == []
    assert again.updated.data == first.updated.data
    assert again.updated.digest == first.updated.digest


def test_the_same_seed_gives_the_same_update_whether_or_not_it_was_interrupted(
    drifted: Drifted, tmp_path: Path
) -> None:
    calls = iter(range(1000))

    def stop_in_the_second_candidate(fraction: float, _message: str) -> None:
        if fraction > 0.6:
            raise Cancelled(next(calls))

    with pytest.raises(Cancelled):
        run(drifted, checkpoints=Checkpoints(tmp_path), progress=stop_in_the_second_candidate)
    assert (tmp_path / "teacher.pt").exists()
    assert run(drifted, checkpoints=Checkpoints(tmp_path)).updated.digest == run(drifted).updated.digest


def test_progress_only_rises(drifted: Drifted) -> None:
    told: list[float] = []
    run(drifted, progress=lambda fraction, _m: told.append(fraction))
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] <= 1


def with_factors(monkeypatch: pytest.MonkeyPatch, *ladder: tuple[int, float], start: int = 0) -> None:
    rungs = tuple(Rung(rank=rank, price=price) for rank, price in ladder)
    monkeypatch.setattr(search_module, "FACTORS", replace(FACTORS, ladder=rungs, start=start))


def test_where_no_rank_is_enough_every_value_is_trained_and_the_result_says_so(
    drifted: Drifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_factors(monkeypatch, (1, 1.0), (1, 0.5))
    done = run(drifted, target=Keep(0.9))
    assert [tried.method for tried in done.curve] == ["factors", "factors", "dense"]
    assert done.chosen.method == "dense"
    assert done.note is not None
    assert done.note.startswith("the change is not low rank: factors of rank 1 in ")


def test_where_nothing_trained_keeps_the_target_the_full_retrain_is_sent(
    drifted: Drifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_factors(monkeypatch, (1, 1.0), (1, 0.5))
    done = run(drifted, target=Keep(1.0), strategy="factors")
    assert done.chosen.method in {"post-hoc", "lossless"}
    assert done.chosen.share == pytest.approx(1, abs=0.02)


def test_candidates_that_are_left_refine_the_price_between_two_rungs(
    drifted: Drifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_factors(monkeypatch, (8, 0.3), (8, 1e-4))
    done = run(drifted, strategy="factors", max_candidates=5)
    assert [tried.price for tried in done.curve[:3]] == [0.3, 1e-4, pytest.approx(np.sqrt(0.3 * 1e-4), rel=0.01)]
    assert len({tried.price for tried in done.curve}) == len(done.curve) == 4  # then a quarter of a rung; that is fine
    assert done.note is None


def test_the_full_strategy_cuts_the_full_retrain_and_trains_nothing_more(drifted: Drifted) -> None:
    done = run(drifted, strategy="full", max_candidates=6)
    assert {tried.method for tried in done.curve} == {"post-hoc"}
    assert done.chosen.share >= 0.8
    sizes = sorted((tried.update_bytes, tried.share) for tried in done.curve)
    assert sizes[0][1] < sizes[-1][1]


def test_a_budget_gives_the_most_accurate_of_those_whose_encoded_file_fits(drifted: Drifted) -> None:
    most = min(tried.update_bytes for tried in run(drifted).curve)
    done = run(drifted, target=Budget(most))
    assert len(done.updated.data) == done.chosen.update_bytes <= most
    fitting = [tried for tried in done.curve if tried.update_bytes <= most and tried.share > 0]
    assert [tried for tried in done.curve if tried.keeps] == fitting
    assert done.chosen.accuracy == max(tried.accuracy for tried in fitting)


def test_a_budget_that_everything_fits_gives_the_best_update_that_there_is(
    drifted: Drifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_factors(monkeypatch, (8, 1e-3), (8, 1e-4))
    done = run(drifted, target=Budget(1 << 30))
    assert [tried.method for tried in done.curve] == ["factors", "factors", "dense", "post-hoc", "lossless"]
    assert all(tried.keeps for tried in done.curve)
    assert done.chosen.accuracy == max(tried.accuracy for tried in done.curve)


def test_a_budget_that_nothing_fits_is_an_error_that_names_the_smallest_found(
    drifted: Drifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_factors(monkeypatch, (8, 8e-4), (8, 4e-4), start=1)
    smallest = min(tried.update_bytes for tried in run(drifted, target=Keep(0.5), max_candidates=2).curve)
    said = f"no update of at most 100 bytes .* the smallest found has {smallest} bytes and keeps "
    with pytest.raises(BudgetTooSmall, match=said):
        run(drifted, target=Budget(100), max_candidates=2)


def test_a_largest_drop_is_measured_from_the_full_retrain(drifted: Drifted) -> None:
    done = run(drifted, target=MaxDrop(0.04))
    validation = drifted.data.validation
    full = float(scores(drifted.trainable, done.teacher, validation).mean())
    assert done.chosen.accuracy == pytest.approx(float(scores(drifted.trainable, done.released, validation).mean()))
    assert done.chosen.accuracy >= full - 0.04
    assert done.chosen == min((tried for tried in done.curve if tried.keeps), key=lambda tried: tried.update_bytes)


def test_a_drop_that_the_base_itself_stays_within_leaves_nothing_to_send(drifted: Drifted) -> None:
    with pytest.raises(NothingToLearn, match="the base is good enough already; allow a smaller drop"):
        run(drifted, target=MaxDrop(0.9))


def tried_at(update_bytes: int, share: float, *, keeps: bool = True) -> Tried:
    return Tried(
        method="factors",
        rank=8,
        price=1e-3,
        update_bytes=update_bytes,
        share=share,
        error=0.0,
        accuracy=0.5 + share / 4,
        keeps=keeps,
    )


def test_a_share_prefers_fewer_bytes_and_a_budget_more_accuracy() -> None:
    small, good = tried_at(100, 0.96), tried_at(200, 0.99)
    share, budget = Aim(Keep(0.95), 0.25), Aim(Budget(200), 0.25)
    assert share.prefers(small, good)
    assert budget.prefers(good, small)
    assert budget.prefers(tried_at(150, 0.99), good)
    assert not share.wants_more_bytes(small)
    assert budget.wants_more_bytes(small)
    assert not budget.wants_more_bytes(tried_at(201, 0.99, keeps=False))
    assert not budget.met(Share(0.9, 0.0), 201)
    assert not budget.met(Share(0.0, 0.0), 20)


def test_labels_without_a_pattern_give_an_error_instead_of_a_release(drifted: Drifted) -> None:
    train, validation = drifted.data.train, drifted.data.validation
    shuffled = torch.randint(0, 4, train.labels.shape, generator=torch.Generator().manual_seed(0))
    own = drifted.trainable.module(validation.inputs).argmax(1)
    drifted.data = TrainingData(Samples(train.inputs, shuffled), Samples(validation.inputs, own))
    with pytest.raises(NothingToLearn, match=r"the base has 1\.0000 already; there is nothing to send"):
        run(drifted)


def test_a_label_beyond_the_outputs_or_another_input_shape_is_refused(drifted: Drifted) -> None:
    inputs, labels = drifted.data.train.inputs[:2], drifted.data.train.labels[:2]
    check_fit(drifted.trainable, inputs, labels, largest=3)
    with pytest.raises(DataMismatch, match=r"label 4 is beyond the model's 4 outputs \(labels 0 to 3\)"):
        check_fit(drifted.trainable, inputs, labels, largest=4)
    with pytest.raises(DataMismatch, match=r"cannot take inputs of shape \[3, 8, 8\]"):
        check_fit(drifted.trainable, torch.zeros(2, 3, 8, 8), labels, largest=3)


def test_a_loss_or_metric_of_the_recipe_that_fails_or_gives_another_shape_is_told(drifted: Drifted) -> None:
    inputs, labels = drifted.data.train.inputs[:2], drifted.data.train.labels[:2]
    own = OwnLoss(drifted.trainable.module)
    good = Trainable(own.module, own.loss, own.metric, classifies=False)
    check_fit(good, inputs, labels, largest=3)
    with pytest.raises(RecipeBroken, match=r"loss gives \[2, 4\]; a tensor of shape \[\] is needed"):
        check_fit(replace(good, loss=lambda outputs, _: outputs), inputs, labels, largest=3)
    with pytest.raises(RecipeBroken, match="metric failed: ZeroDivisionError"):
        check_fit(replace(good, metric=lambda _o, _l: 1 / 0), inputs, labels, largest=3)


def test_a_checkpoint_that_a_power_cut_tore_is_done_again(drifted: Drifted, tmp_path: Path) -> None:
    whole = run(drifted, checkpoints=Checkpoints(tmp_path))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(drifted, checkpoints=Checkpoints(tmp_path)).updated.digest == whole.updated.digest


def test_the_share_of_the_gain_comes_with_its_error_and_small_samples_must_show_more() -> None:
    base, teacher = np.zeros(400), np.ones(400)
    state = np.r_[np.ones(384), np.zeros(16)]
    share = recovered(base, teacher, state)
    assert share.value == pytest.approx(0.96)
    assert share.error == pytest.approx(np.sqrt(0.96 * 0.04 / 400))
    assert share.keeps(0.950)
    assert not share.keeps(0.951)
    assert Share(0.976, error=0.5).keeps(0.95)
    assert not Share(0.974, error=0.5).keeps(0.95)


def test_samples_without_a_label_are_learned_from_by_distillation_and_never_by_the_full_retrain(
    drifted: Drifted,
) -> None:
    train = drifted.data.train
    hidden = train.labels.clone()
    hidden[192:] = UNLABELLED
    few = run(replace(drifted, data=replace(drifted.data, train=Samples(train.inputs[:192], train.labels[:192]))))
    more = run(replace(drifted, data=replace(drifted.data, train=Samples(train.inputs, hidden))))
    for name, tensor in few.teacher.items():
        assert torch.equal(tensor, more.teacher[name]), name
    assert more.chosen.share >= 0.8
    assert few.updated.digest != more.updated.digest
    none = Samples(train.inputs, torch.full_like(train.labels, UNLABELLED))
    lesson = Lesson(
        trainable=drifted.trainable,
        source=drifted.base,
        base=more.base,
        teacher=more.teacher,
        norms={},
        train=none,
        targets=teacher_outputs(drifted.trainable, more.teacher, none),
    )
    taught = FACTORS.make(lesson, FACTORS.ladder[-4], Pace(epochs=12, min_steps=0), silent)
    base, full, kept = (
        scores(drifted.trainable, state, drifted.data.validation)
        for state in ({}, more.teacher, to_torch(taught.weights))
    )
    assert recovered(base, full, kept).value > 0.7
