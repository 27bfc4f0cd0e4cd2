"""A release that shares layers, before it serves: held against its signed budget on this device's unlabelled inputs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_onnx
from one_device import MODEL, OneDevice, one_device
from sharing_device import add_near_copy, drifted, known

from sprat_client.agent.settings import ValidationSettings
from sprat_shared.protocol.report import Outcome, Report


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    """A device that runs release 1; release 2 is its near copy, with a budget of 5 %."""
    with one_device(tmp_path) as device:
        add_near_copy(device)
        yield device


def taken(device: OneDevice, inputs: tiny_onnx.Array, release: int = 2, **validation: Any) -> Report:
    """Assign the near copy to the device, which has these inputs and no labels."""
    path = device.folder.parent / "inputs.npz"
    np.savez(path, inputs=inputs)
    settings = ValidationSettings(latency_runs=1, **validation)
    return device.take(release, holdouts={}, unlabelled={MODEL: path}, validation=settings)[1]


def test_inputs_that_certify_it_are_proof(device: OneDevice) -> None:
    report = taken(device, known(100), too_few="refuse")
    assert report.outcome is Outcome.COMMITTED
    assert report.evidence is not None
    assert (report.evidence.compared, report.evidence.agreed, report.evidence.unproven) == (100, 100, False)


def test_inputs_too_few_to_certify_it_are_a_weaker_pass_or_none_by_policy(device: OneDevice) -> None:
    report = taken(device, known(40), too_few="refuse")
    assert (report.outcome, report.error_code) == (Outcome.REFUSED, "validation.too-few")
    assert "that takes 59 of which none differs" in str(report.error_detail)
    report = taken(device, known(40))
    assert report.outcome is Outcome.COMMITTED
    assert report.evidence is not None
    assert report.evidence.unproven


def test_more_differences_than_the_budget_allows_are_refused_by_name(device: OneDevice) -> None:
    report = taken(device, np.concatenate([known(60), drifted(device, 20)]))
    assert (report.outcome, report.error_code) == (Outcome.REFUSED, "validation.over-budget")
    assert "60 of 80 answers were the old release's" in str(report.error_detail)
    assert "more than the 5.00% for which it was certified" in str(report.error_detail)
    assert device.serves() == 1


def test_differences_that_the_budget_may_hold_are_no_reason_to_refuse(device: OneDevice) -> None:
    report = taken(device, np.concatenate([known(95), drifted(device, 5)]))
    assert report.outcome is Outcome.COMMITTED
    assert report.evidence is not None
    assert report.evidence.unproven, "5 of 100 neither prove nor disprove 5 %"


def test_a_release_by_itself_has_no_budget(device: OneDevice) -> None:
    base = device.server.models[MODEL][1].weights
    device.server.add_release(MODEL, {**base, "first.weight": device.server.models[MODEL][2].weights["first.weight"]})
    report = taken(device, np.concatenate([known(60), drifted(device, 20)]), release=3)
    assert report.outcome is Outcome.COMMITTED
