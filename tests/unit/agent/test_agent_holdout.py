"""Labelled samples of applications: bounded, the newest of each class, whole after a power cut, told in counts."""

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_onnx
from crashing_disk import CrashingDisk, PowerCut
from one_device import INPUTS, LABELS, MODEL, OneDevice, one_device

from sprat_client.agent.drift import Told, is_worth_looking, is_worth_telling
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.holdout import KeptHoldout
from sprat_client.agent.settings import HoldoutSettings
from sprat_client.runtime.ports import PortSpec
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.report import Outcome

SPEC = PortSpec("x", np.dtype(np.float32), (None, 3))
BOUNDS = HoldoutSettings(most_samples=40, most_bytes=1 << 20)


def samples(*numbers: int) -> np.ndarray:
    """Samples that can be told apart: each holds its number."""
    return np.repeat(np.array(numbers, np.float32)[:, None], 3, axis=1)


def kept_of(holdout: KeptHoldout) -> list[tuple[int, int]]:
    loaded = holdout.load(SPEC)
    return [] if loaded is None else [(int(x[0]), int(y)) for x, y in zip(loaded.inputs, loaded.labels, strict=True)]


def holdout_in(folder: Path, bounds: HoldoutSettings = BOUNDS) -> KeptHoldout:
    return KeptHoldout(folder, PosixDisk(), bounds)


def test_samples_are_kept_in_order_and_found_again(tmp_path: Path) -> None:
    holdout = holdout_in(tmp_path / "m")
    assert holdout.load(SPEC) is None
    assert holdout.add(SPEC, samples(0, 1), np.array([5, 6])) == 2
    assert holdout.add(SPEC, samples(2), np.array([5])) == 3
    for one in (holdout, holdout_in(tmp_path / "m")):
        assert kept_of(one) == [(0, 5), (1, 6), (2, 5)]
        assert one.counts() == Counter({5: 2, 6: 1})
        assert (len(one), one.added, one.nbytes) == (3, 3, 36)


def test_under_a_drift_the_newest_of_each_class_stay_and_a_rare_class_is_not_pushed_out(tmp_path: Path) -> None:
    holdout = holdout_in(tmp_path / "m")
    holdout.add(SPEC, samples(0, 1, 2), np.array([9, 9, 9]))
    for number in range(3, 400):
        holdout.add(SPEC, samples(number), np.array([number % 2]))
    assert holdout.counts() == Counter({0: 18, 1: 19, 9: 3})
    assert [number for number, label in kept_of(holdout) if label == 9] == [0, 1, 2]
    assert [number for number, label in kept_of(holdout) if label == 0] == list(range(364, 400, 2))
    assert [number for number, label in kept_of(holdout) if label == 1] == list(range(363, 400, 2))
    again = holdout_in(tmp_path / "m")
    assert kept_of(again) == kept_of(holdout)
    assert again.added == 400


def test_files_are_few_and_take_no_more_than_twice_the_bytes_that_count(tmp_path: Path) -> None:
    wide = PortSpec("x", np.dtype(np.float32), (None, 256))
    holdout = holdout_in(tmp_path / "m", HoldoutSettings(most_samples=200, most_bytes=100 << 10))
    draw = np.random.default_rng(1)
    holdout.add(wide, draw.standard_normal((100, 256)), np.array([7, *[0] * 99]))  # of these but a few will count
    for _ in range(150):
        holdout.add(wide, draw.standard_normal((1, 256)), draw.integers(1, 3, 1))
    assert sum(file.stat().st_size for file in (tmp_path / "m").iterdir()) <= 2 * (100 << 10)
    for _ in range(450):
        holdout.add(wide, draw.standard_normal((1, 256)), draw.integers(0, 3, 1))
    files = list((tmp_path / "m").iterdir())
    assert holdout.nbytes <= 100 << 10
    assert len(files) <= 50
    assert sum(file.stat().st_size for file in files) <= 2 * (100 << 10) + 300 * len(files)


@pytest.mark.parametrize(
    ("inputs", "labels", "said"),
    [
        (samples(1), [0, 1], "one whole number"),
        (samples(1), [0.5], "one whole number"),
        (samples(1), [-1], "counted from 0"),
        (samples(1)[:, :2], [0], "takes shape"),
        (np.full((1, 3), np.nan), [0], "NaN or Inf"),
        (np.zeros((0, 3)), np.zeros(0, int), "one whole number"),
        (np.zeros((41, 3)), np.zeros(41, int), "at once"),
    ],
)
def test_samples_that_cannot_be_used_are_refused_and_nothing_is_kept(
    tmp_path: Path, inputs: np.ndarray, labels: list[float], said: str
) -> None:
    holdout = holdout_in(tmp_path / "m")
    with pytest.raises(InvalidInput, match=said):
        holdout.add(SPEC, inputs, np.asarray(labels))
    assert len(holdout) == 0
    assert not (tmp_path / "m").exists()


