"""A site of two: the device of `one_device`, with all of its agent, and a box that holds another module."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import made_sites
import numpy as np
import tiny_onnx
from made_sites import WIDTH, MadeMember, made_plan
from one_device import INPUTS, MODEL, OneDevice, in_a_thread
from site_member import SiteMember, member_in_this_process

from sprat_client.agent.identity import load_key
from sprat_client.agent.loop import Agent
from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_shared.protocol.site_plan import SitePlan
from sprat_shared.protocol.site_report import PlanState, SiteReport
from sprat_shared.trust.site_targets import Phase, SignedPlan
from sprat_shared.wire.tensors import release_id

BOTH = {  # the device's own model, and one that another device holds
    "inputs": {"image": f"float32[n, {tiny_onnx.FEATURES}]", "words": f"float32[m, {WIDTH}]"},
    "steps": {
        "own": {"model": MODEL, "inputs": {"inputs": "image"}},
        "theirs": {"model": "vision", "inputs": {"x": "words"}},
    },
    "outputs": {"logits": "own.logits", "y": "theirs.y"},
}
WORDS = np.ones((2, WIDTH), np.float32)
SITE = SiteSettings(listen="127.0.0.1:0", heartbeat_s=0.05)


class SiteOfTwo:
    """The device of `one_device`, and a box that holds `vision`."""

    def __init__(self, device: OneDevice, folder: Path) -> None:
        self.device = device
        (signed,) = device.server.devices.values()
        self.own = MadeMember("gate-7", folder / "unused", "127.0.0.1:1", device=signed.id, key=load_key(device.folder))
        self.box = MadeMember("box", folder / "box", "127.0.0.1:1")
        made = self.box.folder / "vision@1"
        made.mkdir()
        (made / "graph.onnx").write_bytes(made_sites.graph("vision", 1))

    @property
    def server(self) -> Any:
        return self.device.server

    def plan(self, number: int = 1, release: int = 1, **more: Any) -> SitePlan:
        held = self.server.models[MODEL][release]
        ids = {MODEL: release_id(graph_digest(held.graph), held.digest), "vision": f"sha256:{'5' * 64}"}
        modules = {MODEL: (release, [self.own]), "vision": (1, [self.box])}
        graph = more.pop("graph", BOTH)
        return made_plan([self.own, self.box], modules, number=number, release_ids=ids, graph=graph, **more)

    @contextmanager
    def boxed(self) -> Iterator[SiteMember]:
        with member_in_this_process(self.box.folder, self.box.device, "127.0.0.1:0") as box:
            self.box.address = box.address
            yield box

    @contextmanager
    def running(self, **changes: Any) -> Iterator[Agent]:
        with in_a_thread(self.device.agent(**({"site": SITE} | changes))) as agent:
            yield agent

    def sign(self, *plans: tuple[SitePlan, Phase]) -> None:
        """Sign plans in the place of those before."""
        server = self.device.server
        with server.lock:
            (device,) = server.devices.values()
            device.plans = []
            for plan, phase in plans:
                signed = SignedPlan(device=device.id, site=plan.site, number=plan.number, phase=phase)
                data = plan.to_bytes()
                device.plans.append((signed, data))
                server.blobs[sha256(data).hexdigest()] = data

    def wait_until_told(self, plan: int, state: PlanState, timeout_s: float = 20.0) -> SiteReport:
        """Return the device's report that it is so far with a plan, once it is there."""
        server = self.device.server
        (device,) = server.devices.values()

        def found() -> SiteReport | None:
            return next((one for one in device.told if (one.plan, one.state) == (plan, state)), None)

        with server.reported:
            server.reported.wait_for(lambda: found() is not None, timeout_s)
            report = found()
        assert report is not None, f"plan {plan} is not {state} in {timeout_s} s"
        return report

    def told(self) -> list[tuple[int, PlanState]]:
        (one,) = self.server.devices.values()
        return [(report.plan, report.state) for report in one.told]


def graph_digest(graph: bytes) -> str:
    return f"sha256:{sha256(graph).hexdigest()}"


def until(found: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return what is found, once it is."""
    end = time.monotonic() + timeout_s
    while not (value := found()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.01)
    return value


def ask(agent: Agent) -> TaskAnswer:
    return agent.infer_task("find", {"image": INPUTS, "words": WORDS})


def check(site: SiteOfTwo, answer: TaskAnswer, release: int = 1) -> None:
    weights = site.server.models[MODEL][release].weights
    np.testing.assert_allclose(answer.outputs["logits"], tiny_onnx.logits(weights, INPUTS), rtol=1e-4)
    np.testing.assert_allclose(answer.outputs["y"], made_sites.expected("vision", 1, [WORDS])["y"], rtol=1e-4)
    assert {hop.step: hop.device for hop in answer.steps} == {"own": "gate-7", "theirs": "box"}


def serving(site: SiteOfTwo, plan: SitePlan) -> None:
    site.sign((plan, Phase.HOLD))
    site.wait_until_told(plan.number, PlanState.READY)
    site.sign((plan, Phase.SERVE))
    site.wait_until_told(plan.number, PlanState.SERVING)
