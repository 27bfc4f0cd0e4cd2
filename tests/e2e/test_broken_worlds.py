"""What breaks in the field: a server killed in mid-rollout, a link that is slow and cut, both without a wrong model."""

import os
import signal

import pytest
import tiny_models
from demo.fault_proxy import FaultProxy
from demo.shell import Shell
from house import PATIENCE_S, House, make_server, measured

pytestmark = pytest.mark.e2e


def test_a_server_killed_in_mid_rollout_goes_on_where_it_was(house: House) -> None:
    house.register("gears")
    port = house.server.address[1]
    with house.devices("gears", "left", "right") as devices:
        house.roll_out("gears", 1, devices, "100%")
        good = house.release("gears", tiny_models.truth())
        for device in devices:
            os.kill(device.process.pid, signal.SIGSTOP)  # no device can finish before the server dies
        rollout = house.roll_out("gears", 2, devices, "1,100%", "--start")
        assert [wave["state"] for wave in rollout["waves"]] == ["open", "waiting"]
        os.kill(house.server.process.pid, signal.SIGKILL)
        house.server.process.kill()
        for device in devices:
            os.kill(device.process.pid, signal.SIGCONT)
        assert devices[0].serves("gears") is not None  # devices serve on, with or without a server

        again = make_server(house.folder, port)
        house.server.process = again.process
        again.start()
        assert not again.admin_token  # made once in the life of the data folder
        ended = house.shell.one("rollout", "status", rollout["id"], "--watch")
        assert ended["state"] == "succeeded"
        for device in devices:
            device.wait_for("gears", 2, PATIENCE_S)
            said = device.serves("gears", verify=True)
            assert said is not None
            assert said["digest"] == good["weights"]
            assert measured(device, "gears") > 0.95


def test_a_device_over_a_slow_link_that_is_cut_again_and_again_gets_there(house: House) -> None:
    house.register("belts")
    with FaultProxy(house.server.address, bytes_per_s=40_000, latency_s=0.02) as link:
        with house.devices("belts", "remote", server_url=link.url) as devices:
            link.cut_after(400, 1_000, 3_000)
            house.roll_out("belts", 1, devices, "100%")
            devices[0].wait_for("belts", 1, PATIENCE_S)
            good = house.release("belts", tiny_models.truth())
            link.cut_after(200, 700)
            rollout = house.roll_out("belts", 2, devices, "100%", "--start")
            link.set_down(down=True)
            assert devices[0].serves("belts") is not None
            link.set_down(down=False)
            assert house.shell.one("rollout", "status", rollout["id"], "--watch")["state"] == "succeeded"
            devices[0].wait_for("belts", 2, PATIENCE_S)
            said = devices[0].serves("belts", verify=True)
            assert said is not None
            assert said["digest"] == good["weights"]
        assert link.log.cuts >= 4


def test_stopped_agents_go_on_with_what_they_have_and_catch_up(house: House) -> None:
    house.register("lamps")
    with house.devices("lamps", "dim") as (device,):
        house.roll_out("lamps", 1, [device], "100%")
        device.wait_for("lamps", 1, PATIENCE_S)
        device.process.kill()
        house.release("lamps", tiny_models.truth())
        rollout = house.roll_out("lamps", 2, [device], "100%", "--start")
        watcher = house.shell.begin("rollout", "status", rollout["id"], "--watch")
        assert watcher.stderr is not None
        assert "wave 1 (100%) open" in watcher.stderr.readline()
        watcher.send_signal(signal.SIGINT)
        _, said = watcher.communicate(timeout=PATIENCE_S)
        assert watcher.returncode == 130
        assert f"goes on: sprat rollout watch {rollout['id']}" in said
        device.process.start()
        assert house.shell.one("rollout", "status", rollout["id"], "--watch")["state"] == "succeeded"
        device.wait_for("lamps", 2, PATIENCE_S)


def test_a_token_without_the_scope_can_look_but_not_release(house: House) -> None:
    token = house.shell.one("token", "create", "auditor", "--scope", "viewer")["token"]
    viewer = Shell(house.server.url, token)
    assert viewer.run("rollout", "list").returncode == 0
    refused = viewer.run("rollout", "create", "gears@1", "--waves", "100%")
    assert refused.returncode == 77
    assert "Traceback" not in refused.stderr
