"""The page of rollouts says what rollouts do."""

import re
from pathlib import Path

from sprat_client.cli.rollout_files import read_rollouts
from sprat_server.rollouts.requests import NewRollout
from sprat_server.rollouts.retries import Failure, Retries
from sprat_server.rollouts.waves import ALLOWED

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "rollouts.md").read_text()


def test_the_example_is_a_rollout(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    file = tmp_path / "rollout.yaml"
    file.write_text(block[1])
    (said,) = read_rollouts(file)
    wanted = NewRollout.model_validate(said.wanted)
    assert said.start
    assert wanted.digest() == NewRollout.model_validate(said.wanted).digest()
    assert (wanted.plan.control, wanted.plan.windows[0].start) == ("5%", 22 * 60)
    assert wanted.gate_plan.policy.metrics["accuracy"].tolerance == 0.01


def test_the_table_of_failures_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (\d+ times|never) \|$", PAGE, re.MULTILINE)
    said = {Failure(name): 0 if times == "never" else int(times.split()[0]) for name, times in rows}
    assert said == {one: Retries().most.get(one, 0) for one in Failure}


def test_every_move_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) >= set(ALLOWED)
