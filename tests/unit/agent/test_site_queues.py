"""The queue of a module: what runs together, what is begun in time, and what is turned away."""

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sprat_client.agent.site.failures import Busy, NotHeld, TooLate
from sprat_client.agent.site.module_queue import ModuleQueue
from sprat_client.agent.site.modules import signature_of, tried
from sprat_client.agent.site.pace import Pace
from sprat_client.runtime.ports import InferenceFailed, PortSpec
from sprat_shared.errors import InvalidInput

Array = np.ndarray[Any, Any]


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
