"""`sprat` as a shell sees it: help, exit codes, the config file, what is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from sprat_client.cli.app import app
from sprat_client.cli.invocation import Invocation, _refuse_plain_http, config_path, read_profile, write_profile
from sprat_client.cli.models import parse_example
from sprat_client.cli.output import aligned, size
from sprat_client.cli.quantities import parse_bytes, parse_points
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
        "release create", "release curve", "release list", "release show", "release updates", "retrain",
        "job list", "job get", "job watch", "job cancel",
        "rollout create", "rollout start", "rollout pause", "rollout resume", "rollout abort", "rollout status",
        "rollout list", "device list", "device show", "enrolment-token create", "token create", "token list",
        "token revoke", "audit list", "login", "release sign", "doctor",
        "keys generate", "keys public", "keys init", "keys show", "keys rotate", "keys sign", "keys export",
        "keys import", "keys withdraw",
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


def test_a_token_is_not_sent_in_plain_to_another_machine_unless_it_is_asked_for() -> None:
    ended = sprat("model", "list", SPRAT_SERVER="http://192.0.2.1:8470", SPRAT_TOKEN="t")
    assert ended.returncode == 65
    assert "cli.plain-http" in ended.stderr
    _refuse_plain_http("http://192.0.2.1:8470", insecure=True)
    _refuse_plain_http("https://192.0.2.1", insecure=False)
    _refuse_plain_http("http://[::1]:8470", insecure=False)


def test_no_repr_of_an_invocation_shows_the_token() -> None:
    assert "secret" not in repr(Invocation(server="http://127.0.0.1:1", token="secret"))


def test_an_unknown_command_exits_2() -> None:
    assert sprat("modle", "list").returncode == 2


def test_what_login_writes_is_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAT_CONFIG", str(tmp_path / "deep" / "config.json"))
    path = write_profile(None, {"server": "http://127.0.0.1:8470", "token": "secret"})
    assert path == config_path()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_profile(None) == {"server": "http://127.0.0.1:8470", "token": "secret"}
    assert [one.name for one in path.parent.iterdir()] == ["config.json"]


def test_a_profile_is_kept_beside_others_and_an_unknown_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPRAT_CONFIG", str(tmp_path / "config.json"))
    config_path().write_text('{"server": "http://127.0.0.1:1", "token": "before there were profiles"}')
    config_path().chmod(0o600)
    there = {"server": "http://127.0.0.1:2", "token": "other", "project": "line-3"}
    write_profile("line", there)
    assert read_profile(None)["token"] == "before there were profiles"
    assert read_profile("line") == there
    with pytest.raises(InvalidInput, match=r"no profile 'lane' \(there are: default, line\)"):
        read_profile("lane")


def test_a_config_that_others_may_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAT_CONFIG", str(tmp_path / "config.json"))
    write_profile(None, {"server": "http://127.0.0.1:8470", "token": "secret"}).chmod(0o644)
    with pytest.raises(InvalidInput, match="chmod 600"):
        read_profile(None)


def test_a_saved_token_is_never_sent_to_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPRAT_CONFIG", str(tmp_path / "config.json"))
    write_profile(None, {"server": "http://127.0.0.1:1", "token": "secret"})
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
    ("text", "count"),
    [("1400", 1400), ("1400B", 1400), ("2kB", 2000), ("1.5 MB", 1_500_000), ("2KiB", 2048), ("0.5kb", 500)],
)
def test_sizes_are_read_with_units(text: str, count: int) -> None:
    assert parse_bytes("--budget", text) == count


@pytest.mark.parametrize("text", ["", "kB", "-3", "2 parsecs", "0.2", "1e3", "٣"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"--budget .* is not a size; write bytes, such as 1400, 2kB"):
        parse_bytes("--budget", text)


def test_percentage_points_are_read_as_a_share_and_nothing_else_is() -> None:
    assert parse_points("--max-drop", "0.5pp") == pytest.approx(0.005)
    assert parse_points("--max-drop", "0 pp") == 0
    for text in ("0.5", "0.5%", "pp", "-1pp", "100pp"):
        with pytest.raises(InvalidInput, match=r"such as 0\.5pp"):
            parse_points("--max-drop", text)


def test_two_knobs_of_a_retrain_are_an_error_that_names_them() -> None:
    words = ("retrain", "digits", "--dataset", "d", "--keep", "0.9", "--budget", "2kB")
    ended = sprat(*words, SPRAT_SERVER="http://127.0.0.1:1", SPRAT_TOKEN="t")
    assert ended.returncode == 65
    assert "give one of --keep, --budget and --max-drop, not --keep and --budget" in ended.stderr


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


def test_the_shell_is_told_what_can_come_next() -> None:
    def offered(words: str) -> list[str]:
        asked = {"_SPRAT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        sprat = Path(sys.executable).with_name("sprat")
        done = subprocess.run([sprat], env={**os.environ, **asked}, capture_output=True, text=True, check=False)
        return done.stdout.split()

    assert offered("sprat roll") == ["rollout"]
    assert offered("sprat rollout pr") == ["prefetch", "promote"]


def test_an_example_of_several_inputs_is_said_by_name() -> None:
    assert parse_example([], "F32") is None
    assert parse_example(["1,28,28"], "F16") == {"shape": [1, 28, 28], "dtype": "F16"}
    assert parse_example(["image=1,64", "words=1,8:I64"], "F32") == {
        "inputs": [
            {"name": "image", "shape": [1, 64], "dtype": "F32"},
            {"name": "words", "shape": [1, 8], "dtype": "I64"},
        ]
    }


@pytest.mark.parametrize("said", [["1,64", "1,8"], ["image=1,64", "image=1,8"], ["image=1,64", "words="]])
def test_inputs_that_are_not_told_apart_are_refused(said: list[str]) -> None:
    with pytest.raises(InvalidInput, match="--example"):
        parse_example(said, "F32")
