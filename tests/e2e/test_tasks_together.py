"""A task over modules on two devices, by real agents and the real server: planned, served, updated; one is killed."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tiny_models
from conftest import PATIENCE_S, House
from demo.device import Device
from three_members import own_port

from sprat_client.agent.endpoint import Endpoint
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_shared.errors import TryLater

pytestmark = pytest.mark.e2e
INPUTS = {
    "image": tiny_models.samples(4, 1)["inputs"].astype(np.float32),
    "words": tiny_models.samples(4, 2)["inputs"].astype(np.float32),
}
TASK = """\
look:
  inputs: {image: "float32[n, 16]", words: "float32[n, 16]"}
  steps:
    see: {model: eyes, inputs: {x: image}}
    read: {model: ears, inputs: {x: words}}
  outputs: {seen: see.logits, read: read.logits}
  deadline_s: 3
"""


def check(answer: TaskAnswer, release: int) -> None:
    """Hold an answer against the two networks, computed here; release 2 is near the truth, as its update decodes."""
    worn = tiny_models.worn()
    np.testing.assert_allclose(answer.outputs["read"], tiny_models.logits(worn, INPUTS["words"]), rtol=2e-3, atol=2e-3)
    seen, image = answer.outputs["seen"], INPUTS["image"]
    to_worn, to_truth = (np.abs(seen - tiny_models.logits(one, image)).mean() for one in (worn, tiny_models.truth()))
    assert to_worn < 1e-3 if release == 1 else to_truth < to_worn / 2
    assert {hop.model: hop.release for hop in answer.steps} == {"eyes": release, "ears": 1}


def until(look: Callable[[], Any]) -> Any:
    """Return what is seen, once it is."""
    end = time.monotonic() + PATIENCE_S
    while not (seen := look()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.1)
    return seen


@contextlib.contextmanager
def three_devices(house: House) -> Iterator[tuple[Device, Device, Device]]:
    """Two that hold modules, and one that nobody can reach: it only asks."""
    token = house.shell.one("enrolment-token", "create", "--uses", "3")["token"]
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("site-camera", "site-box", "site-phone"):
            listen = () if name == "site-phone" else ("--site-listen", f"127.0.0.1:{own_port()}")
            options = (*listen, "--trial-s", "0.3")
            device = Device(name, house.folder / name, house.server.url, options=options, link="")
            device.enrol(token)
            made.append(stack.enter_context(device))
        yield made[0], made[1], made[2]


def applied(house: House, number: int) -> None:
    """Make and apply the next plan, and wait until it serves."""
    shell = house.shell
    hosts = ("--hosts", "eyes=site-box", "--hosts", "ears=site-camera")
    plan = shell.one("site", "plan", "line-3", "--task", "look", *hosts)
    assert plan["number"] == number, plan
    shell.one("site", "apply", f"line-3/{number}")

    def look() -> bool:
        said = shell.one("site", "status", f"line-3/{number}")
        assert said["state"] not in {"failed", "aborted"}, said
        return bool(said["state"] == "serving")

    until(look)


def test_two_devices_answer_a_task_together_through_an_update_and_the_death_of_one(house: House) -> None:
    shell = house.shell
    for model in ("eyes", "ears"):
        house.register(model)
    (house.folder / "look.yaml").write_text(TASK)
    shell.all("task", "create", str(house.folder / "look.yaml"))
    with three_devices(house) as (camera, box, phone):
        until(
            lambda: all("site-address" in shell.one("device", "show", one.name)["attributes"] for one in (camera, box))
        )
        shell.one(
            "site", "create", "line-3", *(word for one in (camera, box, phone) for word in ("--device", one.name))
        )
        applied(house, 1)
        with Endpoint(phone.folder) as endpoint:
            answer = until(lambda: answered(endpoint))
            check(answer, 1)
            assert {hop.step: hop.device for hop in answer.steps} == {"see": box.name, "read": camera.name}
        with Endpoint(camera.folder) as endpoint:
            answer = endpoint.infer_task("look", INPUTS)
            check(answer, 1)
            assert {hop.step: hop.device for hop in answer.steps} == {"see": box.name, "read": camera.name}
            house.release("eyes", tiny_models.truth())
            answers: list[TaskAnswer] = []
            stop = threading.Event()

            def ask() -> None:
                with Endpoint(camera.folder) as mine:
                    while not stop.is_set():
                        answers.append(mine.infer_task("look", INPUTS))

            asking = threading.Thread(target=ask)
            asking.start()
            try:
                applied(house, 2)
                until(lambda: answers[-1].plan == "line-3/2")
            finally:
                stop.set()
                asking.join(20)
            assert {answer.plan for answer in answers} == {"line-3/1", "line-3/2"}
            for answer in answers:
                check(answer, int(answer.plan[-1]))
            box.process.kill()
            begun = time.monotonic()
            with pytest.raises(TryLater, match=r"see.*site-box") as bad:
                endpoint.infer_task("look", INPUTS)
            assert time.monotonic() - begun < 3.2
            assert bad.value.code in {"site.unreachable", "site.deadline"}
            box.process.start()
            check(until(lambda: answered(endpoint)), 2)


def answered(endpoint: Endpoint) -> TaskAnswer | None:
    try:
        return endpoint.infer_task("look", INPUTS)
    except TryLater:
        return None
