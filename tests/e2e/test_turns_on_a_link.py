"""Plans that move bytes, by real agents and server: in turns on a thin link, by a step where memory is short."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from demo.shell import Shell
from house import House, make_server
from looking import answered, check, look_site, until

from sprat_client.agent.endpoint import Endpoint

pytestmark = pytest.mark.e2e

MODULES = {  # the box is the place for eyes, and has room for one release of it
    "eyes": {"memory": "100MB", "seconds": {"site-box": 0.001, "site-camera": 0.5}},
    "ears": {"memory": "10MB", "seconds": {"site-camera": 0.001}},
}
MEMORY = {"site-camera": ":memory=150MB", "site-box": ":memory=150MB", "site-phone": ""}


@pytest.mark.crash
@pytest.mark.skipif("SPRAT_CRASH_TIMES" not in os.environ, reason="takes a minute: make crash")
def test_on_a_thin_link_one_fetches_after_the_other_and_an_update_without_room_goes_by_a_step(tmp_path: Path) -> None:
    with make_server(tmp_path) as server:
        house = House(tmp_path, server, Shell(server.url, server.admin_token))
        shell, file = house.shell, tmp_path / "site.json"
        file.write_text(json.dumps({"modules": MODULES}))
        words = ("site", "plan", "line-3", "--task", "look", "--at", "look=site-phone", "--file", str(file))
        with look_site(house) as (_, _, phone):
            named = [word for name, more in MEMORY.items() for word in ("--device", f"{name}{more}")]
            shell.one("site", "edit", "line-3", *named, "--uplink", "0.00001", "--hold-s", "100000")
            assert shell.one(*words)["number"] == 1
            shown = shell.one("site", "preview", "line-3/1")
            turns = sorted(
                (one["starts_s"], member["name"]) for member in shown["members"] for one in member["fetches"]
            )
            (first, _), (second, last) = turns
            assert (first, shown["obstacles"]) == (0.0, [])
            assert second > 100, "by the clock alone it would not be its turn while this test runs"
            seen = set[tuple[str, str]]()

            def serves(number: int) -> bool:
                said: dict[str, Any] = shell.one("site", "status", f"line-3/{number}")
                seen.update((one["name"], one["fetching"]) for one in said["members"])
                assert said["state"] not in {"failed", "aborted"}, said
                return bool(said["state"] == "serving")

            shell.one("site", "apply", "line-3/1")
            until(lambda: serves(1))
            assert (last, "waits") in seen
            with Endpoint(phone.folder) as endpoint:
                check(until(lambda: answered(endpoint)), 1)

                house.release("eyes", tiny_models.truth())
                goal = shell.one(*words)
                assert (goal["number"], goal["steps"]) == (3, [2])
                step = {one["model"]: one["hosts"] for one in shell.one("site", "status", "line-3/2")["modules"]}
                assert step == {"eyes": ["site-camera"], "ears": ["site-camera"]}, "the box is freed of release 1"
                shell.one("site", "apply", "line-3/3")
                until(lambda: serves(3))
                check(until(lambda: (a := answered(endpoint)) is not None and a.plan == "line-3/3" and a), 2)
            states = {one["number"]: one["state"] for one in shell.all("site", "history", "line-3")}
            assert states == {1: "retired", 2: "retired", 3: "serving"}
