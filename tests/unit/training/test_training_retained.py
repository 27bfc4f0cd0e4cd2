"""An old domain that is to be kept: replayed, judged on validation data, measured at the end; without it, forgotten."""

import numpy as np
import pytest
import torch
from drifted import Drifted
from small_recipes import images

from sprat_server.training.data import DataMismatch, Samples, TrainingData, with_replay
from sprat_server.training.evaluate import HeldBack, Loss, Share, TestSamples, lost, report, scores
from sprat_server.training.search import Retrained, SearchPlan, retrain
from sprat_server.training.strategies import Pace
from sprat_server.training.targets import Aim, Budget, Keep
from sprat_server.training.teacher import NothingToLearn, TeacherPlan, train_teacher

TEACHER = TeacherPlan(epochs=4, learning_rate=1e-2, min_steps=0)


def old_samples(count: int, seed: int) -> Samples:
    inputs, labels = images(count, seed)
    return Samples(torch.from_numpy(inputs.copy()), torch.from_numpy(labels))


def turned_samples(count: int, seed: int) -> Samples:
    """Images that look like those of another class did before."""
    inputs, labels = images(count, seed, dim=1.0, turn=0.8)
    return Samples(torch.from_numpy(inputs.copy()), torch.from_numpy(labels))


OLD = TrainingData(old_samples(300, 11), old_samples(200, 12))
TURNED = TrainingData(turned_samples(384, 1), turned_samples(256, 2))


def silent(_fraction: float, _message: str) -> None: ...


def run(drifted: Drifted, *, retained: TrainingData | None, progress=silent) -> Retrained:
    return retrain(
        drifted.trainable,
        drifted.base,
        TURNED,
        teacher=TEACHER,
        search=SearchPlan(target=Keep(0.9), max_candidates=3, pace=Pace(epochs=8, min_steps=0)),
        progress=progress,
        retained=retained,
    )


def measured(drifted: Drifted, done: Retrained, seed: int = 13) -> dict[str, object]:
    splits = [samples_of(400, seed + place) for place, samples_of in enumerate((turned_samples, old_samples))]
    new, old = (HeldBack(lambda s=s: TestSamples(s.inputs, s.labels, range(len(s)))) for s in splits)
    return report(drifted.trainable, new, retained=old, base=done.base, teacher=done.teacher, released=done.released)


def test_without_the_old_data_the_old_domain_is_forgotten_and_with_it_kept(drifted: Drifted) -> None:
    forgetful = measured(drifted, run(drifted, retained=None))
    keeping = measured(drifted, run(drifted, retained=OLD))
    assert forgetful["accuracy_old_base"] == keeping["accuracy_old_base"] > 0.95
    assert forgetful["accuracy_old_retrained"] < 0.7
    assert forgetful["accuracy_old_released"] < 0.7
    assert keeping["accuracy_old_retrained"] > 0.93
    assert keeping["accuracy_old_released"] > 0.93
    assert keeping["accuracy_base"] < 0.1
    assert keeping["accuracy_released"] > 0.85


def test_each_point_of_the_curve_tells_the_accuracy_on_the_old_validation_split(drifted: Drifted) -> None:
    done = run(drifted, retained=OLD)
    given = float(scores(drifted.trainable, done.released, OLD.validation).mean())
    assert done.chosen.accuracy_old == pytest.approx(given)
    assert all(tried.accuracy_old is None for tried in run(drifted, retained=None).curve)


def test_nobody_opens_a_test_split_old_or_new_before_training_has_ended(drifted: Drifted) -> None:
    opened: list[str] = []

    def held_back(name: str, samples: Samples) -> HeldBack:
        def open_it() -> TestSamples:
            opened.append(name)
            return TestSamples(samples.inputs, samples.labels, range(len(samples)))

        return HeldBack(open_it)

    new, old = held_back("new", turned_samples(50, 3)), held_back("old", old_samples(40, 4))
    done = run(drifted, retained=OLD, progress=lambda _f, _m: not opened or pytest.fail("opened while training"))
    assert opened == []
    told = report(drifted.trainable, new, retained=old, base=done.base, teacher=done.teacher, released=done.released)
    assert opened == ["new", "old"]
    assert (len(told["test_indices"]), len(told["test_indices_old"])) == (50, 40)


def test_half_of_what_is_trained_on_is_old_and_each_old_sample_comes_up_before_any_does_again() -> None:
    new = Samples(torch.arange(7.0)[:, None], torch.zeros(7, dtype=torch.int64))
    old = Samples(100 + torch.arange(3.0)[:, None], torch.ones(3, dtype=torch.int64))
    both = with_replay(new, old, seed=5)
    assert both.labels.tolist() == [0, 1] * 7
    assert both.inputs[::2].flatten().tolist() == list(range(7))
    replayed = both.inputs[1::2].flatten().tolist()
    assert sorted(replayed[:3]) == sorted(replayed[3:6]) == [100, 101, 102]
    assert torch.equal(with_replay(new, old, seed=5).inputs, both.inputs)
    assert len(with_replay(old, new, seed=5)) == 6


def test_samples_of_another_shape_cannot_be_replayed() -> None:
    new = Samples(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataMismatch, match=r"to retain have shape \[1, 9, 9\], the new ones \[1, 8, 8\]"):
        with_replay(new, Samples(torch.zeros(2, 1, 9, 9), torch.zeros(2, dtype=torch.int64)), seed=0)


def test_a_full_retrain_that_loses_more_of_the_old_than_it_gains_is_not_released(drifted: Drifted) -> None:
    new = drifted.data.validation
    with torch.no_grad():
        contrary = Samples(new.inputs, drifted.trainable.module(new.inputs).argmax(1))
    with pytest.raises(NothingToLearn, match=r"gains 0\.[0-9]+ on the validation split and loses 0\.[0-9]+ on what"):
        train_teacher(drifted.trainable, drifted.data, TEACHER, silent, old=contrary)


def test_the_old_domain_may_lose_as_many_points_as_the_new_may_stay_below_the_full_retrain() -> None:
    aim = Aim(Keep(0.75), 0.4)  # 0.1 below the full retrain
    enough = Share(0.99, 0.0)
    assert aim.met(enough, 100, Loss(0.1, 0.0))
    assert not aim.met(enough, 100, Loss(0.101, 0.0))
    assert aim.met(enough, 100, Loss(-0.1, 0.01))
    assert not aim.met(Share(0.7, 0.0), 100, Loss(0.0, 0.0))
    assert not aim.met(enough, 100, Loss(0.099, 0.01))


def test_a_budget_takes_no_update_that_loses_more_of_the_old_than_it_gains() -> None:
    aim = Aim(Budget(200), 0.4)
    assert aim.met(Share(0.5, 0.0), 200, Loss(0.19, 0.0))
    assert not aim.met(Share(0.5, 0.0), 200, Loss(0.21, 0.0))
    assert not aim.met(Share(-0.1, 0.0), 200, Loss(-0.5, 0.0))


def test_a_loss_comes_with_its_standard_error() -> None:
    loss = lost(np.ones(100), np.r_[np.ones(90), np.zeros(10)])
    assert loss.value == pytest.approx(0.1)
    assert loss.error == pytest.approx(np.sqrt(0.1 * 0.9 / 100))
