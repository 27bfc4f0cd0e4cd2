"""A retrain leaves norm statistics to devices: each has its own, of its own inputs, and the digest of the registry."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_recipe
import torch
from demo.device import Device
from house import PATIENCE_S, House, measured
from safetensors.torch import save_file

pytestmark = pytest.mark.e2e
MODEL = "presses"
LOCAL = [f"{norm}.running_{part}" for norm in (2, 6) for part in ("mean", "var")]


def held(device: Device, release: int) -> dict[str, torch.Tensor]:
    """Return the tensors in a device's folder of a release, by name."""
    for manifest in (device.folder / "models" / MODEL / "releases").glob("*/manifest.json"):
        said = json.loads(manifest.read_bytes())
        if said["release"] == release:
            return {
                name: _tensor(manifest.parent / "t" / str(i), *spec)
                for i, (name, *spec, _) in enumerate(said["tensors"])
            }
    raise AssertionError(f"{device.name} has no release {release}")


def _tensor(path: Path, dtype: str, shape: list[int]) -> torch.Tensor:
    raw = np.fromfile(path, {"F32": "<f4", "I64": "<i8"}[dtype])
    return torch.from_numpy(raw.reshape(shape))


def as_torch_estimates(tensors: dict[str, torch.Tensor], inputs: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
    """Return the statistics of a module in these weights after one pass in training mode over all inputs."""
    module = tiny_recipe.build_norms({})
    module.load_state_dict(tensors)
    for norm in (module[2], module[6]):  # type: ignore[index]
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        module.train()(torch.from_numpy(inputs))
    return {name: tensor for name, tensor in module.state_dict().items() if name in LOCAL}


def test_each_device_computes_its_own_statistics_and_returns_to_them(house: House) -> None:
    torch.manual_seed(5)
    weights = house.folder / f"{MODEL}.safetensors"
    save_file({name: t.contiguous() for name, t in tiny_recipe.build_norms({}).state_dict().items()}, weights)
    recipe = ["--recipe", "tiny_recipe:build_norms", "--example", "1,16"]
    house.shell.one("model", "register", MODEL, *recipe, "--weights", str(weights))
    data = tiny_models.write_samples(house.folder / f"{MODEL}-may.npz", count=800, seed=19)
    house.shell.one("dataset", "upload", f"{MODEL}-may", str(data))
    words = ["--keep", "0.7", "--max-epochs", "12", "--max-candidates", "2", "--strategy", "factors"]
    told = house.shell.one("retrain", MODEL, "--dataset", f"{MODEL}-may", "--local-statistics", *words, "--watch")
    assert told["result"]["local"] == LOCAL
    release = house.shell.one("release", "show", f"{MODEL}@2")
    assert release["local"] == LOCAL
    with house.devices(MODEL, "upper", "lower") as devices:
        house.roll_out(MODEL, 1, devices, "100%")
        before = [measured(device, MODEL) for device in devices]
        assert house.roll_out(MODEL, 2, devices, "1,100%")["state"] == "succeeded"
        own = []
        for number, device in enumerate(devices):
            device.wait_for(MODEL, 2, PATIENCE_S)
            said = device.serves(MODEL, verify=True)
            assert said is not None
            assert (said["digest"], said["digest_matches"]) == (release["weights"], True)
            assert measured(device, MODEL) > before[number] + 0.1
            tensors = held(device, 2)
            inputs = tiny_models.samples(150, number)["inputs"]
            for name, wanted in as_torch_estimates(tensors, inputs).items():
                torch.testing.assert_close(tensors[name], wanted, rtol=1e-5, atol=1e-5)
            shown = house.shell.one("device", "show", device.name)
            assert next(on for on in shown["models"] if on["model"] == MODEL)["local"] == LOCAL
            own.append(tensors)
        base = held(devices[0], 1)
        for name in base:
            equal = [torch.equal(*pair) for pair in ((own[0][name], own[1][name]), (own[0][name], base[name]))]
            assert equal == [False, False] if name in LOCAL else equal[0], name
        house.roll_out(MODEL, 1, devices, "100%")
        assert house.roll_out(MODEL, 2, devices, "100%")["state"] == "succeeded"
        for number, device in enumerate(devices):
            device.wait_for(MODEL, 2, PATIENCE_S)
            again = held(device, 2)
            assert all(torch.equal(again[name], own[number][name]) for name in again)
            report = house.shell.one("device", "show", device.name)["reports"][0]
            assert (report["outcome"], report["serving_weights"]) == ("returned", release["weights"])
