"""The peers of `benchmarks/update_size.py` on a tiny network: what they train, what they send, what it costs."""

from pathlib import Path

import pytest
import torch
from sizes import lora_xs, low_rank, trained
from sizes.cases import Problem
from sizes.environments import Environment, Unavailable
from sizes.fitting import fit
from sizes.low_rank import change, small_changes, trained_factors
from sizes.method import Method, Sent
from sizes.peft_script import plain, targets
from sizes.post_hoc import patched
from sizes.store import Store
from torch import Tensor, nn

from sprat_server.training.data import Samples, TrainingData
from sprat_server.training.evaluate import HeldBack, TestSamples
from sprat_server.training.recipes import Trainable, accuracy
from sprat_shared.wire.records import LowRank
from sprat_shared.wire.scales import STEPS


@pytest.fixture
def problem() -> Problem:
    """Four classes in twelve numbers; the full retrain differs from the base in every float."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    teacher = {n: t + 0.1 * torch.randn(t.shape).abs() if t.is_floating_point() else t for n, t in base.items()}
    inputs = torch.randn(96, 12)
    parts = [Samples(part, part[:, :4].argmax(1)) for part in inputs.split(32)]
    return Problem(
        name="tiny",
        seed=0,
        trainable=Trainable(module, nn.functional.cross_entropy, accuracy, classifies=True),
        data=TrainingData(parts[0], parts[1]),
        test=HeldBack(lambda: TestSamples(parts[2].inputs, parts[2].labels, range(32))),
        base=base,
        teacher=teacher,
        epochs=3,
        batch=16,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def method(module: object, key: str) -> Method:
    found: tuple[Method, ...] = module.METHODS  # type: ignore[attr-defined]
    return next(one for one in found if one.key == key)


def sent(module: object, key: str, problem: Problem, store: Store, *settings: str) -> dict[str, Sent]:
    return {one.setting: one for one in method(module, key).sweep(problem, settings, store)}


def test_factors_are_trained_once_whatever_sends_them(
    problem: Problem, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = sent(trained, "low-rank", problem, store, "rank 2")["rank 2"]
    monkeypatch.setattr(low_rank, "fit", lambda *_, **__: pytest.fail("they were trained again"))
    coded = sent(trained, "low-rank-quantised", problem, store, "rank 2, step 0.5 rms")["rank 2, step 0.5 rms"]
    assert coded.bytes < halves.bytes
    moved = halves.state["0.weight"] - problem.base["0.weight"]
    close = (coded.state["0.weight"] - halves.state["0.weight"]).norm() / moved.norm()
    assert 0 < close < 0.5, "the quantised change is the same change, more coarsely"


def test_distilled_factors_are_others(problem: Problem, store: Store) -> None:
    own, taught = (trained_factors(problem, store, 1, distilled=distilled) for distilled in (False, True))
    assert own.keys() == taught.keys()
    assert not torch.equal(own["0.weight|u"], taught["0.weight|u"])


def test_what_is_sent_is_a_change_of_the_rank_asked_for(problem: Problem, store: Store) -> None:
    state = sent(trained, "low-rank", problem, store, "rank 1")["rank 1"].state
    moved = state["0.weight"] - problem.base["0.weight"]
    assert torch.linalg.matrix_rank(moved, rtol=1e-3) == 1
    assert state["1.running_mean"].equal(problem.base["1.running_mean"]), "statistics go into scale and bias"


def test_balanced_factors_have_the_same_product_and_orthogonal_components() -> None:
    torch.manual_seed(1)
    u, v = torch.randn(9, 3), torch.randn(3, 14)
    left, right = trained._balanced(u, v)
    torch.testing.assert_close(left @ right, u @ v, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(left.T @ left, right @ right.T, rtol=1e-4, atol=1e-4)
    inner = left.T @ left
    torch.testing.assert_close(inner, inner.diag().diag(), rtol=1e-4, atol=1e-4)


def test_a_fine_step_gives_the_factors_product() -> None:
    torch.manual_seed(2)
    leaves = {"w|u": torch.randn(30, 2), "w|v": torch.randn(2, 40)}
    record = trained._record(0, leaves, "w", 0.05)
    assert isinstance(record, LowRank)
    product = torch.from_numpy(record.u.astype("f4") @ record.v.astype("f4")) * float(STEPS[record.scale])
    wanted = change(leaves)["w"]
    assert (product - wanted).norm() / wanted.norm() < 0.06, "scales lie an eighth of an octave apart"


@pytest.mark.parametrize(("setting", "size"), [("core 5 alone", 2 * (25 + 16)), ("core 10 alone", 2 * (100 + 16))])
def test_a_core_costs_two_bytes_a_number_and_no_more_than_the_matrix_has_ranks(
    problem: Problem, store: Store, setting: str, size: int
) -> None:
    state = sent(lora_xs, "core", problem, store, setting)[setting]
    assert state.bytes == size
    assert not state.state["0.weight"].equal(problem.base["0.weight"])
    assert state.state["0.bias"].equal(problem.base["0.bias"])


def test_a_core_of_full_rank_can_become_any_change(problem: Problem) -> None:
    cores = lora_xs._Cores(problem, 12)
    wanted = problem.teacher["0.weight"] - problem.base["0.weight"]
    left, right = cores.sides["0.weight"]
    spread = (left.pinverse() @ wanted @ right.pinverse()).clone()
    given = cores.change({"0.weight": spread})["0.weight"]
    inside = left @ left.pinverse() @ wanted  # the left side spans 12 of 16 directions
    torch.testing.assert_close(given, inside, rtol=1e-3, atol=1e-4)


def test_training_lowers_the_loss_and_leaves_the_base_alone(problem: Problem) -> None:
    before = {name: tensor.clone() for name, tensor in problem.base.items()}

    def whole(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        return leaves

    def loss(leaves: dict[str, Tensor]) -> float:
        state = patched(problem, leaves)
        outputs = torch.func.functional_call(problem.trainable.module, state, (problem.data.train.inputs,))
        return float(problem.trainable.loss(outputs, problem.data.train.labels))

    start = small_changes(problem)
    trained_leaves = fit(problem, start, whole, distilled=False)
    assert loss(trained_leaves) < loss(start)
    assert all(problem.base[name].equal(tensor) for name, tensor in before.items())


def test_an_environment_that_nobody_made_leaves_its_rows_out() -> None:
    nobodys = Environment(name="nobodys", packages=("nothing",), check="import nothing")
    with pytest.raises(Unavailable, match="nobodys: its environment was not made"):
        _ = nobodys.python


def test_adapters_go_where_the_library_has_them() -> None:
    class Padded(nn.Conv2d):
        pass

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see = nn.Conv2d(4, 8, 3)
            self.padded, self.point = Padded(8, 8, 3), Padded(8, 8, 1)
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
            self.attend = nn.MultiheadAttention(8, 2)
            self.words = nn.Embedding(10, 8)
            self.remember = nn.GRU(8, 8)
            self.tell = nn.Linear(8, 2)

    net = Net()
    before, inputs = net.state_dict(), torch.randn(2, 8, 5, 5)
    point = net.point(inputs)
    assert targets(net) == ["see", "attend", "words", "tell"]
    assert targets(plain(net)) == ["see", "point", "attend", "words", "tell"]
    assert net.point(inputs).equal(point)
    assert list(net.state_dict()) == list(before)
