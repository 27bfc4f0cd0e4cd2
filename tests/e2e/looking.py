"""A site of three devices that look and listen: a task over two models, and what a right answer of it is."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tiny_models
from demo.device import Device
from house import PATIENCE_S, House
from three_members import own_port

from sprat_client.agent.endpoint import Endpoint
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_shared.errors import TryLater

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
def three_devices(house: House, *options: str) -> Iterator[tuple[Device, Device, Device]]:
    """Two that hold modules, and one that nobody can reach: it only asks."""
    token = house.shell.one("enrolment-token", "create", "--uses", "3")["token"]
    with contextlib.ExitStack() as stack:
        made = []
        for name in ("site-camera", "site-box", "site-phone"):
            listen = () if name == "site-phone" else ("--site-listen", f"127.0.0.1:{own_port()}")
            every = (*listen, *options, "--trial-s", "0.3")
            device = Device(name, house.folder / name, house.server.url, options=every, link="")
            device.enrol(token)
            made.append(stack.enter_context(device))
        yield made[0], made[1], made[2]


def answered(endpoint: Endpoint) -> TaskAnswer | None:
    try:
        return endpoint.infer_task("look", INPUTS)
    except TryLater:
        return None


@contextlib.contextmanager
def look_site(house: House, *options: str) -> Iterator[tuple[Device, Device, Device]]:
    """The devices, with options, their site `line-3`, the models and the task: no plan yet."""
    shell = house.shell
    for model in ("eyes", "ears"):
        house.register(model)
    (house.folder / "look.yaml").write_text(TASK)
    shell.all("task", "create", str(house.folder / "look.yaml"))
    with three_devices(house, *options) as devices:
        until(lambda: all("site-address" in shell.one("device", "show", one.name)["attributes"] for one in devices[:2]))
        shell.one("site", "create", "line-3", *(word for one in devices for word in ("--device", one.name)))
        yield devices
