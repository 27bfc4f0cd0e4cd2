"""The server and devices are killed while a plan is held and switched to: one plan is left, and nothing mixed came."""

import os
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest
import tiny_models
from demo.shell import Shell
from house import House, make_server
from looking import INPUTS, answered, check, look_site, until
from three_members import own_port

from sprat_client.agent.endpoint import Endpoint
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_client.api import SpratClient
from sprat_shared.errors import SpratError

SEEDS = range(int(os.environ.get("SPRAT_CRASH_TIMES", "1")))  # `make crash` has it higher
PLANS = 3
LONGEST_S = 3.0  # from `apply` to a kill: a plan of this site serves about then


class Application(threading.Thread):
    """Asks on one device, again and again, until it is told to stop; keeps what it got."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._stop_asking = folder, threading.Event()
        self.answers: list[TaskAnswer] = []
        self.errors: list[SpratError] = []
        self.bug: Exception | None = None

    def run(self) -> None:
        try:
            with Endpoint(self._folder) as endpoint:
                while not self._stop_asking.wait(0.02):
                    try:
                        self.answers.append(endpoint.infer_task("look", INPUTS))
                    except SpratError as bad:
                        self.errors.append(bad)
        except Exception as bug:  # noqa: BLE001 - the test tells it
            self.bug = bug

    def ended(self) -> None:
        self._stop_asking.set()
        self.join(20)
        assert self.bug is None, self.bug


@pytest.mark.crash
@pytest.mark.e2e
@pytest.mark.parametrize("seed", SEEDS)
def test_kills_of_the_server_and_of_devices_between_two_plans_leave_one(tmp_path: Path, seed: int) -> None:
    draw = Random(f"plans {seed}")
    with make_server(tmp_path, own_port()) as server:
        house = House(tmp_path, server, Shell(server.url, server.admin_token))
        with ExitStack() as stack:
            camera, box, phone = stack.enter_context(look_site(house))
            asking = Application(phone.folder)
            client = stack.enter_context(SpratClient(server.url, server.admin_token))
            released: dict[int, int] = {}
            hosts: dict[int, dict[str, str]] = {}
            for number in range(1, PLANS + 1):
                if number == 2:
                    house.release("eyes", tiny_models.truth())
                first, second = (camera, box) if number % 2 else (box, camera)
                hosts[number] = {"see": first.name, "read": second.name}
                words = ("--hosts", f"eyes={first.name}", "--hosts", f"ears={second.name}")
                made = house.shell.one("site", "plan", "line-3", "--task", "look", *words)
                assert made["number"] == number
                released[number] = 1 if number == 1 else 2
                house.shell.one("site", "apply", f"line-3/{number}")
                if number > 1:
                    victim = (
                        server.process if number == 2 else draw.choice([server.process, camera.process, box.process])
                    )
                    time.sleep(draw.uniform(0, LONGEST_S))
                    victim.kill()
                    time.sleep(draw.uniform(0, 1))
                    server.start() if victim is server.process else victim.start()
                until(lambda number=number: serves(client, number))  # type: ignore[misc]
                with Endpoint(phone.folder) as endpoint:
                    until(
                        lambda number=number: (
                            (one := answered(endpoint)) is not None  # type: ignore[misc]
                            and one.plan == f"line-3/{number}"
                        )
                    )
                if number == 1:
                    asking.start()
            asking.ended()
            states = [one["state"] for one in house.shell.all("site", "history", "line-3")]
            assert states.count("serving") == 1
            assert {one.plan for one in asking.answers} >= {"line-3/1", f"line-3/{PLANS}"}
            for one in asking.answers:
                number = int(one.plan.rpartition("/")[2])
                check(one, released[number])
                assert {hop.step: hop.device for hop in one.steps} == hosts[number]
            assert all(bad.code.startswith(("site.", "agent.")) for bad in asking.errors), asking.errors


def serves(client: SpratClient, number: int) -> bool:
    """Whether a plan serves; it must not have ended otherwise."""
    said = client.sites.show_plan("line-3", number)
    assert said["state"] not in {"failed", "aborted"}, said
    return bool(said["state"] == "serving")
