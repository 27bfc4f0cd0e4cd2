"""A rollout from a file, followed to its end, undone, and a halted one that goes on: with real agents."""

from pathlib import Path

import tiny_models
from demo.device import Device
from house import PATIENCE_S, House


def serve(devices: list[Device], model: str, release: int) -> None:
    for device in devices:
        device.wait_for(model, release, PATIENCE_S)


def test_a_file_is_applied_followed_and_undone_for_no_bytes(house: House, tmp_path: Path) -> None:
    house.register("doors")
    shell, file = house.shell, tmp_path / "rollout.yaml"
    with house.devices("doors", "porch", "cellar") as devices:
        house.roll_out("doors", 1, devices, "100%")
        house.release("doors", tiny_models.truth())
        file.write_text(
            "name: doors-2\nrelease: doors@2\nwaves: [1, 100%]\ndevices: [porch, cellar]\nin_flight: 1\nstart: true\n"
        )
        assert shell.run("rollout", "lint", str(file), "--offline").returncode == 0
        (plan,) = shell.all("apply", "-f", str(file), "--dry-run")
        assert (plan["action"], [wave["devices"] for wave in plan["waves"]]) == ("create", [1, 1])
        (applied,) = shell.all("apply", "-f", str(file))
        assert applied["action"] == "created"
        followed = shell.all("rollout", "watch", "doors-2")
        assert [one["id"] for one in followed] == [applied["rollout"]["id"]] * len(followed)
        assert followed[-1]["state"] == "succeeded"
        assert len(followed) > 1, "a line for each change"
        serve(devices, "doors", 2)
        assert [one["action"] for one in shell.all("apply", "-f", str(file))] == ["unchanged"]
        assert shell.one("rollout", "undo", "doors-2", "--reason", "second thoughts")["state"] == "undone"
        serve(devices, "doors", 1)
        for device in devices:
            said = device.serves("doors", verify=True)
            assert said is not None
            assert said["digest"] == shell.one("release", "show", "doors@1")["weights"]
        file.write_text("name: doors-3\nrelease: doors@2\nwave: [1]\n")
        wrong = shell.run("apply", "-f", str(file))
        assert (wrong.returncode, f"{file}:3: wave: it is not known" in wrong.stderr) == (65, True)


def test_a_halted_rollout_goes_on_when_the_failure_was_not_the_releases(house: House) -> None:
    """The labels of one device are the old release's: it refuses the new one, which the other shall have anyway."""
    house.register("gates")
    shell = house.shell
    with (
        house.devices("gates", "sound") as (sound,),
        house.devices("gates", "mistaken", right=tiny_models.worn()) as (mistaken,),
    ):
        house.roll_out("gates", 1, [sound, mistaken], "100%")
        house.release("gates", tiny_models.truth())
        rollout = house.roll_out("gates", 2, [sound, mistaken], "100%")
        assert rollout["state"] == "halted"
        serve([sound, mistaken], "gates", 1)
        assert shell.one("release", "show", "gates@2")["quarantine"]["rollout"] == rollout["id"]
        again = shell.run("rollout", "create", "gates@2", "--waves", "100%")
        assert (again.returncode, "in quarantine" in again.stderr) == (73, True)
        refused = shell.run("rollout", "resume", rollout["id"], "--reason", "try")
        assert (refused.returncode, "--acknowledge" in refused.stderr) == (73, True)
        shell.one("rollout", "resume", rollout["id"], "--acknowledge", "--reason", "mistaken has wrong labels")
        ended = shell.one("rollout", "get", rollout["id"], "--watch")
        assert (ended["state"], ended["committed"], ended["excused"]) == ("succeeded", 1, 1)
        serve([sound], "gates", 2)
        serve([mistaken], "gates", 1)
