"""Factors on their integer grid: what is trained is what is decoded, and the price decides the bytes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drifted import Drifted

from sprat_server.compress import updates
from sprat_server.training.evaluate import recovered, scores
from sprat_server.training.factors import factor_parts
from sprat_server.training.lesson import Lesson, teacher_outputs
from sprat_server.training.norms import shifted_norms
from sprat_server.training.states import floats, module_tensors, to_source, to_torch
from sprat_server.training.student import GridStudent, StudentPlan
from sprat_server.training.teacher import TeacherPlan, train_teacher
from sprat_shared.wire.records import Dense, LowRank
from sprat_shared.wire.tensors import ArrayTensors

RANK = 4
PLAN = StudentPlan(price=2e-4, epochs=4, min_steps=0)
TEACHER = TeacherPlan(epochs=4, learning_rate=1e-2, min_steps=0)


def silent(_fraction: float, _message: str) -> None: ...


@pytest.fixture
def teacher(drifted: Drifted) -> dict[str, torch.Tensor]:
    return train_teacher(drifted.trainable, drifted.data, TEACHER, silent)


def lesson_of(drifted: Drifted, teacher: dict[str, torch.Tensor], source: ArrayTensors | None = None) -> Lesson:
    base = floats(to_torch(source or drifted.base))
    return Lesson(
        trainable=drifted.trainable,
        source=source or drifted.base,
        base=base,
        teacher=teacher,
        norms=shifted_norms(drifted.trainable.module, base, drifted.data.train),
        train=drifted.data.train,
        targets=teacher_outputs(drifted.trainable, teacher, drifted.data.train),
    )


def trained(lesson: Lesson, plan: StudentPlan = PLAN) -> GridStudent:
    student = GridStudent(lesson, factor_parts(lesson, RANK), plan)
    student.train(silent)
    return student


def student_of(drifted: Drifted, teacher: dict[str, torch.Tensor], plan: StudentPlan = PLAN) -> GridStudent:
    return trained(lesson_of(drifted, teacher), plan)


def test_the_full_retrain_gains_and_leaves_the_module_in_the_bases_weights(
    drifted: Drifted, teacher: dict[str, torch.Tensor]
) -> None:
    before, after = (scores(drifted.trainable, state, drifted.data.validation).mean() for state in ({}, teacher))
    assert after > before + 0.1
    held = to_source(module_tensors(drifted.trainable.module))
    assert [held.sha256(i) for i in range(len(held.table))] == [drifted.base.sha256(i) for i in range(len(held.table))]


def test_the_decoded_update_gives_exactly_the_weights_that_were_trained(
    drifted: Drifted, teacher: dict[str, torch.Tensor]
) -> None:
    student = student_of(drifted, teacher)
    decoded = to_torch(updates.from_records(drifted.base, student.records()).weights)
    with torch.no_grad():
        kept = student.weights()
    for name, tensor in decoded.items():
        assert torch.equal(tensor, kept[name]), name


def test_records_lie_on_the_grid_and_leave_running_statistics_and_counters_alone(
    drifted: Drifted, teacher: dict[str, torch.Tensor]
) -> None:
    records = student_of(drifted, teacher).records()
    names = {drifted.base.table.specs[record.index].name for record in records}
    assert "norm.bias" in names
    assert not names & {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert [record.index for record in records] == sorted(record.index for record in records)
    for record in records:
        match record:
            case LowRank():
                assert record.u.dtype == record.v.dtype == np.int8
                assert min(record.u.min(), record.v.min()) >= -127
                assert record.u.any(axis=0).all()
                assert record.v.any(axis=1).all()
            case Dense():
                assert record.q.any()


def test_a_higher_price_gives_a_smaller_file(drifted: Drifted, teacher: dict[str, torch.Tensor]) -> None:
    cheap, dear = (
        len(
            updates.from_records(
                drifted.base, student_of(drifted, teacher, replace(PLAN, price=price, epochs=30)).records()
            ).data
        )
        for price in (1e-5, 1e-2)
    )
    assert dear < 0.7 * cheap


def test_a_small_update_keeps_most_of_the_gain(drifted: Drifted, teacher: dict[str, torch.Tensor]) -> None:
    student = student_of(drifted, teacher, replace(PLAN, epochs=30))
    updated = updates.from_records(drifted.base, student.records())
    base, full, kept = (
        scores(drifted.trainable, state, drifted.data.validation) for state in ({}, teacher, to_torch(updated.weights))
    )
    assert recovered(base, full, kept).value > 0.85
    assert len(updated.data) < drifted.base.table.nbytes / 20


def test_re_estimated_norms_are_the_same_function_as_new_running_statistics(drifted: Drifted) -> None:
    module, inputs = drifted.trainable.module, drifted.data.train.inputs
    base = to_torch(drifted.base)
    shifted = shifted_norms(module, base, drifted.data.train)
    assert set(shifted) == {"norm.weight", "norm.bias"}
    norm = torch.nn.BatchNorm2d(8, momentum=None)
    norm.load_state_dict({name.removeprefix("norm."): t for name, t in base.items() if name.startswith("norm.")})
    norm.reset_running_stats()
    with torch.no_grad():
        seen = module.see(inputs)
        for batch in seen.split(256):
            norm(batch)
        wanted = norm.eval()(seen)
        module.load_state_dict(base | shifted)
        got = module.norm(seen)
    assert torch.allclose(wanted, got, atol=1e-5)


def test_a_norm_without_scale_and_bias_sends_its_statistics_and_variances_stay_positive(drifted: Drifted) -> None:
    module = drifted.trainable.module
    module.norm = torch.nn.BatchNorm2d(8, affine=False)
    module.norm.running_var.fill_(30.0)  # far above what is seen: the new one is close to zero
    source = to_source(module_tensors(module))
    base = to_torch(source)
    teacher = train_teacher(drifted.trainable, drifted.data, TEACHER, silent)
    lesson = lesson_of(drifted, teacher, source)
    norms = lesson.norms
    assert set(norms) == {"norm.running_mean", "norm.running_var"}
    decoded = to_torch(updates.from_records(source, trained(lesson).records()).weights)
    assert (decoded["norm.running_var"] > 0).all()
    for name, wanted in norms.items():
        step = (wanted - base[name]).square().mean().sqrt() / 4
        assert ((decoded[name] - wanted).abs() <= step).all(), name


def test_bfloat16_weights_are_trained_as_the_device_will_round_them(drifted: Drifted) -> None:
    module = drifted.trainable.module
    half = to_source({n: t.bfloat16() if t.is_floating_point() else t for n, t in module_tensors(module).items()})
    base = {name: t.float() if t.is_floating_point() else t for name, t in to_torch(half).items()}
    module.load_state_dict(base)
    teacher = train_teacher(drifted.trainable, drifted.data, TEACHER, silent)
    student = trained(lesson_of(drifted, teacher, half))
    decoded = to_torch(updates.from_records(half, student.records()).weights)
    with torch.no_grad():
        kept = student.weights()
    for name, tensor in decoded.items():
        assert torch.equal(tensor.float(), kept[name].float()), name
