"""Where a change is cut afterwards, an error counts by what the loss makes of it."""

import math

import torch
from drifted import Drifted

from sprat_server.compress import updates
from sprat_server.training.evaluate import recovered, scores
from sprat_server.training.importance import importance
from sprat_server.training.lesson import Lesson, teacher_outputs
from sprat_server.training.states import floats, to_source, to_torch
from sprat_server.training.strategies import POST_HOC, Pace, Rung
from sprat_server.training.teacher import TeacherPlan, train_teacher


def lesson_of(drifted: Drifted) -> Lesson:
    plan = TeacherPlan(epochs=4, learning_rate=1e-2, min_steps=0)
    teacher = train_teacher(drifted.trainable, drifted.data, plan, lambda _f, _m: None)
    return Lesson(
        trainable=drifted.trainable,
        source=drifted.base,
        base=floats(to_torch(drifted.base)),
        teacher=teacher,
        norms={},
        train=drifted.data.train,
        targets=teacher_outputs(drifted.trainable, teacher, drifted.data.train),
    )


def test_an_error_in_what_is_most_important_raises_the_loss_most(drifted: Drifted) -> None:
    lesson = lesson_of(drifted)
    found = importance(lesson)
    assert set(found) == {spec.name for spec in drifted.base.table.specs if spec.dtype == "F32"}
    assert all(math.isfinite(value) and value >= 0 for value in found.values())

    def raised(name: str) -> float:
        draw = torch.Generator().manual_seed(0)
        off = torch.randn(lesson.teacher[name].shape, generator=draw) * 0.3 / lesson.teacher[name].numel() ** 0.5
        return sum(
            float(lesson.trainable.loss(lesson.outputs(lesson.teacher | {name: changed}, train.inputs), train.labels))
            for changed in (lesson.teacher[name] + off, lesson.teacher[name] - off)
        )

    train = lesson.train
    most, least = (pick(found, key=found.__getitem__) for pick in (max, min))
    assert raised(most) > raised(least)


def test_cutting_the_full_retrain_after_the_fact_keeps_most_of_the_gain_in_few_bytes(drifted: Drifted) -> None:
    lesson = lesson_of(drifted)
    cut = POST_HOC.make(lesson, Rung(share=1 / 20), Pace(), lambda _f, _m: None)
    assert len(cut.data) <= drifted.base.table.nbytes / 20
    assert to_torch(cut.weights)["norm.num_batches_tracked"] == lesson.base["norm.num_batches_tracked"]
    assert lesson.teacher["norm.num_batches_tracked"] > lesson.base["norm.num_batches_tracked"]
    base, full, kept = (
        scores(drifted.trainable, state, drifted.data.validation)
        for state in ({}, lesson.teacher, to_torch(cut.weights))
    )
    assert recovered(base, full, kept).value > 0.8


def test_of_two_ways_to_weigh_errors_the_one_nearer_to_the_full_retrain_s_outputs_is_taken(drifted: Drifted) -> None:
    lesson = lesson_of(drifted)
    counts = {name: tensor for name, tensor in lesson.base.items() if not tensor.is_floating_point()}
    wished, weights = to_source({**lesson.teacher, **counts}), (None, importance(lesson))
    nearer = set()
    for share in (1 / 100, 1 / 60, 1 / 40, 1 / 20, 1 / 10):
        most = round(share * drifted.base.table.nbytes)
        alone = [
            lesson.distance(floats(to_torch(updates.from_weights(drifted.base, wished, **asked).weights)))
            for asked in ({"budget_bytes": most, "importance": weight} for weight in weights)
        ]
        made = POST_HOC.make(lesson, Rung(share=share), Pace(), lambda _f, _m: None)
        assert lesson.distance(floats(to_torch(made.weights))) == min(alone)
        nearer.add(alone.index(min(alone)))
    assert nearer == {0, 1}, "each is nearer somewhere"
    assert lesson.distance(lesson.teacher) == 0
