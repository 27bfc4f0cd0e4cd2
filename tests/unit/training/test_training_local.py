"""Local statistics in training: what is measured and trained is what a device with such inputs will compute."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_norms
import torch
from drifted import Drifted
from torch import nn

from sprat_client.agent.estimate import estimate
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_server.compress import updates
from sprat_server.training.data import Samples
from sprat_server.training.evaluate import HeldBack, TestSamples, report, scores
from sprat_server.training.export import Example, export
from sprat_server.training.factors import factor_parts
from sprat_server.training.lesson import Lesson, teacher_outputs
from sprat_server.training.local import SAMPLES, LocalNorms
from sprat_server.training.search import LocalStatisticsLose, SearchPlan, retrain
from sprat_server.training.states import floats, module_tensors, to_source, to_torch
from sprat_server.training.statistics_graph import statistics_graph
from sprat_server.training.strategies import Choice, Pace
from sprat_server.training.student import GridStudent, StudentPlan
from sprat_server.training.targets import Keep
from sprat_server.training.teacher import TeacherPlan, train_teacher
from sprat_shared.wire.tensors import raw_bytes

NORM = ("norm.running_mean", "norm.running_var")


def silent(_fraction: float, _message: str) -> None: ...


def three_norms() -> nn.Sequential:
    torch.manual_seed(3)
    see = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    tell = [nn.Flatten(), nn.Linear(96, 10), nn.BatchNorm1d(10, affine=False), nn.ReLU(), nn.Linear(10, 4)]
    return nn.Sequential(*see, *tell).eval()


def test_a_device_computes_what_torch_computes_in_training_over_all_inputs_at_once(tmp_path: Path) -> None:
    module = three_norms()
    source = to_source(module_tensors(module))
    made = statistics_graph(export(module, source, Example.single((1, 8, 8), "float32")).graph.data)
    assert made is not None
    (tmp_path / "t").mkdir()
    for index in range(len(source.table)):
        (tmp_path / "t" / str(index)).write_bytes(raw_bytes(source.read(index)))
    (tmp_path / "graph.onnx").write_bytes(made.data)
    inputs = 3 * np.random.default_rng(0).standard_normal((SAMPLES, 1, 8, 8)).astype(np.float32) + 1
    found = estimate(OnnxRuntime().load(tmp_path), inputs)
    names = [source.table[index].name for index in made.tensors]
    assert names == [f"{norm}.running_{part}" for norm in (1, 4, 8) for part in ("mean", "var")]
    ours = LocalNorms(module, names).estimated(module.state_dict(), torch.from_numpy(inputs))
    for norm in (1, 4, 8):  # as torch does: a cumulative average over one batch
        module[norm].reset_running_stats()
        module[norm].momentum = None
        module[norm].train()
    with torch.no_grad():
        module(torch.from_numpy(inputs))
    for index, name in zip(made.tensors, names, strict=True):
        torchs = module.state_dict()[name]
        np.testing.assert_allclose(found[index], torchs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[name], torchs)


def test_a_norm_whose_statistics_have_another_use_keeps_them() -> None:
    model = onnx.load_model_from_string(tiny_norms.graph())
    first, second = (node for node in model.graph.node if node.op_type == "BatchNormalization")
    second.input[3] = first.input[3]
    assert statistics_graph(model.SerializeToString()) is None


def test_measuring_leaves_the_module_and_the_state_as_they_were(drifted: Drifted) -> None:
    module = drifted.trainable.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = floats(to_torch(drifted.base))
    local = LocalNorms(module, NORM)
    estimated = local.estimated(state, drifted.data.validation.inputs)
    local.outputs(state, drifted.data.train.inputs[:8])
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
    assert {name for name in state if not torch.equal(estimated[name], state[name])} == set(NORM)
    assert not any(part.training for part in module.modules())
    assert module.norm.momentum == 0.1


def test_statistics_are_of_so_many_inputs_evenly_spread(drifted: Drifted) -> None:
    local, inputs = LocalNorms(drifted.trainable.module, NORM), torch.randn(2 * SAMPLES, 1, 8, 8)
    state = floats(to_torch(drifted.base))
    assert torch.equal(local.estimated(state, inputs)[NORM[0]], local.estimated(state, inputs[::2])[NORM[0]])


@pytest.fixture
def lesson(drifted: Drifted) -> Lesson:
    train, local = drifted.data.train, LocalNorms(drifted.trainable.module, NORM)
    plan = TeacherPlan(epochs=4, learning_rate=1e-2, min_steps=0)
    teacher = train_teacher(drifted.trainable, drifted.data, plan, silent)
    base = local.estimated(floats(to_torch(drifted.base)), train.inputs)
    return Lesson(
        trainable=drifted.trainable,
        source=drifted.base,
        base=base,
        teacher=teacher,
        norms={},
        train=train,
        targets=teacher_outputs(drifted.trainable, teacher, train),
        local=local,
    )


def test_a_candidate_sends_no_statistics_and_gains_with_those_of_the_inputs(lesson: Lesson, drifted: Drifted) -> None:
    student = GridStudent(lesson, factor_parts(lesson, 4), StudentPlan(price=2e-4, epochs=8, min_steps=0))
    student.train(silent)
    table = drifted.base.table
    assert not {table[record.index].name for record in student.records()} & set(NORM)
    released = floats(to_torch(updates.from_records(drifted.base, student.records()).weights))
    validation: Samples = drifted.data.validation

    def measured(state: dict[str, torch.Tensor]) -> float:
        assert lesson.local is not None
        return float(scores(drifted.trainable, lesson.local.estimated(state, validation.inputs), validation).mean())

    base = floats(to_torch(drifted.base))
    before = float(scores(drifted.trainable, base, validation).mean())
    assert measured(released) > max(measured(base), before) + 0.2


def test_gradients_pass_through_the_statistics(lesson: Lesson) -> None:
    """A scale that the norm takes out again has no gradient, though the stored statistics would give it one."""
    state = dict(lesson.base)
    scale = torch.ones((), requires_grad=True)
    outputs = lesson.outputs({**state, "see.weight": state["see.weight"] * scale}, lesson.train.inputs[:64])
    (gradient,) = torch.autograd.grad(outputs.square().sum(), scale)
    fixed = Lesson(
        **{
            name: getattr(lesson, name)
            for name in ("trainable", "source", "base", "teacher", "norms", "train", "targets")
        }
    )
    stored = fixed.outputs({**state, "see.weight": state["see.weight"] * scale}, lesson.train.inputs[:64])
    (other,) = torch.autograd.grad(stored.square().sum(), scale)
    assert abs(gradient) < 1e-3 * abs(other)


@pytest.mark.parametrize("strategy", ["factors", "full"])
def test_a_retrain_with_local_statistics_sends_none_and_is_measured_as_devices_run_it(
    drifted: Drifted, strategy: Choice
) -> None:
    plan = SearchPlan(target=Keep(0.6), strategy=strategy, max_candidates=2, pace=Pace(epochs=6, min_steps=0))
    teacher = TeacherPlan(epochs=4, learning_rate=1e-2, min_steps=0)
    done = retrain(
        drifted.trainable, drifted.base, drifted.data, teacher=teacher, search=plan, progress=silent, local=NORM
    )
    before, after = (to_torch(source) for source in (drifted.base, done.updated.weights))
    assert all(torch.equal(before[name], after[name]) for name in NORM)
    assert done.local is not None
    assert not torch.equal(done.released[NORM[0]], before[NORM[0]])
    validation = drifted.data.validation
    given = scores(drifted.trainable, floats(after), validation, done.local)
    assert done.chosen.accuracy == pytest.approx(float(given.mean()))
    test = HeldBack(lambda: TestSamples(validation.inputs, validation.labels, range(len(validation))))
    told = report(
        drifted.trainable, test, base=done.base, teacher=done.teacher, released=done.released, local=done.local
    )
    assert told["accuracy_released"] == pytest.approx(done.chosen.accuracy)
    assert told["accuracy_base"] == pytest.approx(float(scores(drifted.trainable, floats(before), validation).mean()))
    assert done.chosen.share >= 0.6


def test_a_retrain_says_when_statistics_of_the_inputs_lose_too_much(
    drifted: Drifted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Estimated on inputs that are nothing like those of the network, whatever is sent."""
    real = LocalNorms.estimated
    monkeypatch.setattr(
        LocalNorms, "estimated", lambda self, state, inputs: real(self, state, torch.zeros_like(inputs))
    )
    plan = SearchPlan(target=Keep(0.9), strategy="full", max_candidates=1, pace=Pace(epochs=1, min_steps=0))
    teacher = TeacherPlan(epochs=4, learning_rate=1e-2, min_steps=0)
    with pytest.raises(LocalStatisticsLose, match="retrain without local statistics"):
        retrain(
            drifted.trainable, drifted.base, drifted.data, teacher=teacher, search=plan, progress=silent, local=NORM
        )
