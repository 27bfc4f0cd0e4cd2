"""Devices join by the queue, take their own place after a loss, and go: real processes, by command."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from demo.device import Device
from demo.processes import environment, program
from demo.server import Server
from demo.shell import Shell
from house import House, make_server

from sprat_client.agent.identity import Identity, load_key
from sprat_shared.protocol.token import ASSERTION_TYPE, AUDIENCE, GRANT_TYPE

pytestmark = pytest.mark.e2e
MODEL = "joiners"
OPTIONS = ("--trial-s", "0.3")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server of its own: what the whole fleet gets waits for every device that other tests left behind."""
    folder = tmp_path_factory.mktemp("joining")
    with make_server(folder) as server:
        yield House(folder, server, Shell(server.url, server.admin_token))


@pytest.fixture(scope="module")
def model(house: House) -> str:
    """A model that the whole fleet is brought to, so that who joins gets it."""
    house.register(MODEL)
    token = house.shell.one("enrolment-token", "create")["token"]
    device = Device("founder", house.folder / "founder", house.server.url, options=OPTIONS, link="")
    device.enrol(token)
    with device:
        house.shell.one("rollout", "create", f"{MODEL}@1", "--waves", "100%", "--start", "--watch")
    house.shell.one("device", "decommission", "founder", "--reason", "its work is done")
    return MODEL


def enrol(server: Server, folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [program("sprat-agent"), "enrol", "--server", server.url, "--dir", str(folder), "--json", *words]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_a_device_waits_is_compared_by_its_fingerprint_and_is_accepted(house: House, model: str) -> None:
    folder = house.folder / "waiter"
    waiting = enrol(house.server, folder, "--wait", "--name", "waiter")
    assert waiting.stderr is not None
    said = waiting.stderr.readline()
    (row,) = [row for row in house.shell.all("device", "pending") if row["name"] == "waiter"]
    assert row["fingerprint"] in said
    joined = house.shell.one("device", "accept", "waiter", "--group", "line-b")
    assert joined["group"] == "line-b"
    code, out, err = ended(waiting)
    assert (code, json.loads(out)["device"]) == (0, joined["id"]), err
    device = Device("waiter", folder, house.server.url, options=OPTIONS, link="")
    with device:
        device.wait_for(model, 1, 60)


def test_a_rejected_device_ends_with_77(house: House) -> None:
    waiting = enrol(house.server, house.folder / "stranger", "--wait", "--name", "stranger")
    assert waiting.stderr is not None
    waiting.stderr.readline()
    house.shell.one("device", "reject", "stranger", "--reason", "not ours")
    code, out, _ = ended(waiting)
    assert (code, "rejected" in json.loads(out)["error"]["detail"]) == (77, True)


def test_a_device_whose_folder_was_lost_takes_its_own_place_and_reports_on(house: House, model: str) -> None:
    device = Device("phoenix", house.folder / "phoenix", house.server.url, options=OPTIONS, link="")
    device.enrol(house.shell.one("enrolment-token", "create")["token"])
    with device:
        device.wait_for(model, 1, 60)
        wait_for_reports(house, device, 1)
    shutil.rmtree(device.folder)
    code, out, _ = ended(enrol(house.server, device.folder, "--name", "phoenix", "--token", token_of(house)))
    assert (code, "sprat device replace" in json.loads(out)["error"]["detail"]) == (1, True), "its name is taken"
    shutil.rmtree(device.folder)
    replacing = house.shell.one("device", "replace", "phoenix")["token"]
    assert ended(enrol(house.server, device.folder, "--name", "phoenix", "--token", replacing))[0] == 0
    again = Device("phoenix", device.folder, house.server.url, options=OPTIONS, link="")
    with again:
        again.wait_for(model, 1, 60)
        assert [report["sequence"] for report in wait_for_reports(house, again, 2)] == [2, 1]


def token_of(house: House) -> str:
    token: str = house.shell.one("enrolment-token", "create")["token"]
    return token


def wait_for_reports(house: House, device: Device, count: int) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]] | None:
        reports: list[dict[str, Any]] = house.shell.one("device", "show", device.name)["reports"]
        return reports if len(reports) == count else None

    return device.process.until(look, f"{count} reports", 60)


def test_no_secret_is_in_any_log_or_error_of_a_run(tmp_path: Path) -> None:
    """Everybody's secrets, right and wrong, go through a server that logs all it can; none of them is in a log."""
    with Server(tmp_path, more={"SPRAT_LOG_LEVEL": "debug", "SPRAT_POLL_INTERVAL_S": "1"}) as server:
        shell = Shell(server.url, server.admin_token)
        operator = shell.one("token", "create", "night-shift", "--scope", "operator")["token"]
        enrolment = shell.one("enrolment-token", "create")["token"]
        folder = tmp_path / "gate"
        code, _, said = ended(enrol(server, folder, "--token", enrolment, "--name", "gate"))
        assert code == 0, said
        ran = [program("sprat-agent"), "run", "--once", "--dir", str(folder)]
        agent = subprocess.run(ran, env=environment(), capture_output=True, text=True, timeout=60, check=True)
        device, now_s = str(Identity.load(folder).device), int(time.time())
        claims = {"iss": device, "sub": device, "aud": AUDIENCE, "iat": now_s, "exp": now_s + 60, "jti": "once"}
        signed = jwt.encode(claims, load_key(folder), algorithm="EdDSA")
        form = {"grant_type": GRANT_TYPE, "client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}
        token = httpx.post(f"{server.url}/device/v1/token", data=form).raise_for_status().json()["access_token"]
        secrets = [server.admin_token, operator, enrolment, token, signed, jwt.encode({"sub": "x"}, "k" * 32)]
        secrets += [secret[:-3] + "AAA" for secret in secrets]
        errors = [said, agent.stderr]
        for secret in secrets:
            headers = {"Authorization": f"Bearer {secret}"}
            for method, path in (("GET", "/device/v1/poll"), ("POST", "/api/v1/tokens"), ("GET", "/metrics")):
                errors.append(httpx.request(method, server.url + path, headers=headers).text)
            errors.append(httpx.post(f"{server.url}/device/v1/token", data=form | {"client_assertion": secret}).text)
            errors.append(httpx.get(f"{server.url}/api/v1/jobs", params={"cursor": "x"}, headers=headers).text)
        errors += [shell.run("audit", "list", "--json").stdout, shell.run("token", "list", "--json").stdout]
    errors.append((tmp_path / "server.log").read_text())
    assert "device.enrol" in "".join(errors), "the run is in what is looked at"
    key = (folder / "device.key").read_text().splitlines()[1]
    parts = {part for secret in secrets for part in secret.split("_") if len(part) > 20} | {key}
    found = [part for part in parts for text in errors if part in text]
    assert not [part for part in found if not is_token_id(part)], found


def is_token_id(part: str) -> bool:
    """Whether this is the id half of an operator's token, which is no secret."""
    return len(part) == 32 and set(part) <= set("0123456789abcdef")
