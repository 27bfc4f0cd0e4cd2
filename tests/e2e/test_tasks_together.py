"""A task over modules on two devices, by real agents and the real server: planned, served, updated; one is killed."""

import os
import threading
import time
from pathlib import Path

import pytest
import tiny_models
from demo.shell import Shell
from house import House, make_server
from looking import INPUTS, answered, check, look_site, until
from three_members import own_port

from sprat_client.agent.endpoint import Endpoint
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_shared.errors import TryLater

pytestmark = pytest.mark.e2e


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
    with look_site(house) as (camera, box, phone):
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


@pytest.mark.crash
@pytest.mark.skipif("SPRAT_CRASH_TIMES" not in os.environ, reason="takes a minute: make crash")
def test_a_site_without_its_server_finds_a_device_that_has_another_address(tmp_path: Path) -> None:
    with make_server(tmp_path) as server:
        house = House(tmp_path, server, Shell(server.url, server.admin_token))
        with look_site(house, "--site-mdns") as (camera, box, _), Endpoint(camera.folder) as endpoint:
            applied(house, 1)
            check(until(lambda: answered(endpoint)), 1)
            server.process.kill()
            box.process.stop()
            with pytest.raises(TryLater, match=r"see.*site-box"):
                endpoint.infer_task("look", INPUTS)
            command = box.process.command
            listen = command.index("--site-listen") + 1
            before, command[listen] = command[listen], f"127.0.0.1:{own_port()}"
            assert command[listen] != before
            box.process.start()
            check(until(lambda: answered(endpoint)), 1)
            box.process.stop()
            command[listen] = before
            box.process.start()
            check(until(lambda: answered(endpoint)), 1)
