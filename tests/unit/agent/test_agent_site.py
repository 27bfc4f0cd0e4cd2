"""An agent and the plans of its site: taken as they are signed, kept over restarts, reported, and let go."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import made_sites
import numpy as np
import pytest
import tiny_onnx
from made_sites import WIDTH, MadeMember, made_plan
from one_device import INPUTS, MODEL, OneDevice, in_a_thread, one_device
from site_member import SiteMember, member_in_this_process

from sprat_client.agent.commands import main
from sprat_client.agent.endpoint import Endpoint
from sprat_client.agent.identity import load_key
from sprat_client.agent.loop import Agent
from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site.failures import NoSuchTask, PlanExpired
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_client.agent.status import read_status
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_client.runtime.onnxruntime_model import OnnxModel
from sprat_client.runtime.ports import ModelNotLoadable
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput, NotFound
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
        with in_a_thread(self.device.agent(site=SITE, **changes)) as agent:
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


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteOfTwo]:
    with one_device(tmp_path) as device:
        yield SiteOfTwo(device, tmp_path)


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


def test_a_plan_is_held_reported_served_by_and_let_go_as_it_is_signed(site: SiteOfTwo) -> None:
    with site.boxed() as box, site.running() as agent:
        plan = site.plan()
        site.sign((plan, Phase.HOLD))
        until(lambda: agent._site.status() and agent._site.status()[0].waiting)
        assert "box" in agent._site.status()[0].waiting, "it waits for who holds vision"
        assert site.told() == []
        box.hold(plan)
        site.wait_until_told(1, PlanState.READY)
        with pytest.raises(NoSuchTask):
            ask(agent)
        site.sign((plan, Phase.SERVE))
        site.wait_until_told(1, PlanState.SERVING)
        check(site, ask(agent))
        (held,) = agent._site._running.router.serving
        assert held.modules[MODEL].host is agent._shop.servings.of(MODEL).host, "it is loaded once"
        site.sign()
        until(lambda: not agent._site.tasks())
        with pytest.raises(NoSuchTask):
            ask(agent)
        assert held.over
        until(lambda: not agent._site._running.retiring)
        assert list((site.device.folder / "site").glob("*.plan")) == []
    assert site.told() == [(1, PlanState.READY), (1, PlanState.SERVING)]


def serving(site: SiteOfTwo, plan: SitePlan) -> None:
    site.sign((plan, Phase.HOLD))
    site.wait_until_told(plan.number, PlanState.READY)
    site.sign((plan, Phase.SERVE))
    site.wait_until_told(plan.number, PlanState.SERVING)


@pytest.mark.parametrize("inline", [True, False])
def test_after_a_restart_without_a_network_the_device_serves_by_the_plan_that_it_had(
    site: SiteOfTwo, *, inline: bool
) -> None:
    site.server.inline = inline
    with site.boxed() as box:
        plan = site.plan()
        box.hold(plan)
        with site.running():
            serving(site, plan)
        with site.running(offline=True) as agent:
            check(site, until(lambda: agent._site.tasks() and ask(agent)))
        (file,) = (site.device.folder / "site").glob("*.plan")
        file.write_bytes(b"damaged")
        with site.running() as agent:
            check(site, until(lambda: agent._site.tasks() and ask(agent)))
        (site.device.folder / "site/plans.json").write_text("{")
        with site.running() as agent:
            check(site, until(lambda: agent._site.tasks() and ask(agent)))


def folders_of(site: SiteOfTwo) -> int:
    return len(list((site.device.folder / "models" / MODEL / "releases").iterdir()))


def test_a_plan_waits_for_a_release_that_is_fetched_ahead_and_keeps_it_while_it_is_signed(site: SiteOfTwo) -> None:
    weights = site.server.models[MODEL][1].weights
    for number in (2, 3, 4):
        site.server.add_release(MODEL, tiny_onnx.nudged(weights, number, 0.1), base=1)
    with site.boxed() as box, site.running() as agent:
        old, new = site.plan(1, 1), site.plan(2, 2)
        box.hold(old)
        box.hold(new)
        serving(site, old)
        site.sign((old, Phase.SERVE), (new, Phase.HOLD))
        until(lambda: any(f"{MODEL}@2 is not on this device" in one.waiting for one in agent._site.status()))
        counter = site.server.assign(MODEL, 2)
        site.server.says = lambda assigned: replace(assigned, prefetch=assigned.assignment == counter)
        site.wait_until_told(2, PlanState.READY)
        check(site, ask(agent), 1)
        site.sign((old, Phase.DRAIN), (new, Phase.SERVE))
        site.wait_until_told(2, PlanState.SERVING)
        answer = ask(agent)
        check(site, answer, 2)
        assert answer.plan == "line-3/2"
        site.sign((new, Phase.SERVE))
        for number in (2, 3, 4):  # the slots go on to others
            site.server.wait_for_report(site.server.assign(MODEL, number))
            check(site, ask(agent), 2)
        until(lambda: folders_of(site) == 3)
        assert agent._shop.servings.of(MODEL).slot.release == 4
        site.sign()
        until(lambda: folders_of(site) == 2)


REFUSED = [
    (
        {"graph": {**BOTH, "inputs": {**BOTH["inputs"], "image": "float32[n, 5]"}}},
        "task.invalid",
        r"edge image -> own.inputs: float32\[n, 5\] comes",
    ),
    ({"expires_in_s": -10.0}, "site.plan-expired", "ended at"),
]


@pytest.mark.parametrize(("change", "code", "said"), REFUSED)
def test_a_plan_that_this_device_cannot_serve_by_is_refused_once_and_the_old_one_serves_on(
    site: SiteOfTwo, change: dict[str, Any], code: str, said: str
) -> None:
    with site.boxed() as box, site.running() as agent:
        good, bad = site.plan(1), site.plan(2, **change)
        box.hold(good)
        box.hold(bad)
        serving(site, good)
        site.sign((good, Phase.SERVE), (bad, Phase.HOLD))
        report = site.wait_until_told(2, PlanState.REFUSED)
        assert report.error_code == code
        assert re.search(said, report.error_detail or "")
        time.sleep(0.2)
        check(site, ask(agent))
        (wrong,) = (one for one in agent._applications.health()[1]["wrong"] if "line-3/2" in one["detail"])
        assert wrong["code"] == code
        assert agent._applications.health()[0], "what should be served is"
        assert site.told().count((2, PlanState.REFUSED)) == 1


class Picky(OnnxRuntime):
    """Loads release 1 alone."""

    def load(self, folder: Path) -> OnnxModel:
        if json.loads((folder / "manifest.json").read_bytes())["release"] != 1:
            raise ModelNotLoadable(f"{folder.name}: not this one")
        return super().load(folder)


@pytest.mark.parametrize("code", ["runtime.not-loadable", "memory.short"])
def test_a_plan_whose_module_cannot_be_loaded_here_is_refused_and_the_old_one_serves_on(
    site: SiteOfTwo, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.server.add_release(MODEL, tiny_onnx.nudged(site.server.models[MODEL][1].weights, 2, 0.1), base=1)
    if code == "memory.short":
        monkeypatch.setattr("sprat_client.agent.room.available_memory", lambda: 1000)
    runtime = Picky() if code == "runtime.not-loadable" else None
    with site.boxed() as box, site.running(runtime=runtime) as agent:
        old, new = site.plan(1), site.plan(2, 2)
        box.hold(old)
        box.hold(new)
        serving(site, old)
        site.server.says = lambda assigned: replace(assigned, prefetch=assigned.release == 2)
        if code == "memory.short":
            monkeypatch.setattr("sprat_client.agent.steps.require_memory", lambda *_: None)  # the rebuild has some
        site.server.assign(MODEL, 2)
        site.sign((old, Phase.SERVE), (new, Phase.HOLD))
        assert site.wait_until_told(2, PlanState.REFUSED).error_code == code
        check(site, ask(agent), 1)
        assert MODEL in agent._site._running.of(agent._site._files.records[0].sha256).modules


def test_a_plan_over_another_key_or_of_another_name_is_refused(site: SiteOfTwo) -> None:
    other = replace(site.own, folder=site.box.folder / "other", key=site.box.key)
    site.own, own = other, site.own
    wrong_key = site.plan(1)
    site.own = own
    site.sign((wrong_key, Phase.HOLD))
    with site.running():
        assert site.wait_until_told(1, PlanState.REFUSED).error_code == "site.plan-refused"


def test_a_device_that_others_cannot_reach_refuses_a_plan_by_which_they_should(site: SiteOfTwo) -> None:
    site.sign((site.plan(), Phase.HOLD))
    with in_a_thread(site.device.agent()) as agent:
        report = site.wait_until_told(1, PlanState.REFUSED)
        said = read_status(site.device.folder)["site"]["line-3/1"]
        assert (said["phase"], said["told"]) == ("hold", "refused")
        assert "--site-listen" in said["refused"]
        assert report.error_code == "site.no-listener"
        assert agent._site._running is None, "nothing is loaded for it"


def test_a_plan_that_is_signed_for_another_device_is_foreign(site: SiteOfTwo) -> None:
    (device,) = site.server.devices.values()
    site.sign((site.plan(), Phase.HOLD))
    with site.device.agent(site=SITE) as agent:
        agent.turn()
        assert [one.plan for one in agent._site.status()] == ["line-3/1"]
        site.sign((site.plan(2), Phase.HOLD))
        signed, data = device.plans[0]
        device.plans = [(replace(signed, device=site.box.device), data)]
        agent.orders.retried = True  # polls at once
        agent.turn()
        assert [one.plan for one in agent._site.status()] == ["line-3/1"], "what is held is not given up for it"
        assert agent._shop.journal.trust.trouble is not None
        assert agent._shop.journal.trust.trouble.code == "trust.other-device"


def test_a_plan_that_ends_is_served_by_no_more_and_that_is_said(site: SiteOfTwo) -> None:
    with site.boxed() as box, site.running() as agent:
        plan = site.plan(expires_in_s=4.0)
        box.hold(plan)
        serving(site, plan)
        check(site, ask(agent))

        def over() -> bool:
            try:
                ask(agent)
            except PlanExpired:
                return True
            return False

        until(over)
        well, said = agent._applications.health()
        assert not well
        assert "site.plan-expired" in {one["code"] for one in said["wrong"]}


def test_where_others_reach_a_device_is_among_its_attributes(site: SiteOfTwo) -> None:
    with site.running() as agent:
        (device,) = site.server.devices.values()
        facts = until(lambda: [one for one in device.facts if "site-address" in one.attributes])[-1]
        assert facts.attributes["site-address"] == agent._site.address
        host, port = agent._site.address.split(":")
        with pytest.raises(httpx.ConnectError):  # bound, and nobody listens before there is a plan
            httpx.get(f"http://{host}:{port}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"listen": "0.0.0.0:0"}, "say with --site-address"),
        ({"listen": "127.0.0.1"}, "is no address"),
        ({"listen": "127.0.0.1:0", "address": "here"}, "is no address"),
    ],
)
def test_an_address_that_others_cannot_use_is_refused_at_the_start(
    site: SiteOfTwo, changes: dict[str, str], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said), site.device.agent(site=SiteSettings(**changes)):
        pass


# the local endpoint


@pytest.fixture
def served(site: SiteOfTwo) -> Iterator[tuple[SiteOfTwo, str, SiteMember]]:
    with site.boxed() as box, site.running(port=0) as agent:
        plan = site.plan()
        box.hold(plan)
        serving(site, plan)
        yield site, agent.url, box


def kserve(**inputs: Any) -> dict[str, Any]:
    entries = [
        {"name": name, "shape": list(value.shape), "datatype": "FP32", "data": value.ravel().tolist()}
        for name, value in inputs.items()
    ]
    return {"inputs": entries}


def test_applications_ask_for_tasks_and_models_over_loopback(
    served: tuple[SiteOfTwo, str, SiteMember], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, url, _ = served
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    with Endpoint(site.device.folder) as endpoint:
        check(site, endpoint.infer_task("find", {"image": INPUTS, "words": WORDS}, deadline_s=3.0, trace=trace))
        (task,) = endpoint.tasks()
        assert (task["name"], task["plan"], task["fallback"]) == ("find", "line-3/1", False)
        with pytest.raises(NotFound, match="served: find"):
            endpoint.infer_task("lose", {"image": INPUTS})
        with pytest.raises(InvalidInput, match="the task takes image"):
            endpoint.infer_task("find", {"image": INPUTS})
    with httpx.Client(base_url=url) as client:
        asked = kserve(image=INPUTS, words=WORDS)
        said = client.post("/v2/tasks/find/infer", json=asked, headers={"Sprat-Request-Id": "r-7"}).json()
        assert (said["model_name"], said["model_version"], said["id"]) == ("find", "line-3/1", "r-7")
        outputs = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in said["outputs"]}
        check(site, TaskAnswer.of(said["parameters"], outputs))
        late = client.post("/v2/tasks/find/infer", json=asked, headers={"Sprat-Deadline-Ms": "soon"})
        assert (late.status_code, late.json()["code"]) == (400, "input.invalid")
        # a model, as existing clients ask
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        described = client.get(f"/v2/models/{MODEL}").json()
        assert (described["versions"], described["inputs"][0]["datatype"]) == (["1"], "FP32")
        assert described["inputs"][0]["shape"] == [-1, tiny_onnx.FEATURES]
        said = client.post(f"/v2/models/{MODEL}/infer", json=kserve(inputs=INPUTS)).json()
        logits = np.array(said["outputs"][0]["data"]).reshape(said["outputs"][0]["shape"])
        body = encode_tensors({"inputs": INPUTS})
        kind = {"Content-Type": "application/vnd.safetensors"}
        binary = client.post(f"/v2/models/{MODEL}/infer", content=body, headers=kind)
        for found in (logits, decode_tensors(binary.content)["logits"]):
            weights = site.server.models[MODEL][1].weights
            np.testing.assert_allclose(found, tiny_onnx.logits(weights, INPUTS), rtol=1e-4)
        metrics = client.get("/metrics").text
        assert "# TYPE sprat_agent_tasks_total counter" in metrics
        assert 'sprat_agent_tasks_total{task="find",outcome="answered"} 2' in metrics
        assert 'sprat_agent_task_steps_total{task="find",step="theirs",route="peer"} 2' in metrics
        assert 'sprat_agent_site_circuit{site="line-3",device="box"} 0' in metrics
        assert client.get("/healthz").json()["site"][0]["phase"] == "serve"
    # the command
    for name, value in (("image", INPUTS), ("words", WORDS)):
        np.save(tmp_path / f"{name}.npy", value)
    named = [part for name in ("image", "words") for part in ("--input", f"{name}={tmp_path}/{name}.npy")]
    assert main(["infer", "find", "--dir", str(site.device.folder), *named]) == 0
    printed = json.loads(capsys.readouterr().out)
    check(
        site,
        TaskAnswer.of(
            {k: v for k, v in printed.items() if k != "outputs"},
            {k: np.array(v) for k, v in printed["outputs"].items()},
        ),
    )
    assert main(["infer", "--dir", str(site.device.folder)]) == 65


def test_a_device_that_does_not_answer_is_named_in_healthz(served: tuple[SiteOfTwo, str, SiteMember]) -> None:
    _, url, box = served
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
    assert box.listener is not None
    box.listener.close()
    box.listener = None
    said = until(lambda: (found := httpx.get(f"{url}/healthz").json())["status"] == "degraded" and found)
    assert [(one["code"], one["detail"][:4]) for one in said["wrong"]] == [("site.unreachable", "box:")]
