"""Requests that are kept for a comparison later: by chance, within bounds, by copy, and never in anybody's way."""

import threading
from random import Random
from typing import Any

import numpy as np
import pytest

from sprat_client.agent.sampled import Samples
from sprat_client.agent.settings import GuardSettings
from sprat_client.runtime.ports import Array


class Draws(Random):
    """Says what it is told to, again and again."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self._numbers, self._at = numbers, -1

    def random(self) -> float:
        self._at += 1
        return self._numbers[self._at % len(self._numbers)]


def samples_of(came: Any = lambda: None, draw: Random | None = None, **settings: Any) -> Samples:
    return Samples(GuardSettings(**{"every": 1, **settings}), draw or Random(0), came)


def request(value: float = 0.0, size: int = 10) -> tuple[dict[str, Array], list[Array]]:
    """Return a request of 8 bytes a value, half of them its answer's."""
    return {"x": np.full((1, size), value, np.float32)}, [np.full((1, size), value, np.float32)]


def test_requests_are_drawn_with_the_chance_that_is_set() -> None:
    samples = samples_of(draw=Draws(0.0, 0.249, 0.25, 0.9), every=4)
    for number in range(40):
        samples.offer(*request(number))
    kept = [samples.take() for _ in range(20)]
    assert [one.inputs["x"][0, 0] for one in kept if one] == [n for n in range(40) if n % 4 < 2]
    assert samples.take() is None
    drawn = samples_of(draw=Random(5), every=20, most_requests=10_000)
    for _ in range(10_000):
        drawn.offer(*request())
    assert len(drawn) == pytest.approx(500, abs=70)
    assert drawn.dropped == 0, "what is not drawn is not dropped"


def test_there_are_never_more_than_so_many_requests_and_bytes_and_what_is_dropped_is_counted() -> None:
    samples = samples_of(most_requests=3)
    for number in range(5):
        samples.offer(*request(number))
    assert (len(samples), samples.dropped) == (3, 2)
    assert (first := samples.take()) is not None
    assert first.inputs["x"][0, 0] == 0
    samples.offer(*request(9))
    assert (len(samples), samples.dropped) == (3, 2)

    samples = samples_of(most_bytes=250)
    samples.offer(*request(size=100))  # 800 bytes: never
    for number in range(5):
        samples.offer(*request(number))  # 80 bytes each
    assert (len(samples), samples.dropped) == (3, 3)
    while samples.take():
        pass
    samples.offer(*request())
    assert len(samples) == 1


def test_a_request_is_kept_by_copy_because_applications_use_their_arrays_again() -> None:
    samples = samples_of()
    inputs, outputs = request(1.0)
    samples.offer(inputs, outputs)
    inputs["x"][:] = outputs[0][:] = 7
    kept = samples.take()
    assert kept is not None
    assert kept.inputs["x"].tolist() == kept.outputs[0].tolist() == [[1.0] * 10]


def test_without_memory_for_a_copy_a_request_is_dropped_and_does_not_fail() -> None:
    class TooLarge:
        nbytes = 8

        def copy(self) -> None:
            raise MemoryError

    samples = samples_of(most_requests=1)
    too_large: Any = TooLarge()
    for _ in range(3):
        samples.offer({"x": too_large}, [])
    assert (len(samples), samples.dropped) == (0, 3)
    samples.offer(*request())
    assert len(samples) == 1, "its room was given back"


def test_the_bounds_hold_whichever_threads_offer() -> None:
    samples = samples_of(most_requests=50)
    threads = [threading.Thread(target=lambda: [samples.offer(*request()) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(samples), samples.dropped) == (50, 3950)


def test_whoever_compares_is_told_and_a_closed_queue_keeps_nothing() -> None:
    told: list[int] = []
    samples = samples_of(lambda: told.append(1))
    assert samples.oldest is None
    samples.offer(*request())
    assert told == [1]
    assert samples.oldest is not None
    samples.close()
    samples.offer(*request())
    assert (len(samples), samples.take(), samples.oldest, told) == (0, None, None, [1])
