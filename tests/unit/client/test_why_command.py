"""`sprat rollout why`: what the gate says, as text; files with gates are read or refused."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import pytest
from answering_server import answering
from typer.testing import CliRunner

from sprat_client.cli.app import app
from sprat_client.cli.reasons import read_gates, why_text
from sprat_server.rollouts.evidence import Evidence, Exposed, Reported
from sprat_server.rollouts.explain import explain
from sprat_server.rollouts.gate_policy import GatePolicy
from sprat_server.rollouts.models import Rollout
from sprat_server.rollouts.schemas import WhyView
from sprat_shared.errors import InvalidInput
from sprat_shared.ids import new_id

if TYPE_CHECKING:
    from sprat_client.api.rollout_views import WhyView as Why

SITES = ("site=a", "site=b")


def said_of(losses: list[float], *, rule: str = "evidence", policy: GatePolicy | None = None) -> "Why":
    """What the API answers when devices reported these losses."""
    exposed = [Exposed(f"d{i}", (SITES[i % 2],)) for i in range(len(losses))]
    reported = [Reported(f"d{i}", failed=False, losses={"accuracy": loss}) for i, loss in enumerate(losses)]
    evidence = Evidence(dict.fromkeys(SITES, 50), (*exposed, *reported), next_reach=100)
    rollout = Rollout(id=new_id(), rule=rule)
    view = WhyView.of(rollout, explain(evidence, policy or GatePolicy()))
    return cast("Why", json.loads(view.model_dump_json()))


def test_a_halt_says_what_it_rests_on() -> None:
    text = why_text(said_of([0.05] * 20), imagined=False)
    first, reason, *_ = text.splitlines()
    assert first == "the gate says: halt"
    assert reason.startswith("  evidence of harm ")
    assert re.search(r"^halted after \d+ reports, with 20 devices exposed$", text, re.MULTILINE)
    assert re.search(r"^  all +accuracy +20 +0.05 +0.005 ", text, re.MULTILINE)
    assert "nothing: a halt stands" in text


def test_a_verdict_to_come_says_what_would_change_it() -> None:
    text = why_text(said_of([0.001, -0.001] * 6), imagined=False)
    assert text.startswith("the gate says: open\n  12 devices reported")
    assert "further devices that all fail: halt" in text
    assert "silence by site is not random" in text


def test_without_reports_it_waits_for_the_first() -> None:
    text = why_text(said_of([]), imagined=False)
    assert text.startswith("the gate says: hold\n  0 devices reported, 1 must")


def test_it_says_where_another_policy_is_asked_and_where_the_gate_decides_nothing() -> None:
    text = why_text(said_of([0.0] * 3, rule="first_failure"), imagined=True)
    assert text.startswith("another policy would have said (it decides nothing here: the first failure does): open\n")


def test_a_metric_without_weight_never_halts_alone() -> None:
    policy = GatePolicy.of({"metrics": {"accuracy": {"weight": 0}}})
    games = said_of([0.05] * 20, policy=policy)["gates"]
    assert {game["halts_at"] for game in games if game["metric"] == "accuracy"} == {None}


@pytest.mark.parametrize("content", ["", "[]", "{", '"x"', None])
def test_a_file_that_holds_no_object_is_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "gates.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidInput, match="expected a JSON object"):
        read_gates(file)


def test_a_file_with_an_object_is_read(tmp_path: Path) -> None:
    file = tmp_path / "gates.json"
    file.write_text('{"rule": "evidence"}')
    assert read_gates(file) == {"rule": "evidence"}


def test_the_command_asks_the_api_with_the_policy_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    why, asked = said_of([0.05] * 20), list[str]()
    file = tmp_path / "stricter.json"
    file.write_text('{"alpha": 0.001}')

    def answer(_method: str, path: str, _body: object) -> object:
        asked.append(unquote(path))
        return why

    with answering(monkeypatch, answer):
        plain = CliRunner().invoke(app, ["rollout", "why", why["rollout"]])
        other = CliRunner().invoke(app, ["rollout", "why", why["rollout"], "--policy", str(file), "--json"])
    assert plain.stdout.startswith("the gate says: halt\n")
    assert json.loads(other.stdout) == why
    assert "policy" not in asked[0]
    assert '{"alpha":+0.001}' in asked[1].replace(" ", "+")
