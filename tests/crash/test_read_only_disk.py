"""A real agent on a real read-only mount serves what the slots say; once it can write, the update is taken."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_onnx
from one_device import MODEL, one_device, release_of

pytestmark = pytest.mark.crash
MOUNT = "mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
CAN = subprocess.run(
    ["unshare", "-m", "sh", "-c", f"cd / && {MOUNT.format(folder='/opt')}"], capture_output=True, check=False
)


def asked(address: Path) -> dict[str, Any] | None:
    """Return what the agent says that it serves; None before it listens."""
    found = [line for line in address.read_text().splitlines() if '"message": "started"' in line]
    try:
        url = found[0].partition('"url": "')[2].partition('"')[0]
        said: dict[str, Any] = httpx.get(f"{url}/v1/models/{MODEL}?verify=1", timeout=5.0).json()
    except (IndexError, httpx.HTTPError):
        return None
    return said


@pytest.mark.skipif(CAN.returncode != 0, reason=f"mounting in a namespace is not allowed here: {CAN.stderr!r:.200}")
def test_an_agent_on_a_read_only_disk_serves_and_goes_on_when_the_disk_does(tmp_path: Path) -> None:
    with one_device(tmp_path) as device:
        device.server.add_release(MODEL, tiny_onnx.nudged(device.server.models[MODEL][1].weights, 2), base=1)
        device.server.assign(MODEL, 2)
        run = f"exec {sys.executable} -m sprat_client.agent run --dir {device.folder} --poll-interval-s 0.1"
        log = tmp_path / "agent.log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                ["unshare", "-m", "sh", "-c", f"{MOUNT.format(folder=device.folder)} && {run}"], stderr=output
            ) as agent,
        ):
            try:
                ends, said = time.monotonic() + 60, None
                while time.monotonic() < ends and (said is None or "poll failed" not in log.read_text()):
                    time.sleep(0.1)
                    said = asked(log)
            finally:
                agent.terminate()
            assert agent.wait(30) == 0
            assert said is not None, log.read_text()
            assert (said["release"], said["digest_matches"]) == (1, True)
        assert "Read-only file system" in log.read_text()
        with device.agent() as again:
            assert again.run(once=True) == 0
            assert release_of(again, device.server) == 2
