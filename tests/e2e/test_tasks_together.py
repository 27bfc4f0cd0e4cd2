"""A task over modules on two devices, by real agents and the real server: planned, served, updated; one is killed."""

import threading
import time

import pytest
import tiny_models
from conftest import House
from looking import INPUTS, answered, check, look_site, until

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
