"""Three members of a site on loopback, in this process or in their own, and what they must answer."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import made_sites
import numpy as np
import site_member
from made_sites import WIDTH, MadeMember, expected_find, made_plan
from site_member import SiteMember, member_in_this_process

from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_shared.protocol.site_plan import SitePlan

Array = np.ndarray[Any, Any]
FIRST = {"vision": 1, "text": 1, "head": 1, "small": 1}


def own_port() -> int:
    """Return a port that stays bound until this process ends: nobody else gets it, and who listens may bind it too."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", 0))
    port = int(one.getsockname()[1])
    one.detach()
    return port


def a_member(name: str, folder: Path) -> MadeMember:
    return MadeMember(name, folder / name, f"127.0.0.1:{own_port()}")


def install(plan: SitePlan, members: Sequence[MadeMember], *, slow: int = 0) -> None:
    """Write plan and modules into the folders of its members."""
    for member in members:
        (member.folder / f"{plan.number}.plan").write_bytes(plan.to_bytes())
        for one in plan.modules_of(member.device):
            folder = member.folder / f"{one.model}@{one.release}"
            folder.mkdir(exist_ok=True)
            (folder / "graph.onnx").write_bytes(made_sites.graph(one.model, one.release, slow=slow))


def some_inputs(rows: int = 3, seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal((rows, WIDTH)).astype(np.float32) for name in ("image", "words")}


def check(answer: TaskAnswer, inputs: Mapping[str, Array], releases: Mapping[str, int] = FIRST) -> None:
    """Hold an answer of the task's own graph against the modules in one process."""
    for name, value in expected_find(releases, inputs["image"], inputs["words"]).items():
        np.testing.assert_allclose(answer.outputs[name], value, rtol=1e-4, atol=1e-5)


def check_fallback(answer: TaskAnswer, inputs: Mapping[str, Array]) -> None:
    assert answer.fallback
    assert {hop.device for hop in answer.steps} == {"camera"}
    np.testing.assert_allclose(
        answer.outputs["score"], made_sites.expected("small", 1, list(inputs.values()))["y"], rtol=1e-4, atol=1e-5
    )


@dataclass
class Trio:
    """A camera that is asked, and two that hold what it needs: both vision, the server text; head is the camera's."""

    camera: MadeMember
    box: MadeMember
    server: MadeMember

    @property
    def all(self) -> list[MadeMember]:
        return [self.camera, self.box, self.server]

    def plan(self, number: int = 1, release: int = 1, **more: Any) -> SitePlan:
        modules = {
            "vision": (release, [self.box, self.server]),
            "text": (release, [self.server]),
            "head": (release, [self.camera]),
            "small": (1, [self.camera]),
        }
        return made_plan(self.all, modules, number=number, **more)


@contextlib.contextmanager
def running(member: MadeMember, plan: SitePlan, **changes: Any) -> Iterator[SiteMember]:
    with member_in_this_process(member.folder, member.device, member.address, **changes) as one:
        one.hold(plan)
        yield one


@contextlib.contextmanager
def process(member: MadeMember) -> Iterator[subprocess.Popen[bytes]]:
    """Run a member by itself, until it is ready; whatever was done to it, it is gone in the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}
    command = [sys.executable, site_member.__file__, str(member.folder), str(member.device), member.address[10:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == b"ready\n"
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                started.send_signal(signal.SIGCONT)
            started.kill()


def trio_in(folder: Path) -> Trio:
    return Trio(*(a_member(name, folder) for name in ("camera", "box", "server")))


@contextlib.contextmanager
def all_answering(trio: Trio) -> Iterator[tuple[Trio, SitePlan, SiteMember]]:
    """All three in this process, serving by a plan without a fallback."""
    plan = trio.plan()
    install(plan, trio.all)
    with running(trio.box, plan), running(trio.server, plan), running(trio.camera, plan) as camera:
        camera.serve(1)
        yield trio, plan, camera
