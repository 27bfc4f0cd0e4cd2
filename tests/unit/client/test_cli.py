"""`sprat` as a shell sees it: help, exit codes, the config file, what is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from sprat_client.cli.app import app
from sprat_client.cli.invocation import config_path, read_config, write_config
from sprat_client.cli.output import aligned, size
from sprat_shared.errors import InvalidInput


def sprat(*words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("SPRAT_")}
    command = [sys.executable, "-m", "sprat_client.cli", *words]
    return subprocess.run(command, env={**ours, **env}, input=stdin, capture_output=True, text=True, check=False)


def commands(group: object, words: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str]]:
    """Every command below a group: its words and its help."""
    found = []
    for name, command in getattr(group, "commands", {}).items():
        if getattr(command, "commands", None) is not None:
            found += commands(command, (*words, name))
        else:
            found.append(((*words, name), command.help or ""))
    return found


COMMANDS = commands(typer.main.get_command(app))


def test_the_tree_has_the_commands_that_operators_need() -> None:
    present = {" ".join(words) for words, _ in COMMANDS}
    assert present >= {
        "model register", "model list", "model show", "dataset upload", "dataset list", "dataset show",
        "release create", "release list", "release show", "retrain", "job list", "job get", "job watch", "job cancel",
        "rollout create", "rollout start", "rollout pause", "rollout resume", "rollout abort", "rollout status",
        "rollout list", "device list", "device show", "enrolment-token create", "token create", "token list",
        "token revoke", "audit list", "login",
    }  # fmt: skip


@pytest.mark.parametrize(("words", "text"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_every_commands_help_has_an_example_of_itself(words: tuple[str, ...], text: str) -> None:
    assert f"Example: sprat {' '.join(words)}" in " ".join(text.split())


@pytest.mark.parametrize("words", [words for words, _ in COMMANDS], ids=[" ".join(words) for words, _ in COMMANDS])
def test_every_command_takes_json(words: tuple[str, ...]) -> None:
    command: object = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    options = [option for one in command.params for option in one.opts]  # type: ignore[attr-defined]
    assert "--json" in options


def test_the_help_documents_every_exit_code_of_the_error_tree() -> None:
    text = sprat("--help").stdout
    for code in ("0", "1", "2", "65", "66", "70", "73", "75", "76", "77"):
        assert f"\n{code:>5}  " in text


def test_without_a_server_it_says_how_to_name_one(tmp_path: Path) -> None:
    ended = sprat("model", "list", SPRAT_CONFIG=str(tmp_path / "none"))
    assert (ended.returncode, ended.stdout) == (65, "")
    assert "--server, SPRAT_SERVER or sprat login" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_with_json_an_error_is_one_json_object(tmp_path: Path) -> None:
    ended = sprat("model", "list", "--json", SPRAT_CONFIG=str(tmp_path / "none"))
    assert json.loads(ended.stderr)["error"]["code"] == "cli.no-server"


def test_nobody_at_the_server_exits_75_without_a_traceback() -> None:
    ended = sprat("model", "list", SPRAT_SERVER="http://127.0.0.1:1", SPRAT_TOKEN="t")
    assert ended.returncode == 75
    assert "nothing answers at http://127.0.0.1:1" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_command_exits_2() -> None:
    assert sprat("modle", "list").returncode == 2


def test_what_login_writes_is_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAT_CONFIG", str(tmp_path / "deep" / "config.json"))
    path = write_config("http://127.0.0.1:8470", "secret")
    assert path == config_path()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_config() == {"server": "http://127.0.0.1:8470", "token": "secret"}
    assert [one.name for one in path.parent.iterdir()] == ["config.json"]


def test_a_config_that_others_may_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAT_CONFIG", str(tmp_path / "config.json"))
    write_config("http://127.0.0.1:8470", "secret").chmod(0o644)
    with pytest.raises(InvalidInput, match="chmod 600"):
        read_config()


def test_a_saved_token_is_never_sent_to_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAT_CONFIG", str(tmp_path / "config.json"))
    write_config("http://127.0.0.1:1", "secret")
    ended = sprat("model", "list", SPRAT_SERVER="http://127.0.0.1:2", SPRAT_CONFIG=str(tmp_path / "config.json"))
    assert ended.returncode == 77
    assert "there is no token for http://127.0.0.1:2" in ended.stderr


def test_loading_the_command_line_loads_nothing_heavy() -> None:
    code = "import sys, sprat_client.cli.app; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"httpx", "tuf", "onnxruntime", "numpy", "torch", "cryptography", "rich"} & set(loaded)


def test_without_the_extra_the_error_names_it() -> None:
    code = (
        "import sys; sys.modules['typer'] = None\n"
        "from sprat_client.cli import main; main()"
    )  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 78
    assert "pip install 'sprat[cli]'" in ended.stderr


def test_columns_stand_under_each_other() -> None:
    assert aligned([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "ccc  d"]


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (4123, "4.12 kB"), (1_048_576, "1.05 MB")])
def test_sizes_are_shown_with_units(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    "words",
    [
        *(
            ("sprat-server", *words)
            for words in ((), ("up",), ("serve",), ("worker",), ("db", "upgrade"), ("db", "token"))
        ),
        *(("sprat-agent", *words) for words in ((), ("enrol",), ("run",), ("status",), ("infer",))),
    ],
    ids=" ".join,
)
def test_the_other_programs_helps_have_an_example_too(words: tuple[str, ...]) -> None:
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:], "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "example:" in text.lower()
    assert words[0] in text.lower().partition("example:")[2]
