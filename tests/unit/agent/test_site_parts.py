"""The parts that tasks of a site are run by, each alone: breaker, hedging, inputs and bodies."""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashing_disk import CrashingDisk, Names, PowerCut
from hypothesis import given, settings
from hypothesis import strategies as st

from sprat_client.agent.input_files import read_inputs
from sprat_client.agent.kserve import DATATYPES, answered, asked, inputs_of_kserve, outputs_as_kserve
from sprat_client.agent.site.breaker import Breaker, Circuit
from sprat_client.agent.site.failures import (
    Busy,
    NotHeld,
    OtherPlan,
    PlanExpired,
    TooLate,
    Unreachable,
    problem_body,
    said_by,
    status_of,
)
from sprat_client.agent.site.hedging import HedgeBudget, Latencies
from sprat_client.agent.site.plan_files import PlanFiles, PlanRecord
from sprat_client.agent.site.task_answer import fit_task_inputs
from sprat_client.runtime.ports import InferenceFailed
from sprat_client.runtime.tensor_bodies import encode_tensors
from sprat_shared.errors import InvalidInput, SpratError
from sprat_shared.protocol.site_report import PlanState
from sprat_shared.tasks.types import TensorType
from sprat_shared.trust.site_targets import Phase

Array = np.ndarray[Any, Any]
PLANS = Path("/agent")


# the breaker


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_member_that_failed_three_times_rests_and_is_tried_by_one_request() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(3):
        assert breaker.let_through()
        breaker.failed()
    assert breaker.circuit is Circuit.OPEN
    assert not breaker.let_through()
    clock.now += 1.01
    assert breaker.circuit is Circuit.HALF_OPEN
    assert breaker.let_through()
    assert not breaker.let_through(), "one request shows it, and others wait for that"
    breaker.succeeded()
    assert breaker.circuit is Circuit.CLOSED
    assert breaker.let_through()


def test_a_member_rests_longer_each_time_a_trial_fails_and_a_trial_without_an_end_hinders_no_other() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(3):
        breaker.failed()
    rests = []
    for _ in range(7):
        begun = clock.now
        while not breaker.let_through():
            clock.now += 0.25
        rests.append(clock.now - begun)
        breaker.failed()
    assert rests[:4] == [1.0, 2.0, 4.0, 8.0]
    assert rests[-1] == 30.0
    clock.now += 31
    assert breaker.let_through()  # and nobody ever says how it ended
    clock.now += 31
    assert breaker.let_through()
    breaker.given_up()
    assert breaker.let_through(), "a trial that was given up says nothing"


def test_a_heartbeat_alone_closes_what_a_heartbeat_opened() -> None:
    breaker = Breaker(Clock())
    breaker.beat("does not answer")
    assert breaker.circuit is Circuit.OPEN
    breaker.succeeded()  # an answer that was on its way
    assert not breaker.let_through()
    breaker.beat()
    assert breaker.let_through()
    for _ in range(3):
        breaker.failed()
    breaker.beat()
    assert breaker.circuit is Circuit.OPEN, "it is there, and yet it does not answer requests"


# hedging


def test_the_95th_percentile_is_said_once_there_are_enough_answers() -> None:
    latencies = Latencies()
    for ms in range(19):
        latencies.add(ms / 1000)
    assert latencies.p95() is None
    for ms in range(19, 101):
        latencies.add(ms / 1000)
    assert latencies.p95() == pytest.approx(0.095)


def test_second_requests_are_a_share_of_the_first_ones() -> None:
    budget = HedgeBudget(0.1)
    taken = 0
    for _ in range(1000):
        budget.asked()
        taken += budget.take()
    assert 99 <= taken <= 100


def test_all_that_is_under_way_to_a_device_that_has_just_become_slow_may_be_asked_twice() -> None:
    budget = HedgeBudget(0.1)
    for _ in range(1000):
        budget.asked()
    assert sum(budget.take() for _ in range(100)) == 10


# what a task takes

TYPES = {"image": TensorType("float32", ("n", 3)), "words": TensorType("int64", ("n", "length"))}


def test_inputs_of_a_task_are_brought_to_its_types() -> None:
    fitted = fit_task_inputs(TYPES, {"image": np.ones((2, 3)), "words": np.ones((2, 7), np.int32)})
    assert [str(value.dtype) for value in fitted.values()] == ["float32", "int64"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"words": np.ones((3, 7), np.int64)}, "n is 3, and 2 in 'image'"),
        ({"words": np.ones((2, 7))}, "takes int64"),
        ({"words": np.ones((2,), np.int64)}, "takes shape"),
        ({"words": np.ones((2, 0), np.int64)}, "has no values"),
        ({"sound": np.ones(2)}, "got image, words, sound"),
    ],
)
def test_inputs_that_a_task_does_not_take_are_refused(change: dict[str, Array], said: str) -> None:
    good = {"image": np.ones((2, 3), np.float32), "words": np.ones((2, 7), np.int64)}
    with pytest.raises(InvalidInput, match=said):
        fit_task_inputs(TYPES, {**good, **change})


# errors between members


@pytest.mark.parametrize(
    "bad", [OtherPlan("p"), Busy("b"), PlanExpired("e"), TooLate("t"), NotHeld("h"), InferenceFailed("f")]
)
def test_an_error_comes_over_the_wire_by_its_name(bad: SpratError) -> None:
    said = said_by(status_of(bad), problem_body(bad))
    assert (type(said), said.code, str(said)) == (type(bad), bad.code, str(bad))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"code": 3}', b"[" * 100_000])
