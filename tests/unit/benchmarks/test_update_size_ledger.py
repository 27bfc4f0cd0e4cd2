"""What `benchmarks/update_size.py` has measured is kept, and measured again only where code or data have changed."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from sizes.cases import Problem
from sizes.ledger import Ledger, LedgerInUse, Point, source_digest
from sizes.method import Method, Sent
from sizes.store import Store
from torch import nn

from sprat_server.training.data import Samples, TrainingData
from sprat_server.training.evaluate import HeldBack, TestSamples
from sprat_server.training.recipes import Trainable, accuracy


def point(setting: str) -> Point:
    return Point(setting=setting, bytes=9, validation=0.9, error=0.01, test=None, seconds=1.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "measured" / "case-0.jsonl"


def test_what_is_kept_is_there_again(path: Path) -> None:
    Ledger(path, "problem").keep("one", "code", {"a": point("a"), "b": point("b")})
    Ledger(path, "problem").keep("two", "code", {"a": point("a")})
    ledger = Ledger(path, "problem")
    assert ledger.points("one", "code") == {"a": point("a"), "b": point("b")}
    assert ledger.points("two", "code") == {"a": point("a")}
    assert ledger.gains(lambda: {"values": 3}) == {"values": 3}
    assert Ledger(path, "problem").gains(lambda: pytest.fail("it was made again")) == {"values": 3}


def test_other_code_begins_its_own_row_anew_and_no_other(path: Path) -> None:
    ledger = Ledger(path, "problem")
    for method in ("one", "two"):
        ledger.keep(method, "code", {"a": point("a")})
    assert ledger.points("one", "changed") == {}
    ledger.keep("one", "changed", {"b": point("b")})
    assert Ledger(path, "problem").points("one", "changed") == {"b": point("b")}
    assert Ledger(path, "problem").points("one", "code") == {}
    assert Ledger(path, "problem").points("two", "code") == {"a": point("a")}


def test_another_problem_finds_nothing(path: Path) -> None:
    ledger = Ledger(path, "problem")
    ledger.gains(lambda: {"values": 3})
    ledger.keep("one", "code", {"a": point("a")})
    assert Ledger(path, "other").points("one", "code") == {}
    assert Ledger(path, "other").gains(lambda: {"values": 4}) == {"values": 4}


def test_points_of_other_weights_are_forgotten_as_a_whole(path: Path) -> None:
    ledger = Ledger(path, "problem")
    ledger.measured_on("weights")
    ledger.gains(lambda: {"values": 3})
    ledger.keep("one", "code", {"a": point("a")})
    same = Ledger(path, "problem")
    same.measured_on("weights")
    assert same.points("one", "code")
    other = Ledger(path, "problem")
    other.measured_on("those of another processor")
    assert other.points("one", "code") == {}
    assert other.gains(lambda: {"values": 4}) == {"values": 4}
    other.keep("two", "code", {"a": point("a")})
    assert Ledger(path, "problem").points("one", "code") == {}


def test_two_runs_do_not_measure_one_problem_at_once(path: Path) -> None:
    with Ledger(path, "problem").alone():
        with (
            pytest.raises(LedgerInUse, match=r"case-0\.jsonl; wait for it, or stop it"),
            Ledger(path, "problem").alone(),
        ):
            pytest.fail("two at once")
        assert Ledger(path, "problem").points("one", "code") == {}, "looking is free"
    with Ledger(path, "problem").alone():
        pass


def test_a_digest_follows_what_code_does_and_not_how_it_is_told(tmp_path: Path) -> None:
    file = tmp_path / "code.py"

    def digest(text: str) -> str:
        file.write_text(text, encoding="utf-8")
        return source_digest(file)

    whole = digest('"""Module."""\n\ndef f(x):\n    """Return twice."""\n    return (x * 2)  # twice\n')
    assert digest('"""Said\notherwise."""\ndef f( x ):\n    return x * 2\n') == whole
    assert digest('"""Module."""\n\ndef f(x):\n    """Return twice."""\n    return (x * 3)  # twice\n') != whole
    assert digest('def f(x):\n    "Nothing else."\n') == digest("def f(x):\n    pass\n")


def tiny_problem() -> Problem:
    torch.manual_seed(0)
    module = nn.Linear(4, 3).eval()
    base = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    teacher = {name: tensor + torch.randn(tensor.shape) for name, tensor in base.items()}
    inputs = torch.randn(64, 4)
    labels = nn.functional.linear(inputs, teacher["weight"], teacher["bias"]).argmax(1)
    samples = Samples(inputs, labels)
    return Problem(
        name="tiny",
        seed=0,
        trainable=Trainable(module, nn.functional.cross_entropy, accuracy, classifies=True),
        data=TrainingData(samples, samples),
        test=HeldBack(lambda: TestSamples(inputs, labels, range(64))),
        base=base,
        teacher=teacher,
        epochs=1,
        batch=16,
    )


@pytest.mark.parametrize("changes", [False, True])
def test_a_row_of_changed_code_is_believed_again_if_both_its_ends_are_the_same(
    path: Path, tmp_path: Path, *, changes: bool
) -> None:
    problem, store, code = tiny_problem(), Store(tmp_path / "store"), tmp_path / "code.py"
    sizes, made = {"a": 10, "b": 20, "c": 30}, list[str]()

    def sweep(_problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
        for setting in settings:
            made.append(setting)
            yield Sent(setting, sizes[setting], problem.teacher)

    row = Method(key="row", title="Row", ours=True, settings=("a", "b", "c"), sweep=sweep, code=(code,))
    code.write_text("x = 1\n", encoding="utf-8")
    first = row.points(Ledger(path, "problem"), lambda: (problem, store))
    code.write_text("x = 2\n", encoding="utf-8")
    assert row.missing(Ledger(path, "problem"))
    assert row.kept_before(Ledger(path, "problem")) == first
    made.clear()
    if changes:
        sizes["c"] = 31
    points = row.points(Ledger(path, "problem"), lambda: (problem, store))
    assert made == (["a", "c", "b"] if changes else ["a", "c"])
    assert [point.bytes for point in points] == [10, 20, 31 if changes else 30]
    assert (points == first) == (not changes)
    assert row.kept_before(Ledger(path, "problem")) == []
    assert not row.missing(Ledger(path, "problem"))


def test_only_what_is_missing_is_measured_and_a_stopped_run_loses_nothing(path: Path, tmp_path: Path) -> None:
    problem = tiny_problem()
    made: list[str] = []

    def sweep(_problem: Problem, settings: Sequence[str], _store: Store) -> Iterator[Sent]:
        for setting in settings:
            if setting == "b" and not made.count("stopped"):
                made.append("stopped")
                raise KeyboardInterrupt
            made.append(setting)
            yield Sent(setting, 10, problem.teacher)

    row = Method(key="row", title="Row", ours=True, settings=("a", "b"), sweep=sweep, code=(Path(__file__),))
    store = Store(tmp_path / "store")
    assert row.missing(Ledger(path, "problem"))
    with pytest.raises(KeyboardInterrupt):
        row.points(Ledger(path, "problem"), lambda: (problem, store))
    points = row.points(Ledger(path, "problem"), lambda: (problem, store))
    assert made == ["a", "stopped", "b"]
    assert [(p.setting, p.bytes, p.validation, p.test) for p in points] == [("a", 10, 1.0, 1.0), ("b", 10, 1.0, 1.0)]
    assert not row.missing(Ledger(path, "problem"))
    again = row.points(Ledger(path, "problem"), lambda: pytest.fail("the problem was made again"))
    assert again == points
