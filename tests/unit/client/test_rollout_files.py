"""Files of rollouts: read, checked, every problem with its line."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sprat_client.cli.app import app
from sprat_client.cli.rollout_files import RolloutFile, read_rollouts
from sprat_shared.errors import InvalidInput


def read(folder: Path, text: str) -> list[RolloutFile]:
    file = folder / "r.yaml"
    file.write_text(text)
    return read_rollouts(file)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InvalidInput) as bad:
        read(folder, text)
    return [line.replace(f"{folder}/", "") for line in str(bad.value).splitlines()]


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    (yaml,) = read(tmp_path, "release: digits@2\nwaves: [1, 50%, 100%]\nwindows: [22:00-05:00]\nstart: true\n")
    said = {"model": "digits", "release": 2, "waves": ["1", "50%", "100%"], "windows": ["22:00-05:00"], "start": True}
    (as_json,) = read(tmp_path, json.dumps(said, indent=1))
    assert yaml.wanted == as_json.wanted
    assert yaml.wanted == {
        "model": "digits",
        "release": 2,
        "waves": ["1", "50%", "100%"],
        "windows": [{"from": "22:00", "to": "05:00"}],
    }
    assert (yaml.start, yaml.title) == (True, "digits@2")


def test_scalars_are_those_of_json_and_a_clock_is_a_text(tmp_path: Path) -> None:
    (said,) = read(
        tmp_path,
        "release: digits@2\nname: no\nstart_at: 2027-01-11T22:00:00Z\nwindows:\n- {from: 22:00, to: 5:00}\n"
        "gates: {silence_s: 1.5e3, policy: {metrics: {latency_p50: null}}}\n",
    )
    assert said.wanted["name"] == "no"
    assert said.wanted["start_at"] == "2027-01-11T22:00:00Z"
    assert said.wanted["windows"] == [{"from": "22:00", "to": "5:00"}]
    assert said.wanted["gates"] == {"silence_s": 1500.0, "policy": {"metrics": {"latency_p50": None}}}


def test_a_file_may_hold_several(tmp_path: Path) -> None:
    said = read(tmp_path, "name: a\nrelease: digits@2\n---\nkind: rollout\nname: b\nrelease: digits@3\n---\n")
    assert [(one.title, one.lines[""]) for one in said] == [("a", 1), ("b", 4)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("release: digits@2\nwave: [1]\n", ["r.yaml:2: wave: it is not known; a rollout may have approvals, "]),
        ("release: digits@2\n\nin_flight: many\n", ["r.yaml:3: in_flight: expected a whole number, got 'many'"]),
        ("release: digits@2\nin_flight: true\n", ["r.yaml:2: in_flight: expected a whole number, got True"]),
        ("release: digits@2\nwaves:\n- 1\n- {a: 1}\n", ["r.yaml:4: waves.1: expected a text, got {'a': 1}"]),
        ("release: digits\n", ["r.yaml:1: release: 'digits' does not name one release"]),
        ("model: digits\n", ["r.yaml:1: release is missing"]),
        ("release: digits@2\nmodel: other\n", ["r.yaml:2: model: 'other' is another model than that of digits@2"]),
        ("release: digits@2\nwindows:\n  - 22:00\n", ["r.yaml:3: windows.0: window '22:00': write the start and the"]),
        ("release: digits@2\ngrow:\n  factor: 2\n  by: 3\n", ["r.yaml:4: grow.by: it is not known; grow may have"]),
        ("release: digits@2\nname: a\nname: b\n", ["r.yaml:3: name: it stands twice"]),
        ("release: digits@2\nwaves: [1]\ngrow: {}\n", ["r.yaml:3: grow: say either waves or grow"]),
        ("release: digits@2\nkind: group\n", ["r.yaml:2: kind: 'group' cannot be applied"]),
        ("- 1\n", ["r.yaml:1: a rollout is a mapping"]),
        ("release: digits@2\n  waves: [\n", ["r.yaml:2: "]),
        ("release: 'digits@2\n", ["r.yaml:2: "]),
        ("", ["r.yaml: there is no rollout in it"]),
        ("a: b\nc: d\n", ["r.yaml:1: a: ", "r.yaml:1: model is ", "r.yaml:1: release is ", "r.yaml:2: c: "]),
        (
            "release: digits@2\ngates: " + "[" * 30 + "]" * 30,
            ["r.yaml:2: gates", "r.yaml:2: gates: expected a mapping"],
        ),
        ("release: &a digits@2\nname: *a\n", ["r.yaml:2: write it out, without aliases"]),
    ],
)
def test_every_problem_is_said_with_its_line(tmp_path: Path, text: str, said: list[str]) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(said), found
    for line, start in zip(found, said, strict=True):
        assert line.startswith(start), (line, start)


def test_what_the_server_says_gets_its_line(tmp_path: Path) -> None:
    (said,) = read(tmp_path, "release: digits@2\nwaves:\n- 50%\n- 10%\ncontrol: 5\n".replace("5\n", "'5'\n"))
    for text, line in (
        ("wave '10%' reaches no further than one before it", 4),
        ("control '5': write a share", 5),
        ("body.rollout.waves.1: too long", 4),
        ("body.waves: too many", 2),
        ("mnist has no release 9", 1),
    ):
        assert said.located(InvalidInput(text)).startswith(f"{said.source}:{line}: "), text


@given(st.text(alphabet=" \n:-[]{}\"'&*!|>%@`,#?abc123~", max_size=60))
def test_junk_is_refused_and_never_a_crash(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    with suppress(InvalidInput):
        read(folder, text)


def test_an_endless_expansion_is_not_expanded(tmp_path: Path) -> None:
    bomb = "release: digits@2\ngates: &a [x, x]\nwaves: &b [*a, *a, *a]\ndevices: [*b, *b, *b]\n"
    assert any("alias" in line for line in problems(tmp_path, bomb))


def test_lint_without_a_server_says_that_a_file_is_good(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("name: a\nrelease: digits@2\n")
    done = CliRunner().invoke(app, ["rollout", "lint", str(file), "--offline"])
    assert (done.exit_code, done.stdout) == (0, f"{file}:1: a: good\n")
