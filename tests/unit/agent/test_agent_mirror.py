"""How a second release is compared on the requests that another one serves: never in their way."""

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from sprat_client.agent.mirror import Mirror
from sprat_client.agent.releases import Manifest, Slot
from sprat_client.agent.serve import Serving
from sprat_client.runtime.ports import Array, InferenceFailed, PortSpec
from sprat_shared.wire.tensors import TensorTable

CLASSES = 3
Answering = Callable[[Array], Array]


class Model:
    """Answers numbers with logits, by a function of them."""

    inputs = (PortSpec("x", np.dtype(np.float32), (None, 1)),)
    outputs = (PortSpec("logits", np.dtype(np.float32), (None, CLASSES)),)

    def __init__(self, answer: Answering) -> None:
        self._answer = answer

    def run(self, values: Mapping[str, Array]) -> list[Array]:
        return [self._answer(values["x"])]


def logits_of(x: Array, sure: float = 5.0, shift: int = 0) -> Array:
    return (sure * np.eye(CLASSES)[(x[:, 0].astype(int) + shift) % CLASSES]).astype(np.float32)


OLD = Model(logits_of)


def serving_of(model: Model) -> Serving:
    digest = "sha256:" + "0" * 64
    manifest = Manifest(
        model="m", release=1, release_id=digest, graph=digest, weights=digest, table=TensorTable([]), sha256s=()
    )
    return Serving(Slot(release=1, release_id=digest, weights=digest), manifest, model, lambda: digest)


def wait_until(said: Callable[[], bool], timeout_s: float = 10.0) -> None:
    end = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < end
        time.sleep(0.002)


def ask(serving: Serving, numbers: range, mirror: Mirror | None = None) -> None:
    for number in numbers:
        serving.answer(np.full((2, 1), number, np.float32))
        if mirror is not None:
            before = number - numbers.start + 1
            wait_until(lambda: mirror.seen().requests >= before)  # noqa: B023  # asked at once


@pytest.mark.parametrize("on_trial", [False, True])
def test_agreement_confidence_and_times_are_of_the_same_requests_whichever_release_serves(*, on_trial: bool) -> None:
    def other(x: Array) -> Array:
        time.sleep(0.002)
        return np.where(x < 30, logits_of(x, sure=2.0), logits_of(x, sure=2.0, shift=1))

    new = Model(other)
    serving = serving_of(new if on_trial else OLD)
    mirror = serving.mirror = Mirror(OLD, new, served=serving.host)
    ask(serving, range(40), mirror)
    mirror.close()
    seen = mirror.seen()
    assert (seen.requests, seen.compared, seen.agreed, seen.failed, seen.dropped) == (40, 80, 60, 0, 0)
    assert seen.old_confidence == pytest.approx(np.exp(5) / (np.exp(5) + 2), rel=1e-5)
    assert seen.new_confidence == pytest.approx(np.exp(2) / (np.exp(2) + 2), rel=1e-5)
    assert len(seen.old_times) == len(seen.new_times) == 40
    assert min(seen.new_times) > 0.002
    assert np.median(seen.old_times) < 0.002


def test_a_release_that_fails_alone_is_counted_and_what_the_applications_get_is_the_old_releases_answer() -> None:
    def failing(x: Array) -> Array:
        if x[0, 0] % 2:
            raise InferenceFailed("no such kernel")
        return np.full((len(x), CLASSES), np.nan, np.float32)

    serving = serving_of(OLD)
    mirror = serving.mirror = Mirror(OLD, Model(failing), served=OLD)
    ask(serving, range(10), mirror)
    mirror.close()
    seen = mirror.seen()
    assert (seen.requests, seen.failed, seen.compared) == (10, 10, 0)
    assert "no such kernel" in seen.last_failure
    assert (serving.answered, serving.failed) == (10, 0)


def test_requests_are_not_held_up_by_a_slow_release_and_what_cannot_be_compared_is_counted() -> None:
    go_on = threading.Event()

    def hanging(x: Array) -> Array:
        go_on.wait()
        return logits_of(x)

    serving = serving_of(OLD)
    mirror = serving.mirror = Mirror(OLD, Model(hanging), served=OLD)
    begun = time.monotonic()
    ask(serving, range(200))
    assert time.monotonic() - begun < 2.0
    assert serving.answered == 200
    dropped = mirror.seen().dropped
    assert 185 <= dropped <= 195, "a few wait in the queue, and one is under way"
    go_on.set()
    wait_until(lambda: mirror.seen().requests == 200 - dropped)
    mirror.close()


def test_inputs_and_answers_are_copied_because_applications_use_them_again() -> None:
    serving, frame = serving_of(OLD), np.zeros((2, 1), np.float32)
    begin = threading.Event()

    def late(x: Array) -> Array:
        begin.wait()
        return logits_of(x)

    mirror = serving.mirror = Mirror(OLD, Model(late), served=OLD)
    answer = serving.answer(frame)
    frame[:] = 1
    answer.outputs["logits"][:] = 0
    begin.set()
    wait_until(lambda: mirror.seen().requests == 1)
    mirror.close()
    assert mirror.seen().agreed == 2


def test_a_mirror_compares_no_more_than_it_is_told_and_nothing_after_its_end() -> None:
    serving = serving_of(OLD)
    mirror = serving.mirror = Mirror(OLD, OLD, served=OLD, most=5)
    ask(serving, range(5), mirror)
    ask(serving, range(20))
    mirror.close()
    ask(serving, range(20))
    assert (mirror.seen().requests, mirror.seen().dropped) == (5, 0)


def test_models_that_name_no_classes_are_compared_by_errors_and_times_alone() -> None:
    flat = Model(lambda x: x[:, 0])
    serving = serving_of(flat)
    mirror = serving.mirror = Mirror(flat, flat, served=flat)
    ask(serving, range(5), mirror)
    mirror.close()
    seen = mirror.seen()
    assert (seen.requests, seen.compared, len(seen.old_times)) == (5, 0, 5)