def test_an_answer_that_is_no_reason_is_a_member_that_does_not_answer(body: bytes) -> None:
    assert isinstance(said_by(502, body), Unreachable)


# KServe's bodies


@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_tensor_goes_through_kserve_s_json_and_back(datatype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 0]], DATATYPES[datatype])
    (entry,) = outputs_as_kserve({"x": values})
    assert (entry["datatype"], entry["shape"]) == (datatype, [2, 3])
    again = asked(json.dumps({"inputs": [entry]}).encode(), safetensors=False)["x"]
    assert again.dtype == values.dtype
    np.testing.assert_array_equal(again, values)


def test_a_body_of_safetensors_is_answered_in_kind() -> None:
    values = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    body = answered({"model_name": "m"}, values, safetensors=True)
    np.testing.assert_array_equal(asked(body, safetensors=True)["x"], values["x"])


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"datatype": "FP8"}, "datatype 'FP8'"),
        ({"shape": [2, 2]}, "do not fill shape"),
        ({"shape": [-1]}, "no list of lengths"),
        ({"shape": [10**30]}, "do not fill shape|no list of lengths"),
        ({"data": ["a", "b", "c"]}, "no INT8"),
        ({"data": [1, 2, 300]}, "beyond INT8"),
        ({"data": [1, 2, 0.5]}, "no INT8"),
        ({"data": [[1], [2, 3]]}, "do not fill|no INT8"),
        ({"data": None}, "needs name, shape"),
    ],
)
def test_a_tensor_that_is_wrong_is_refused_by_name(entry: dict[str, Any], said: str) -> None:
    good = {"name": "x", "shape": [3], "datatype": "INT8", "data": [1, 2, 3]}
    with pytest.raises(InvalidInput, match=said):
        inputs_of_kserve({"inputs": [{**good, **entry}]})


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
        lambda one: (
            st.lists(one) | st.dictionaries(st.sampled_from(["inputs", "name", "shape", "datatype", "data", "x"]), one)
        ),
    )
)
def test_whatever_json_comes_is_inputs_or_is_refused(value: Any) -> None:
    try:
        assert isinstance(asked(json.dumps(value).encode(), safetensors=False), dict)
    except InvalidInput:
        return


def test_inputs_are_read_from_files_that_are_named(tmp_path: Any) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    (tmp_path / "b.safetensors").write_bytes(encode_tensors({"whatever": np.zeros(2, np.int64)}))
    read = read_inputs([f"a={tmp_path}/a.npy", f"b={tmp_path}/b.safetensors"])
    assert {name: value.shape for name, value in read.items()} == {"a": (2, 3), "b": (2,)}


@pytest.mark.parametrize("named", [["a"], ["a="], ["=f"], ["a=/nowhere.npy"], ["a=X", "a=X"], ["a=EMPTY"], ["a=NPZ"]])
def test_files_of_inputs_that_are_none_are_refused(named: Sequence[str], tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", np.ones(2))
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "many.npz", a=np.ones(2))
    files = {"X": tmp_path / "x.npy", "EMPTY": tmp_path / "empty.npy", "NPZ": tmp_path / "many.npz"}
    given = [
        f"{one.partition('=')[0]}={files.get(one.partition('=')[2], one.partition('=')[2])}" if "=" in one else one
        for one in named
    ]
    with pytest.raises(InvalidInput, match="--input"):
        read_inputs(given)


# plans on the disk


def a_record(number: int, phase: Phase = Phase.HOLD) -> PlanRecord:
    body = b"plan %d" % number
    return PlanRecord(
        site="line-3", number=number, phase=phase, sha256=hashlib.sha256(body).hexdigest(), length=len(body)
    )


@pytest.mark.parametrize("names", ["lost", "kept"])
def test_every_power_cut_leaves_the_plans_as_they_were_or_as_they_became(names: Names) -> None:
    old, new = a_record(1, Phase.SERVE), a_record(2)
    for calls in itertools.count():
        disk = CrashingDisk(PLANS, names)
        files = PlanFiles(PLANS, disk)
        files.sign([old])
        files.keep(files.records[0], b"plan 1")
        files.tell(files.records[0], PlanState.SERVING)
        before = files.records
        disk.calls_left = calls
        try:
            files.sign([old, new])
            files.keep(files.records[1], b"plan 2")
            files.tell(files.records[1], PlanState.REFUSED, ("site.plan-refused", "no"))
            files.sign([old])
        except PowerCut:
            found = PlanFiles(PLANS, disk)
            assert found.records[0] == before[0], f"a cut before call {calls}"
            assert found.body(found.records[0]) == b"plan 1"
            for record in found.records[1:]:
                assert (record.told is None) or record.why == ("site.plan-refused", "no")
                assert found.body(record) in {None, b"plan 2"}
        else:
            disk.power_cut()
            assert PlanFiles(PLANS, disk).records == before
            assert PlanFiles(PLANS, disk).body(new) is None
            return


def test_what_was_reported_of_a_plan_stays_known_while_it_is_signed_with_the_same_file() -> None:
    files = PlanFiles(PLANS, CrashingDisk(PLANS))
    files.sign([a_record(1)])
    files.tell(files.records[0], PlanState.READY)
    assert files.sign([a_record(1, Phase.SERVE)])
    assert [(one.phase, one.told) for one in files.records] == [(Phase.SERVE, PlanState.READY)]
    assert not files.sign([a_record(1, Phase.SERVE)])
    assert files.sign([replace(a_record(1), sha256="0" * 64)])
    assert [one.told for one in files.records] == [None], "it is another plan"
