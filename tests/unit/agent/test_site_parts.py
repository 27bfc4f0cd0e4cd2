"""The parts that tasks of a site are run by, each alone: breaker, hedging, queues, inputs and bodies."""

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
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
from sprat_client.agent.site.module_queue import ModuleQueue
from sprat_client.agent.site.modules import signature_of, tried
from sprat_client.agent.site.pace import Pace
from sprat_client.agent.site.plan_files import PlanFiles, PlanRecord
from sprat_client.agent.site.task_answer import fit_task_inputs
from sprat_client.runtime.ports import InferenceFailed, PortSpec
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


# the queue of a module


class Doubler:
    """y = 2x, and how many rows came at once; it can be held up."""

    def __init__(self, *, free: bool = True) -> None:
        rows = None if free else 1
        self.inputs = [PortSpec("x", np.dtype("float32"), (rows, 2), ("n" if free else None, None))]
        self.outputs = [PortSpec("y", np.dtype("float32"), (rows, 2), ("n" if free else None, None))]
        self.go, self.sizes = threading.Event(), list[int]()
        self.go.set()

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        self.go.wait(5)
        self.sizes.append(len(values["x"]))
        if (values["x"] == 666).any():
            raise InferenceFailed("it does not like this number")
        return [2 * values["x"]]


def a_queue(
    host: Any, *, together: bool = True, most_waiting: int = 8, most_rows: int = 4, pace: Pace | None = None
) -> ModuleQueue:
    return ModuleQueue(
        host, "m@1", together=together, most_waiting=most_waiting, most_rows=most_rows, pace=pace or Pace()
    )


def paced(one_s: float, two_s: float) -> Pace:
    """What is known of a module that takes so long for a row, and for two."""
    pace = Pace()
    pace.ran(1, one_s)
    pace.ran(2, two_s)
    return pace


def rows(value: float, count: int = 1) -> dict[str, Array]:
    return {"x": np.full((count, 2), value, np.float32)}


def soon() -> float:
    return time.monotonic() + 5


def held_up(host: Doubler, queue: ModuleQueue) -> Any:
    """Let a first request be under way, behind which the others wait."""
    host.go.clear()
    first = queue.ask(rows(0), soon())
    while len(queue):
        time.sleep(0.001)
    return first


def test_requests_that_wait_run_together_and_each_gets_its_own_rows() -> None:
    host = Doubler()
    queue = a_queue(host)
    first = held_up(host, queue)
    futures = [queue.ask(rows(n, 1 + n % 2), soon()) for n in range(1, 5)]  # 2 + 1 + 2 + 1 rows
    host.go.set()
    for n, future in enumerate(futures, 1):
        np.testing.assert_array_equal(future.result(5).outputs["y"], 2 * rows(n, 1 + n % 2)["x"])
    assert first.result(5).together == 1
    assert host.sizes == [1, 4, 2], "2 + 1 + 1 rows fill the largest size; what is left goes next"
    queue.close()


def test_only_what_has_the_same_shapes_runs_together() -> None:
    host = Doubler()
    host.inputs = [PortSpec("x", np.dtype("float32"), (None, None))]
    queue = a_queue(host)
    held_up(host, queue)
    wide = queue.ask({"x": np.ones((1, 3), np.float32)}, soon())
    narrow = [queue.ask(rows(1), soon()) for _ in range(2)]
    host.go.set()
    assert wide.result(5).outputs["y"].shape == (1, 3)
    assert [one.result(5).together for one in narrow] == [2, 2]
    queue.close()


def test_a_request_on_which_the_module_fails_takes_no_other_one_with_it() -> None:
    host = Doubler()
    queue = a_queue(host)
    held_up(host, queue)
    good, bad = queue.ask(rows(1), soon()), queue.ask(rows(666), soon())
    host.go.set()
    np.testing.assert_array_equal(good.result(5).outputs["y"], [[2, 2]])
    with pytest.raises(InferenceFailed):
        bad.result(5)
    queue.close()


def test_a_request_whose_time_is_over_is_dropped_before_anything_is_computed() -> None:
    host = Doubler()
    queue = a_queue(host)
    held_up(host, queue)
    late = queue.ask(rows(1), time.monotonic() + 0.01)
    time.sleep(0.05)
    host.go.set()
    with pytest.raises(TooLate, match="deadline was over"):
        late.result(5)
    assert host.sizes == [1]
    queue.close()


