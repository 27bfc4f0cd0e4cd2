"""The demo's recipe and data: as large as promised, the same in every process, splits that never meet."""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "examples"))

from digits_demo.data import TEST, TRAIN, VALIDATION, clean, drifted, mislabelled
from digits_demo.model import build


def test_the_model_has_about_260_000_values_and_batch_norms() -> None:
    module = build({})
    assert 255_000 < sum(tensor.numel() for tensor in module.state_dict().values()) < 265_000
    assert any("running_mean" in name for name in module.state_dict())
    assert module.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_digits_are_the_same_each_time_and_every_class_is_in_every_split() -> None:
    digits, again = clean(), clean()
    assert digits.inputs.shape == (5000, 1, 28, 28)
    assert digits.inputs.dtype == np.float32
    assert np.array_equal(digits.inputs, again.inputs)
    assert [int((digits.split == part).sum()) for part in (TRAIN, VALIDATION, TEST)] == [3250, 750, 1000]
    for part in (TRAIN, VALIDATION, TEST):
        assert set(digits.part(part).labels.tolist()) == set(range(10))
    images = {image.tobytes() for image in digits.part(TRAIN).inputs}
    assert not images & {image.tobytes() for image in digits.part(TEST).inputs}


def test_drift_changes_what_is_seen_and_not_what_it_is() -> None:
    few = clean().part(TEST)
    seen, again = drifted(few, 3), drifted(few, 3)
    assert np.array_equal(seen.inputs, again.inputs)
    assert seen.inputs.min() >= 0
    assert seen.inputs.max() <= 1
    assert np.abs(seen.inputs - few.inputs).mean() > 0.05
    assert np.array_equal(seen.labels, few.labels)
    assert np.array_equal(mislabelled(few).labels, (few.labels + 1) % 10)
