"""The `sprat` command against a real server: everything with --json, ids by their ends, errors that say what to do."""

import json
import os
import signal
import subprocess

import pytest
import tiny_models
from demo.processes import environment, program
from house import House

pytestmark = pytest.mark.e2e


def test_every_list_prints_one_json_object_a_line_that_show_and_get_agree_with(house: House) -> None:
    shell = house.shell
    house.register("shown")
    data = tiny_models.write_samples(house.folder / "d.npz", count=60, seed=1)
    uploaded = shell.one("dataset", "upload", "d", str(data))
    rollout = shell.one("rollout", "create", "shown@1", "--waves", "1,50%,100%")

    assert shell.one("model", "show", "shown") in shell.all("model", "list")
    assert shell.one("release", "show", "shown@1") == shell.all("release", "list", "shown")[0]
    assert shell.one("release", "show", "shown", "1") == shell.one("release", "show", "shown@1")
    dataset = shell.one("dataset", "show", "d")
    assert dataset in shell.all("dataset", "list")
    assert dataset["digest"] == uploaded["result"]["digest"]
    assert shell.one("dataset", "show", dataset["digest"][7:19]) == dataset
    jobs = shell.all("job", "list")
    assert {job["kind"] for job in jobs} >= {"register-model", "validate-dataset"}
    assert shell.one("job", "get", jobs[0]["id"]) == shell.one("job", "watch", jobs[0]["id"][-12:])
    assert shell.one("rollout", "status", rollout["id"][-12:]) in shell.all("rollout", "list")
    assert rollout["state"] == "draft"
    assert shell.one("rollout", "abort", rollout["id"], "--reason", "never meant")["state"] == "aborted"
    actions = [entry["action"] for entry in shell.all("audit", "list")]
    assert actions[:2] == ["rollout.abort", "rollout.create"]


def test_text_is_for_people_and_keeps_to_one_line_per_thing(house: House) -> None:
    ended = house.shell.run("token", "list", "--of-server")
    heading, *rows = ended.stdout.splitlines()
    assert heading.split() == ["token", "name", "scopes", "expires", "last", "used"]
    assert any("first-admin" in row for row in rows)


def test_a_rollout_is_started_once_paused_resumed_and_aborted(house: House) -> None:
    house.register("paused")
    shell = house.shell
    with house.devices("paused", "waits") as (device,):
        os.kill(device.process.pid, signal.SIGSTOP)  # it cannot finish before we have looked
        rollout = house.roll_out("paused", 1, [device], "100%", "--start")["id"]
        again = shell.run("rollout", "start", rollout, "--reason", "once more")
        assert (again.returncode, "running" in again.stderr) == (73, True)
        assert shell.one("rollout", "pause", rollout, "--reason", "lunch")["reason"] == "lunch"
        assert shell.one("rollout", "resume", rollout, "--reason", "fed")["state"] == "running"
        assert shell.one("rollout", "abort", rollout, "--reason", "wrong day")["state"] == "aborted"
        os.kill(device.process.pid, signal.SIGCONT)


def test_a_token_is_made_used_and_revoked(house: House) -> None:
    made = house.shell.one("token", "create", "night-shift", "--scope", "operator", "--expires-s", "600")
    env = environment(SPRAT_SERVER=house.server.url, SPRAT_TOKEN=made["token"])
    words = [program("sprat"), "model", "list"]
    assert subprocess.run(words, env=env, capture_output=True, check=False).returncode == 0
    assert house.shell.one("token", "revoke", "night-shift")["revoked"] is True
    refused = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert refused.returncode == 77
    assert "Traceback" not in refused.stderr


def test_login_keeps_server_and_token_for_the_next_command(house: House) -> None:
    config = house.folder / "config" / "sprat.json"
    env = environment(SPRAT_CONFIG=str(config))
    login = [program("sprat"), "login", "--server", house.server.url, "--json"]
    asked = subprocess.run(login, env=env, input=house.server.admin_token, capture_output=True, text=True, check=True)
    said = {"server": house.server.url, "profile": "default", "project": None, "config": str(config)}
    assert json.loads(asked.stdout) == said
    assert config.stat().st_mode & 0o777 == 0o600
    assert subprocess.run([program("sprat"), "job", "list"], env=env, capture_output=True, check=False).returncode == 0


def test_a_wrong_token_is_not_kept(house: House) -> None:
    config = house.folder / "config" / "wrong.json"
    env = environment(SPRAT_CONFIG=str(config), SPRAT_TOKEN="sprat_wrong")
    login = [program("sprat"), "login", "--server", house.server.url]
    assert subprocess.run(login, env=env, capture_output=True, check=False).returncode == 77
    assert not config.exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["model", "show", "nobody"], 66, "sprat model list"),
        (["release", "show", "nobody"], 65, "nobody@2"),
        (["retrain", "nobody", "--dataset", "x", "--keep", "3"], 65, "--keep 3"),
        (["retrain", "nobody", "--dataset", "none-such"], 66, "dataset"),
        (["dataset", "upload", "d", "/nowhere.npz"], 65, "/nowhere.npz"),
        (["model", "register", "x", "--weights", "/nowhere"], 65, "--recipe"),
        (["rollout", "create", "nobody@1"], 66, "nobody"),
        (["rollout", "status", "ffffffff"], 66, "rollout list"),
        (["job", "get", "ffffffff"], 66, "job list"),
        (["device", "show", "nobody"], 66, "device list"),
    ],
)
def test_an_error_says_what_is_wrong_and_where_with_its_exit_code(
    house: House, words: list[str], code: int, told: str
) -> None:
    ended = house.shell.run(*words)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_failed_job_ends_the_command_with_its_reason(house: House) -> None:
    broken = house.folder / "broken.npz"
    broken.write_bytes(b"not a dataset")
    ended = house.shell.run("dataset", "upload", "broken", str(broken), "--json")
    assert ended.returncode == 1
    error = json.loads(ended.stderr.splitlines()[-1])["error"]
    assert error["code"].startswith("dataset.")