def test_what_cannot_be_answered_in_time_is_not_begun() -> None:
    host = Doubler()
    queue = a_queue(host, pace=paced(0.5, 0.6))
    late, good = queue.ask(rows(1), time.monotonic() + 0.3), queue.ask(rows(2), soon())
    with pytest.raises(TooLate, match=r"only [0-9]+ ms were left"):
        late.result(5)
    assert good.result(5).together == 1
    assert host.sizes == [1]
    assert queue.ask(rows(1), time.monotonic() + 0.3).result(5), "it took less than it did: so it may again"
    queue.close()


def test_rows_that_are_not_quicker_together_run_one_after_the_other_and_now_and_then_are_tried() -> None:
    host = Doubler()
    pace = paced(0.5, 1.0)
    queue = a_queue(host, pace=pace)
    held_up(host, queue)
    asked = [queue.ask(rows(number), soon()) for number in range(3)]
    host.go.set()
    assert [one.result(5).together for one in asked] == [1, 1, 1]
    queue.close()
    tries = [paced(0.5, 1.0).pays() for _ in range(3)]
    assert tries == [False, False, False]
    assert sum(pace.pays() for _ in range(128)) == 2


def test_no_more_run_together_than_are_all_in_time() -> None:
    host = Doubler()
    queue = a_queue(host, pace=paced(0.5, 0.8))
    held_up(host, queue)
    time.sleep(0.5)  # so long the first one takes, too
    asked = [queue.ask(rows(number), time.monotonic() + 1.2) for number in range(4)]
    host.go.set()
    assert [one.result(5).together for one in asked[:3]] == [3, 3, 3], "1.1 s, and 1.4 s would be too long"
    queue.close()


def test_one_request_too_many_is_turned_away_and_one_that_nobody_waits_for_makes_room() -> None:
    host = Doubler()
    queue = a_queue(host, most_waiting=2)
    held_up(host, queue)
    waiting = [queue.ask(rows(n), soon()) for n in range(2)]
    with pytest.raises(Busy, match="2 requests wait already"):
        queue.ask(rows(3), soon())
    assert waiting[0].cancel()
    host.go.set()
    assert waiting[1].result(5).together == 1
    queue.close()
    with pytest.raises(NotHeld):
        queue.ask(rows(1), soon())


def test_what_waits_is_answered_before_a_module_goes() -> None:
    host = Doubler()
    queue = a_queue(host)
    held_up(host, queue)
    last = queue.ask(rows(1), soon())
    queue.close()
    host.go.set()
    assert last.result(5).together == 1
    queue.join(5)
    assert not queue._thread.is_alive()


class Broken(Doubler):
    def run(self, values: Mapping[str, Array]) -> list[Array]:
        raise ZeroDivisionError(str(values.keys()))


def test_a_bug_of_a_runtime_is_an_answer_by_name_and_the_next_request_is_answered_as_well() -> None:
    queue = a_queue(Broken())
    for _ in range(2):
        with pytest.raises(InferenceFailed, match="ZeroDivisionError"):
            queue.ask(rows(1), soon()).result(5)
    queue.close()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "takes x; got none"),
        ({"z": np.ones((1, 2), np.float32)}, "takes x; got z"),
        ({"x": np.ones((1, 3), np.float32)}, "shape"),
        ({"x": np.ones((0, 2), np.float32)}, "has no values"),
        ({"x": np.ones((1, 2), np.complex64)}, "takes float32"),
    ],
)
def test_inputs_that_do_not_fit_never_reach_the_queue(inputs: dict[str, Array], said: str) -> None:
    queue = a_queue(Doubler())
    with pytest.raises(InvalidInput, match=said):
        queue.ask(inputs, soon())
    queue.close()


# whether requests of a module may run together


class Mixer(Doubler):
    """Its answer for a row depends on the other rows."""

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        return [values["x"] - values["x"].mean(axis=0)]


class Counter(Doubler):
    """It answers with one row, however many came."""

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        return [values["x"].sum(axis=0, keepdims=True)]


@pytest.mark.parametrize(
    ("host", "together"), [(Doubler(), True), (Doubler(free=False), False), (Mixer(), False), (Counter(), False)]
)
def test_requests_run_together_only_where_that_changes_no_answer(host: Any, *, together: bool) -> None:
    assert tried(host)[0] is together


def test_a_module_is_typed_by_the_names_of_its_lengths() -> None:
    signature = signature_of(Doubler())
    assert str(signature.inputs["x"]) == "float32[n, 2]"
    assert str(signature_of(Doubler(free=False)).outputs["y"]) == "float32[1, 2]"


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
