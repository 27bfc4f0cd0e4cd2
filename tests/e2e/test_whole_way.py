"""An update goes the whole way between processes: retrained or trained elsewhere, rolled out, kept or refused."""

import numpy as np
import pytest
import tiny_models
from house import PATIENCE_S, House, measured

pytestmark = pytest.mark.e2e


def test_the_tiny_task_needs_an_update_and_knows_a_bad_one() -> None:
    assert tiny_models.accuracy(tiny_models.truth()) == 1
    assert 0.5 < tiny_models.accuracy(tiny_models.worn()) < 0.85
    assert tiny_models.accuracy(tiny_models.backwards()) < 0.2


def test_weights_trained_elsewhere_reach_every_device_bit_for_bit(house: House) -> None:
    house.register("pumps")
    with house.devices("pumps", "north", "south") as (north, south):
        assert house.roll_out("pumps", 1, [north, south], "100%")["state"] == "succeeded"
        before = measured(north, "pumps")
        good = house.release("pumps", tiny_models.truth())
        rollout = house.roll_out("pumps", 2, [north, south], "1,100%")
        assert [wave["state"] for wave in rollout["waves"]] == ["succeeded", "succeeded"]
        assert [wave["devices"] for wave in rollout["waves"]] == [1, 1]
        assert rollout["waves"][0]["ended_at"] <= rollout["waves"][1]["opened_at"]
        for device in (north, south):
            device.wait_for("pumps", 2, PATIENCE_S)
            said = device.serves("pumps", verify=True)
            assert said is not None
            assert (said["digest"], said["digest_matches"]) == (good["weights"], True)
            assert measured(device, "pumps") > before + 0.1
        assert next(update["bytes"] for update in good["updates"] if update["base"] == 1) < good["model_bytes"]


def test_a_bad_release_is_refused_by_the_first_device_and_halts_the_rollout(house: House) -> None:
    house.register("valves")
    with house.devices("valves", "east", "west") as devices:
        house.roll_out("valves", 1, devices, "100%")
        house.release("valves", tiny_models.backwards())
        rollout = house.roll_out("valves", 2, devices, "1,100%")
        assert rollout["state"] == "halted"
        assert (rollout["exposed"], rollout["failed"]) == (1, 1)
        assert "holdout samples" in rollout["reason"]
        assert [wave["state"] for wave in rollout["waves"]] == ["halted", "waiting"]
        refused = house.shell.all("rollout", "devices", rollout["id"], "--state", "failed")[0]["name"]
        report = house.shell.one("device", "show", refused)["reports"][0]
        assert (report["outcome"], report["error_code"]) == ("refused", "validation.worse") or report["release"] == 1
        first = house.shell.one("release", "show", "valves@1")
        for device in devices:
            device.wait_for("valves", 1, PATIENCE_S)
            said = device.serves("valves", verify=True)
            assert said is not None
            assert (said["release"], said["digest"]) == (1, first["weights"])


def test_a_device_that_enrols_after_a_rollout_to_all_gets_its_release(house: House) -> None:
    house.register("fans")
    rollout = house.shell.one("rollout", "create", "fans@1", "--waves", "100%", "--start")
    # Devices of the tests before are gone for good: an operator revokes them, and the rollout waits for them no more.
    gone = [device for device in house.shell.all("device", "list") if device["revoked_at"] is None]
    for device in gone:
        house.shell.one("device", "revoke", device["id"], "--reason", "scrapped")
    assert house.shell.one("rollout", "status", rollout["id"], "--watch")["state"] == "succeeded"
    with house.devices("fans", "late") as (late,):
        late.wait_for("fans", 1, PATIENCE_S)


def test_a_retrain_on_the_server_makes_a_small_release_that_devices_take(house: House) -> None:
    weights = tiny_models.write_weights(house.folder / "motors.safetensors", tiny_models.worn())
    recipe = ["--recipe", "tiny_recipe:build", "--config", '{"hidden": 32}', "--example", "1,16"]
    house.shell.one("model", "register", "motors", *recipe, "--weights", str(weights))
    data = tiny_models.write_samples(house.folder / "motors.npz", count=800, seed=7)
    house.shell.one("dataset", "upload", "motors-may", str(data))
    words = ["--dataset", "motors-may", "--keep", "0.8", "--max-epochs", "12", "--max-candidates", "2", "--watch"]
    result = house.shell.one("retrain", "motors", *words)["result"]
    assert result["release"] == 2
    assert result["accuracy_retrained"] > result["accuracy_base"] + 0.1
    gain = result["accuracy_released"] - result["accuracy_base"]
    assert np.isclose(result["recovered_gain"], gain / (result["accuracy_retrained"] - result["accuracy_base"]))
    assert len(result["test_indices"]) == 120
    drawn = house.folder / "motors.png"
    points = house.shell.all("release", "curve", "motors@2", "-o", str(drawn))
    assert [one["update_bytes"] for one in points if one["chosen"]] == [result["update_bytes"]]
    assert drawn.read_bytes().startswith(b"\x89PNG")
    with house.devices("motors", "axle") as devices:
        house.roll_out("motors", 1, devices, "100%")
        before = measured(devices[0], "motors")
        house.roll_out("motors", 2, devices, "100%")
        devices[0].wait_for("motors", 2, PATIENCE_S)
        assert measured(devices[0], "motors") > before + 0.05
