"""The page of gates says the defaults that gates have."""

import json
import re
from pathlib import Path

from sprat_server.rollouts.gate_plan import ENOUGH_DEVICES, GatePlan, Rule
from sprat_server.rollouts.gate_policy import GatePolicy

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "gates.md").read_text()


def test_the_defaults_on_the_page_are_those_of_the_code() -> None:
    block = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    said = json.loads(block[1])
    assert GatePlan.of(said) == GatePlan(rule=Rule.EVIDENCE)
    metrics = said["policy"].pop("metrics")
    assert set(said["policy"]) == set(GatePolicy().as_json()) - {"metrics"}
    assert set(metrics) == set(GatePolicy().metrics)


def test_the_numbers_in_the_text_are_those_of_the_code() -> None:
    assert f"cohorts of {ENOUGH_DEVICES} devices or more" in PAGE
    assert f"the hard stop takes: {GatePolicy().halts_at:.0f})" in PAGE
    assert f"{100 * GatePolicy().hard_stop_rate:g} % of rollouts" in " ".join(PAGE.split())
