"""An agent and the plans of its site: taken as they are signed, kept over restarts, reported, and let go."""

import errno
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_onnx
from carried import bundle_for
from one_device import MODEL, in_a_thread, one_device
from site_member import member_in_this_process
from site_of_two import BOTH, SITE, SiteOfTwo, ask, check, serving, until
from three_members import own_port

from sprat_client.agent.bundle_file import BundleFile
from sprat_client.agent.commands import main
from sprat_client.agent.settings import SiteSettings
from sprat_client.agent.site.failures import MdnsMissing, NoSuchTask, PlanExpired
from sprat_client.agent.status import read_status
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
from sprat_client.runtime.onnxruntime_model import OnnxModel
from sprat_client.runtime.ports import ModelNotLoadable
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.site_report import PlanState
from sprat_shared.trust.site_targets import Phase


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteOfTwo]:
    with one_device(tmp_path) as device:
        yield SiteOfTwo(device, tmp_path)


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


def test_bundles_bring_a_device_without_a_network_to_serve_by_a_plan(site: SiteOfTwo, tmp_path: Path) -> None:
    (device,) = site.server.devices.values()
    with site.boxed() as box:
        plan = site.plan()
        box.hold(plan)
        for phase, told in ((Phase.HOLD, "ready"), (Phase.SERVE, "serving")):
            site.sign((plan, phase))
            file = tmp_path / "by-hand.bundle"
            file.write_bytes(bundle_for(site.server, device))
            with BundleFile(file) as bundle, site.device.agent(offline=True) as agent:
                assert agent.install(bundle) == 0
            with site.running(offline=True) as agent:
                until(lambda agent=agent, told=told: agent._site.status()[0].told == told)
                if phase is Phase.SERVE:
                    check(site, ask(agent))
    assert site.told() == [], "its reports wait for a network"


def test_a_disk_that_is_full_ends_no_task_and_the_report_comes_later(
    site: SiteOfTwo, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.boxed() as box, site.running() as agent:
        plan = site.plan()
        box.hold(plan)
        site.sign((plan, Phase.HOLD))
        site.wait_until_told(1, PlanState.READY)
        full = OSError(errno.ENOSPC, "No space left on device")
        say, tried = agent._shop.journal.say, []

        def fail(report: Any) -> None:
            tried.append(report)
            raise full

        monkeypatch.setattr(agent._shop.journal, "say", fail)
        site.sign((plan, Phase.SERVE))
        until(lambda: tried)
        check(site, ask(agent))
        monkeypatch.setattr(agent._shop.journal, "say", say)
        site.wait_until_told(1, PlanState.SERVING)


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


def test_an_agent_with_mdns_finds_a_device_that_is_not_where_its_plan_says(site: SiteOfTwo) -> None:
    with site.boxed():
        plan = site.plan()
    listen = f"127.0.0.1:{own_port()}"
    with (
        member_in_this_process(site.box.folder, site.box.device, listen, mdns=True) as box,
        site.running(site=replace(SITE, mdns=True)) as agent,
    ):
        box.hold(plan)
        assert box.address != plan.member[site.box.device].address
        site.sign((plan, Phase.HOLD))
        site.wait_until_told(1, PlanState.READY)
        site.sign((plan, Phase.SERVE))
        site.wait_until_told(1, PlanState.SERVING)
        check(site, ask(agent))
        hints = agent._site._running._hints
        assert hints._bound == (*agent._site.where().split(":")[:1], int(agent._site.where().split(":")[1]))
        until(lambda: hints._info is not None)
    assert not hints._thread.is_alive()


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
        assert facts.attributes["site-address"] == agent._site.where()
        host, port = agent._site.where().split(":")
        with pytest.raises(httpx.ConnectError):  # bound, and nobody listens before there is a plan
            httpx.get(f"http://{host}:{port}")


def test_an_agent_that_shall_look_by_mdns_says_at_its_start_what_is_not_installed(
    site: SiteOfTwo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    assert main(["run", "--dir", str(site.device.folder), "--site-mdns"]) == 65
    assert "pip install 'sprat[mdns]'" in capsys.readouterr().err
    with pytest.raises(MdnsMissing), site.device.agent(site=replace(SITE, mdns=True)):
        pass
    with site.device.agent(site=SITE):
        pass


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
