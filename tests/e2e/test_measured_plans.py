"""What devices measure as they serve, by real agents and the real server: shown, and a plan is placed by it alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from demo.shell import Shell
from house import House, make_server
from looking import INPUTS, answered, look_site, until
from three_members import own_port

from sprat_client.agent.endpoint import Endpoint

pytestmark = pytest.mark.e2e


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A server of its own: sites and models of other tests are not in it."""
    with make_server(tmp_path, own_port()) as server:
        yield House(tmp_path, server, Shell(server.url, server.admin_token))


def test_a_plan_by_hand_is_measured_and_the_next_one_is_placed_by_that(house: House) -> None:
    shell = house.shell
    with look_site(house) as (camera, box, phone):
        house.release("ears", tiny_models.truth())  # else both are the same module, and run in one go
        at = ("--at", f"look={phone.name}")
        refused = shell.run("site", "plan", "line-3", "--task", "look", *at)
        assert refused.returncode != 0
        assert "nothing is known of how long a run of ears takes on site-box" in refused.stderr
        both = f"{box.name},{camera.name}"
        serve(house, "--hosts", f"eyes={both}", "--hosts", f"ears={both}")
        with Endpoint(camera.folder) as endpoint:
            one = {name: value[:1] for name, value in INPUTS.items()}
            until(lambda: answered(endpoint))
            for _ in range(30):
                endpoint.infer_task("look", one)

        def measured() -> Any:
            found = shell.one("site", "measures", "line-3")
            cells = [each for each in found["modules"] if each["device"] != phone.name]
            known = len(cells) == 4 and all(each["seconds"] and each["memory_bytes"] for each in cells)
            served = known and all(each["seconds"]["p90"] for each in cells if each["device"] == camera.name)
            return found if served and len(found["ways"]) == 4 else None

        found = until(measured)
        for cell in (each for each in found["modules"] if each["device"] != phone.name):
            assert (cell["seconds"]["origin"], cell["memory_bytes"]["origin"]) == ("measured", "measured")
            assert 0 < cell["seconds"]["value"] < 0.5
            assert 0 < cell["memory_bytes"]["value"] < 32 << 20, (
                "the runtime and what it loads once is not the module's"
            )
        assert {(each["device"], each["to"]) for each in found["ways"]} == {
            (camera.name, box.name),
            (box.name, camera.name),
            (phone.name, camera.name),
            (phone.name, box.name),
        }
        assert {each["delay_ms"]["origin"] for each in found["links"]} == {"measured"}
        told = [" ".join(line.split()) for line in shell.run("site", "measures", "line-3").stdout.splitlines()]
        assert any(line.startswith(f"eyes@1 {camera.name} - ") and "in service" in line for line in told), told
        placed = serve(house, *at)
        figures = placed["placement"]["figures"]["modules"]
        origins = {each["origin"] for model in figures.values() for each in model["seconds"].values()}
        assert origins == {"measured"}
        assert placed["placement"]["proven"] == "optimal"
        with Endpoint(phone.folder) as endpoint:
            answer = until(lambda: answered(endpoint))
            np.testing.assert_allclose(
                answer.outputs["seen"], tiny_models.logits(tiny_models.worn(), INPUTS["image"]), rtol=2e-3, atol=2e-3
            )
            assert {hop.device for hop in answer.steps} <= {camera.name, box.name}
            assert answer.plan == "line-3/2"


def serve(house: House, *words: str) -> Any:
    """Make a plan, apply it, and wait until it serves; return it."""
    shell = house.shell
    made = shell.one("site", "plan", "line-3", "--task", "look", *words)
    shell.one("site", "apply", f"line-3/{made['number']}")

    def look() -> bool:
        said = shell.one("site", "status", f"line-3/{made['number']}")
        assert said["state"] not in {"failed", "aborted"}, said
        return bool(said["state"] == "serving")

    until(look)
    return made
