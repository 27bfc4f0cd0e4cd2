"""An engineer carries a file to a device that has no network: exported, installed and reported by command."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest
import tiny_models
from demo.device import Device
from demo.processes import environment, program
from demo.shell import Shell
from house import PATIENCE_S, House, make_server

pytestmark = pytest.mark.e2e
MODEL = "islands"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server of its own, which is away for a while."""
    folder = tmp_path_factory.mktemp("offline")
    with make_server(folder) as server:
        yield House(folder, server, Shell(server.url, server.admin_token))


def agent(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [program("sprat-agent"), *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=120)


def test_what_is_carried_to_a_device_serves_there_and_is_reported_when_it_comes_back(house: House) -> None:
    shell, stick = house.shell, house.folder / "stick.bundle"
    house.register(MODEL)
    with house.devices(MODEL, "reef", "mole") as devices:
        house.roll_out(MODEL, 1, devices, "100%")
        reef = devices[0]
        house.release(MODEL, tiny_models.truth())
        reef.process.stop()
        rollout = house.roll_out(MODEL, 2, [reef], "100%", "--start")
        said = shell.one("bundle", "export", "--for", "reef", "-o", str(stick), "--valid-days", "30")
        assert (said["bytes"], len(said["devices"])) == (stick.stat().st_size, 1)

        running = agent("install", str(stick), "--dir", str(devices[1].folder))
        assert running.returncode == 73, "its agent runs"
        devices[1].process.stop()
        wrong = agent("install", str(stick), "--dir", str(devices[1].folder))
        assert (wrong.returncode, "this bundle is for" in wrong.stderr) == (65, True)

        cut = house.folder / "cut.bundle"
        cut.write_bytes(stick.read_bytes()[:-7])
        damaged = agent("install", str(cut), "--dir", str(reef.folder))
        assert (damaged.returncode, "copy it again" in damaged.stderr) == (65, True)

        options = reef.process.command[reef.process.command.index("--holdout") :]
        shutil.move(house.folder / "reef" / "agent.json", house.folder / "agent.json")
        away = (house.folder / "agent.json").read_text().replace(house.server.url, "http://127.0.0.1:9")
        (house.folder / "reef" / "agent.json").write_text(away)
        done = agent("install", str(stick), "--dir", str(reef.folder), *options)
        assert done.returncode == 0, done.stderr
        assert agent("status", "--dir", str(reef.folder)).stdout.count("release 2") == 1
        shutil.move(house.folder / "agent.json", house.folder / "reef" / "agent.json")

        assert shell.one("rollout", "status", rollout["id"])["state"] == "running", "its report waits on the device"
        reef.process.start()
        reef.wait_for(MODEL, 2, PATIENCE_S)
        assert shell.one("rollout", "status", rollout["id"], "--watch")["state"] == "succeeded"
        report = shell.one("device", "show", "reef")["reports"][0]
        assert (report["outcome"], report["release"], report["received_bytes"]) == ("committed", 2, 0)
        assert all(one["kind"] == "assignment" for one in shell.one("device", "show", "reef")["reports"])


def test_a_bundle_for_a_model_serves_a_device_that_holds_nothing_yet(house: House) -> None:
    shell, stick = house.shell, house.folder / "all.bundle"
    house.register("atolls")
    token = shell.one("enrolment-token", "create")["token"]
    device = Device("atoll", house.folder / "atoll", house.server.url, options=(), link="")
    device.enrol(token)
    house.roll_out("atolls", 1, [device], "100%", "--start")
    said = shell.one("bundle", "export", "--model", "atolls", "-o", str(stick))
    assert (len(said["devices"]), said["payloads"]) == (1, 2), "the full update and the graph"
    assert agent("install", str(stick), "--dir", str(device.folder), "--trial-s", "0.2").returncode == 0
    assert not list((device.folder / "downloads").glob("*")), "what was copied is gone"
    with device:
        device.wait_for("atolls", 1, PATIENCE_S)
        served = device.serves("atolls", verify=True)
        assert served is not None
        assert served["digest_matches"]