def test_samples_of_another_shape_and_damaged_files_are_left_out(tmp_path: Path) -> None:
    holdout = holdout_in(tmp_path / "m")
    holdout.add(SPEC, samples(0), np.array([1]))
    holdout.add(PortSpec("x", np.dtype(np.float32), (None, 4)), np.ones((1, 4)), np.array([2]))
    assert kept_of(holdout) == [(0, 1)]
    next(iter(sorted((tmp_path / "m").iterdir()))).write_bytes(b"junk")
    assert holdout_in(tmp_path / "m").load(SPEC) is None
    assert len(list((tmp_path / "m").iterdir())) == 1


def test_every_power_cut_leaves_all_samples_that_were_promised_and_none_twice(tmp_path: Path) -> None:
    def fill(holdout: KeptHoldout, promised: list[int]) -> None:
        for number in range(20):
            holdout.add(SPEC, samples(number), np.array([number % 2]))
            promised.append(number)

    bounds = HoldoutSettings(most_samples=14)
    for calls in itertools.count(step=7):
        folder = tmp_path / str(calls)
        disk, promised = CrashingDisk(folder), list[int]()
        disk.calls_left = calls
        cut = False
        try:
            fill(KeptHoldout(folder / "m", disk, bounds), promised)
        except PowerCut:
            cut = True
        disk.calls_left = None
        holdout = KeptHoldout(folder / "m", disk, bounds)
        found = [number for number, _ in kept_of(holdout)]
        newest = list(range(max(0, len(promised) - 14), len(promised)))
        assert found in (newest, list(range(max(0, len(promised) - 13), len(promised) + 1))), f"call {calls}"
        if not cut:
            assert calls > 60
            return


# on the agent -----------------------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        yield device


def test_what_applications_added_refuses_a_bad_release_and_survives_a_restart(device: OneDevice) -> None:
    bad = {**tiny_onnx.weights(99), "steps": tiny_onnx.weights(1)["steps"]}
    device.server.add_release(MODEL, bad, base=1, lossless=True)
    with device.agent(holdouts={}) as agent:
        assert agent.add_labelled(MODEL, INPUTS, LABELS) == 64
    code, report = device.take(2, holdouts={})
    assert (code, report.outcome, report.error_code) == (76, Outcome.REFUSED, "validation.worse")
    assert report.evidence is not None
    assert report.evidence.samples == 64


def test_the_owners_files_count_together_with_what_was_added(device: OneDevice) -> None:
    base = device.server.models[MODEL][1].weights
    device.server.add_release(MODEL, tiny_onnx.nudged(base, 2, size=1e-4), base=1)
    with device.agent() as agent:
        agent.add_labelled(MODEL, INPUTS[:10], LABELS[:10].tolist())
    report = device.take(2)[1]
    assert report.evidence is not None
    assert report.evidence.samples == 74


def test_the_drift_of_the_samples_is_told_in_counts_and_not_again_before_it_moved(device: OneDevice) -> None:
    with device.agent(holdouts={}) as agent:
        agent.add_labelled(MODEL, INPUTS[:29], LABELS[:29])
        agent.turn()
        agent.add_labelled(MODEL, INPUTS[29:], (LABELS[29:] + 1) % tiny_onnx.CLASSES)
        for _ in range(3):
            agent._drift._next = 0.0
            agent.turn()
        while agent._shop.reports_wait:
            time.sleep(min(agent.turn(), 0.01))
    (told,) = device.server.devices["gate-7"].drifts
    assert (told.model, told.release, told.samples, told.added) == (MODEL, 1, 64, 64)
    assert sum(told.correct) == 29
    expected = Counter([*LABELS[:29].tolist(), *((LABELS[29:] + 1) % tiny_onnx.CLASSES).tolist()])
    assert dict(told.classes) == dict(expected)


def told(at: float, *, added: int = 100, share: float = 0.5, accuracy: float = 0.9) -> Told:
    return Told(at=at, added=added, shares={0: share, 1: 1 - share}, accuracy=accuracy)


def test_a_drift_is_looked_at_each_hour_and_told_each_day_or_where_it_moved() -> None:
    last = told(0.0)
    assert is_worth_looking(30, 30, None, 0.0)
    assert not is_worth_looking(29, 29, None, 0.0)
    assert not is_worth_looking(100, 40, last, 1e9), "nothing new"
    assert not is_worth_looking(101, 40, last, 3599.0)
    assert is_worth_looking(101, 40, last, 3600.0)
    assert is_worth_looking(101, 40, last, -5.0), "the clock was set back"
    assert is_worth_telling(told(0.0), None)
    assert not is_worth_telling(told(3600.0, share=0.55, accuracy=0.85), last)
    assert is_worth_telling(told(3600.0, share=0.61), last)
    assert is_worth_telling(told(3600.0, accuracy=0.79), last)
    assert is_worth_telling(told(86400.0), last)
