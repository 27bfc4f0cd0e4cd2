"""The drill: root, timestamp and a model's key change while three of ten devices are off; all ten follow."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import tiny_models
from demo.device import Device
from demo.shell import Shell
from house import PATIENCE_S, House, make_server

pytestmark = pytest.mark.e2e

MODEL, COUNT, OFF = "drill", 10, 3


def device(house: House, number: int) -> Device:
    """The agent of one device; on its old folder where there is one."""
    name = f"d{number}"
    return Device(name, house.folder / name, house.server.url, options=("--trial-s", "0.3"), link="")


def key_of(house: House, name: str) -> tuple[str, list[str]]:
    """A key with a passphrase: the file of its public half, and the options with which it signs."""
    secret = house.folder / "passphrase"
    secret.touch(0o600)
    secret.write_text("correct horse battery staple\n")
    words = ("--folder", str(house.folder), "--passphrase-file", str(secret))
    house.shell.one("keys", "generate", name, *words)
    signing = ["--key", f"file2:{house.folder / name}.pem", "--passphrase-file", str(secret)]
    return str(house.folder / f"{name}.pub.json"), signing


def test_devices_that_slept_through_a_rotation_of_keys_follow_it(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with make_server(tmp_path / "server") as server, ExitStack() as running:
        house = House(tmp_path, server, Shell(server.url, server.admin_token))
        shell = house.shell
        house.register(MODEL)
        token = shell.one("enrolment-token", "create", "--uses", str(COUNT))["token"]
        devices = [device(house, number) for number in range(COUNT)]
        for one in devices:
            one.enrol(token)
        asleep = ExitStack()
        with asleep:
            for number, one in enumerate(devices):
                (asleep if number < OFF else running).enter_context(one)
            shell.one("rollout", "create", f"{MODEL}@1", "--waves", "100%", "--start", "--watch")
        before = {row["role"]: row["version"] for row in shell.one("keys", "show")["roles"]}
        for role in ("root", "timestamp"):
            shell.one("keys", "rotate", role)
        public, signing = key_of(house, "dora")
        shell.one("keys", "rotate", f"m.{MODEL}", "--key", public)
        shell.one("keys", "sign", *signing)
        after = {row["role"]: row for row in shell.one("keys", "show")["roles"]}
        assert all(after[role]["version"] > before[role] for role in ("root", "timestamp", f"m.{MODEL}"))
        assert [key["holder"] for key in after[f"m.{MODEL}"]["keys"]] == ["dora"]
        right = tiny_models.write_weights(house.folder / "right.safetensors", tiny_models.truth())
        shell.one("release", "create", MODEL, "--weights", str(right))
        assert shell.one("release", "show", f"{MODEL}@2")["state"] == "pending-signatures"
        shell.one("release", "sign", f"{MODEL}@2", *signing)
        shell.one("rollout", "create", f"{MODEL}@2", "--waves", "100%", "--start")
        devices[:OFF] = [running.enter_context(device(house, number)) for number in range(OFF)]
        weights = shell.one("release", "show", f"{MODEL}@2")["weights"]
        for one in devices:
            one.wait_for(MODEL, 2, PATIENCE_S)
            said = one.serves(MODEL, verify=True)
            assert said is not None
            assert (said["weights"], said["digest_matches"]) == (weights, True)
