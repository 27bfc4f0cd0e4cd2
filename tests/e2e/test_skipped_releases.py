"""A device that sleeps through a release: a worker builds one file that leads it straight to the newest."""

import time

import numpy as np
import pytest
import tiny_models
from house import PATIENCE_S, House

pytestmark = pytest.mark.e2e

WIDTH = 1500


def wells(*retrained: int) -> dict[str, tiny_models.Floats]:
    """Weights of a wide network, moved a little at each retraining."""
    rng = np.random.default_rng(1)
    shapes = {"0.weight": (WIDTH, 16), "0.bias": (WIDTH,), "2.weight": (4, WIDTH), "2.bias": (4,)}
    weights = {name: rng.normal(size=shape) / np.sqrt(shape[-1]) for name, shape in shapes.items()}
    for seed in retrained:
        nudge = np.random.default_rng(seed)
        weights = {name: values + 1e-5 * nudge.normal(size=values.shape) for name, values in weights.items()}
    return {name: values.astype(np.float32) for name, values in weights.items()}


def test_a_device_two_releases_behind_fetches_one_file_that_a_worker_built_for_it(house: House) -> None:
    shell = house.shell
    weights = tiny_models.write_weights(house.folder / "wells.safetensors", wells())
    graph = tiny_models.write_graph(house.folder / "wells.onnx", wells())
    shell.one("model", "register", "wells", "--graph", str(graph), "--weights", str(weights))
    with house.devices("wells", "quarry", right=wells()) as devices:
        house.roll_out("wells", 1, devices, "100%")
        for retrained in ((1,), (1, 2)):
            file = tiny_models.write_weights(house.folder / "wells.safetensors", wells(*retrained))
            shell.one("release", "create", "wells", "--weights", str(file), "--lossless")
        until = time.monotonic() + PATIENCE_S
        while (way := shell.all("release", "updates", "wells")[2])["way"] != "direct":
            assert time.monotonic() < until, way
            time.sleep(0.3)
        chain = [next(one for one in shell.all("release", "updates", "wells", "--to", "2") if one["base"] == 1)]
        chain += [one for one in shell.all("release", "updates", "wells") if one["base"] == 2]
        assert [one["way"] for one in chain] == ["direct", "direct"]
        assert (way["devices"], way["files"], way["path"]) == (1, 1, ["wells/3/from-1"])
        assert way["bytes"] < 0.7 * sum(one["bytes"] for one in chain)
        assert house.roll_out("wells", 3, devices, "100%")["state"] == "succeeded"
        shown = shell.one("device", "show", devices[0].name)
        report = shown["reports"][0]
        assert (report["release"], report["outcome"], report["received_bytes"]) == (3, "committed", way["bytes"])
        assert report["serving_weights"] == shell.one("release", "show", "wells@3")["weights"]
