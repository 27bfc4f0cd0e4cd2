"""A model learns more classes than it was registered with: new graph, small update, and back again."""

import pytest
import tiny_models
from house import PATIENCE_S, House, measured

pytestmark = pytest.mark.e2e


def test_a_model_of_three_classes_learns_five_on_a_device_and_goes_back(house: House) -> None:
    right = tiny_models.of_five()
    weights = tiny_models.write_weights(house.folder / "gauges.safetensors", tiny_models.of_five(classes=3))
    recipe = ["--recipe", "tiny_recipe:build", "--config", '{"hidden": 32, "classes": 3}', "--example", "1,16"]
    house.shell.one("model", "register", "gauges", *recipe, "--weights", str(weights))
    data = tiny_models.write_samples(house.folder / "gauges.npz", count=800, seed=23, right=right)
    house.shell.one("dataset", "upload", "five-classes", str(data))
    asked = ["retrain", "gauges", "--dataset", "five-classes", "--budget", "2kB", "--max-candidates", "1", "--watch"]
    refused = house.shell.run(*asked)
    assert refused.returncode != 0
    assert "label 4 is beyond the model's 3 outputs" in refused.stderr
    assert "--config" in refused.stderr
    result = house.shell.one(*asked, "--max-epochs", "12", "--config", '{"classes": 5}')["result"]
    assert result["accuracy_released"] > result["accuracy_base"] + 0.15

    with house.devices("gauges", "dial", right=right) as (dial,):
        house.roll_out("gauges", 1, [dial], "100%")
        before = measured(dial, "gauges", right)
        house.roll_out("gauges", 2, [dial], "100%")
        dial.wait_for("gauges", 2, PATIENCE_S)
        assert measured(dial, "gauges", right) > before + 0.1
        report = house.shell.one("device", "show", "dial")["reports"][0]
        assert (report["release"], report["outcome"], report["evidence"]["samples"]) == (2, "committed", 150)
        assert report["received_bytes"] < 10_000, "the update and the graph, not the model"

        house.roll_out("gauges", 1, [dial], "100%")
        dial.wait_for("gauges", 1, PATIENCE_S)
        said = dial.serves("gauges", verify=True)
        assert said is not None
        assert said["digest_matches"]
        assert said["digest"] == house.shell.one("release", "show", "gauges@1")["weights"]
        assert measured(dial, "gauges", right) == before
