"""Layers shared on a real device: what that saves in memory, what it costs who asks, and a bad plan that goes back."""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Self

import httpx
import numpy as np
import pytest
import tiny_models
from demo.device import Device
from house import PATIENCE_S, House
from safetensors.numpy import load

from sprat_server.db.blobs import Blobs

pytestmark = pytest.mark.e2e
Floats = tiny_models.Floats
ENOUGH = 20  # answers of each model while a plan rolls out
WIDE = (8192, 256)  # inputs, units: 8 MiB
SEEDS = range(int(os.environ.get("SPRAT_CRASH_TIMES", "1")))  # `make crash` has it higher
KILLS = 8


def siblings(names: list[str], *, inputs: int, units: int, apart: float) -> dict[str, dict[str, Floats]]:
    """Return models with heads of their own on trunks that are nearly the same."""
    rng = np.random.default_rng(21)
    trunk = rng.normal(size=(units, inputs)) / np.sqrt(inputs)

    def one() -> dict[str, Floats]:
        noise = apart * np.outer(rng.normal(size=units), rng.normal(size=inputs)) / np.sqrt(inputs)
        made = {
            "0.weight": trunk + noise,
            "0.bias": 0.1 * rng.normal(size=units),
            "2.weight": rng.normal(size=(4, units)) / np.sqrt(units),
            "2.bias": np.zeros(4),
        }
        return {name: array.astype(np.float32) for name, array in made.items()}

    return {name: one() for name in names}


def answers(weights: Mapping[str, Floats], inputs: Floats) -> Any:
    return tiny_models.logits(weights, inputs).argmax(1)


def draw(count: int, inputs: int, seed: int) -> Floats:
    values: Floats = np.random.default_rng(seed).normal(size=(count, inputs)).astype(np.float32)
    return values


class Site:
    """Models that are registered, samples to plan by, and one device that runs all of them."""

    def __init__(self, house: House, prefix: str, *, inputs: int, units: int, apart: float, models: int = 3) -> None:
        self.house, self.shell, self.inputs, self.prefix = house, house.shell, inputs, prefix
        self.folder = house.folder / prefix
        self.folder.mkdir()
        names = [f"{prefix}-{name}" for name in ("face", "gate", "meter")[:models]]
        self.models = siblings(names, inputs=inputs, units=units, apart=apart)
        for name, weights in self.models.items():
            graph = tiny_models.write_graph(self.folder / f"{name}.onnx", weights)
            file = tiny_models.write_weights(self.folder / f"{name}.safetensors", weights)
            self.shell.one("model", "register", name, "--graph", str(graph), "--weights", str(file))
        self.holdouts = {name: self.labelled(name, draw(60, inputs, seed=5)) for name in names}

    def labelled(self, model: str, inputs: Floats) -> Path:
        """Write samples that a model's first release has right."""
        path = self.folder / f"{model}.npz"
        np.savez(path, inputs=inputs, labels=answers(self.models[model], inputs))
        return path

    def plan(self, samples: int, budget: float, levels: int = 3, seed: int = 4) -> dict[str, Any]:
        path = self.folder / "line.npz"
        inputs = draw(samples, self.inputs, seed)
        np.savez(path, inputs=inputs, labels=np.arange(samples) % 4)
        self.shell.one("dataset", "upload", f"{self.prefix}-line", str(path))
        asked = ("--dataset", f"{self.prefix}-line", "--budget", str(budget), "--levels", str(levels))
        made: dict[str, Any] = self.shell.one("sharing", "plan", *self.models, *asked)
        return made

    def apply(self, plan: dict[str, Any], *more: str) -> dict[str, Any]:
        applied: dict[str, Any] = self.shell.one("sharing", "apply", plan["id"], "--waves", "100%", *more)
        return applied

    def status(self, plan: dict[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = self.shell.one("sharing", "status", plan["id"])
        return shown

    @contextmanager
    def device(self) -> Iterator[Device]:
        """Run a device that has brought every model to its first release."""
        token = self.shell.one("enrolment-token", "create", "--uses", "1")["token"]
        options = [word for name, path in self.holdouts.items() for word in ("--holdout", f"{name}={path}")]
        name = f"{self.prefix}-box"
        device = Device(
            name, self.folder / "box", self.house.server.url, options=(*options, "--trial-s", "0.3"), link=""
        )
        device.enrol(token)
        with device:
            for model in self.models:
                self.house.roll_out(model, 1, [device], "100%", "--start")
            for model in self.models:
                device.wait_for(model, 1, PATIENCE_S)
            self.until(lambda: self.knows(name), "the server knows what the device runs")
            yield device

    def knows(self, name: str) -> bool:
        models = self.shell.one("device", "show", name)["models"]
        runs = {one["model"]: one["active"] for one in models}  # of other tests' models too: whole fleets have them
        return all(runs.get(model) == 1 for model in self.models)

    def until(self, holds: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"waited {PATIENCE_S:g} s: {what}"
            time.sleep(0.2)

    def ended(self, plan: dict[str, Any]) -> bool:
        return not {one["state"] for one in self.status(plan)["rollouts"]} & {"draft", "running", "paused"}


class Asking(threading.Thread):
    """Asks each model of a device over and over, and counts who answers and who does not."""

    def __init__(self, device: Device, models: list[str], inputs: Floats) -> None:
        super().__init__(daemon=True)
        self._url, self._models, self._body = device.endpoint, models, {"inputs": inputs[:1].tolist()}
        self._ending = threading.Event()
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self.releases: set[tuple[str, int]] = set()

    def run(self) -> None:
        with httpx.Client(trust_env=False, timeout=30.0) as http:
            while not self._ending.wait(0.01):
                for model in self._models:
                    answer = http.post(f"{self._url}/v1/models/{model}/infer", json=self._body)
                    if answer.is_error:
                        self.failed.append(answer.text)
                    else:
                        self.answered[model] += 1
                        self.releases.add((model, answer.json()["release"]))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join(30)


def memory(device: Device) -> dict[str, int]:
    """Return what of the agent's memory is its own, bytes: each page once in `Pss`, once a mapping in `Rss`.

    Anonymous memory, and files of its folder: pages of libraries count by how many other processes run just now.
    """
    found, own = {"Pss": 0, "Rss": 0}, False
    for line in Path(f"/proc/{device.process.pid}/smaps").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] += 1024 * int(rest.split()[0]) if own else 0
        elif "-" in name.split(" ")[0]:  # addresses, permissions, offset, device, inode, path
            path = "".join(line.split(maxsplit=5)[5:])
            own = not path.startswith("/") or path.startswith(str(device.folder))
    return found


def test_a_plan_saves_the_memory_that_it_says_and_no_request_fails_meanwhile(house: House) -> None:
    inputs, units = WIDE
    site = Site(house, "wide", inputs=inputs, units=units, apart=1e-3)
    plan = site.plan(samples=300, budget=0.1, levels=1)
    assert len(plan["result"]["chosen"]) == 2, plan["result"]["left_out"]
    saved = plan["result"]["saved_bytes"]
    assert saved > 15 << 20
    with site.device() as device:
        for model in site.models:  # what asking takes once and for all is not counted
            device.infer(model, draw(1, inputs, seed=1))
        before = memory(device)
        with Asking(device, list(site.models), draw(1, inputs, seed=1)) as asking:
            applied = site.apply(plan, "--start")
            site.until(lambda: site.ended(plan), "the rollouts end")
            for rollout in applied["rollouts"]:
                device.wait_for(rollout["model"], rollout["release"], PATIENCE_S)
            shared = {(one["model"], one["release"]) for one in applied["rollouts"]}
            site.until(lambda: shared <= asking.releases, "the shared releases answer")
            site.until(
                lambda: min(asking.answered[model] for model in site.models) > ENOUGH, "each model has answered often"
            )
        assert asking.failed == []
        site.until(lambda: before["Pss"] - memory(device)["Pss"] > 0.9 * saved, f"{before} becomes {memory(device)}")
        fell = before["Pss"] - memory(device)["Pss"]
        assert fell == pytest.approx(saved, rel=0.1), f"{before} became {memory(device)}"
        assert {one["state"] for one in site.status(plan)["rollouts"]} == {"succeeded"}


def test_a_plan_that_is_bad_for_a_devices_own_data_takes_itself_back_level_by_level(house: House) -> None:
    site = Site(house, "odd", inputs=16, units=32, apart=0.1, models=2)
    plan = site.plan(samples=900, budget=0.2)
    (one,) = plan["result"]["chosen"]
    top, low = one["levels"][0], one["levels"][-1]
    assert (top["form"], low["form"]) == ("tie", "residual")
    own, donor = site.models[one["recipient"]], site.models[one["donor"]]
    tied = {**own, "0.weight": donor["0.weight"]}
    lower = load(Blobs.open(str(house.server.data / "blobs")).read(low["weights_blob"], max_bytes=1 << 20))
    left = own["0.weight"] - lower["donor/0.weight"]
    factors = lower["residual/0.weight/u"].astype(np.float32) @ lower["residual/0.weight/v"].astype(np.float32)
    scale = (left * factors).sum() / (factors * factors).sum()  # the graph has it
    residual = {**own, "0.weight": lower["donor/0.weight"] + scale * factors}
    many = draw(60_000, 16, seed=8)
    odd = many[(answers(tied, many) != answers(own, many)) & (answers(residual, many) == answers(own, many))]
    site.holdouts[one["recipient"]] = site.labelled(one["recipient"], np.concatenate([odd[:60], many[:60]]))
    applied = site.apply(plan)
    numbers = {each["level"]: each["release"] for each in applied["releases"]}
    with site.device() as device:
        house.shell.one("rollout", "start", applied["rollouts"][0]["id"], "--reason", "a test")
        device.wait_for(one["recipient"], numbers[low["level"]], PATIENCE_S / 3)
        site.until(lambda: site.ended(plan), "the rollout ends")
        status = site.status(plan)
        (standing,) = status["standing"]
        assert {each["level"]: each["devices"] for each in standing["levels"]}[low["level"]] == 1
        assert standing["nothing"] == 0
        assert [each["state"] for each in status["rollouts"]] == ["succeeded"]
        refused = [each for each in house.shell.one("device", "show", device.name)["reports"] if each["error_code"]]
        assert [each["error_code"] for each in refused] == ["validation.worse"] * (low["level"] - 1)
        house.shell.one("sharing", "undo", plan["id"], "--reason", "a test")
        device.wait_for(one["recipient"], 1, PATIENCE_S)


def under_way(device: Device) -> list[str]:
    """Return the states of the updates that a device has begun and not ended."""
    journal = json.loads((device.folder / "journal.json").read_text(encoding="utf-8"))
    return [one["state"] for one in journal["models"].values() if one["state"] != "idle"]


def wait_until_one_is_under_way(device: Device, timeout_s: float) -> None:
    """Wait for an update, which takes less than a second; for so long, since there may be none any more."""
    end = time.monotonic() + timeout_s
    while not under_way(device) and time.monotonic() < end:
        time.sleep(0.005)


@pytest.mark.crash
@pytest.mark.parametrize("seed", SEEDS)
def test_an_agent_killed_in_the_middle_of_a_plan_serves_each_model_wholly(house: House, seed: int) -> None:
    site = Site(house, f"kill{seed}", inputs=16, units=32, apart=1e-4)
    plan = site.plan(samples=600, budget=0.1, seed=100 + seed)
    moments = Random(f"kills {seed}")
    with site.device() as device:
        digests = {(model, 1): house.shell.one("release", "show", f"{model}@1")["weights"] for model in site.models}
        applied = site.apply(plan)
        shared = {one["model"]: one["release"] for one in applied["rollouts"]}
        digests |= {
            (one["recipient"], shared[one["recipient"]]): one["levels"][0]["weights"]
            for one in plan["result"]["chosen"]
        }
        starts = [house.shell.begin("rollout", "start", one["id"], "--reason", "a test") for one in applied["rollouts"]]
        killed: list[str] = []
        for _ in range(KILLS):
            wait_until_one_is_under_way(device, 1.2 if killed else PATIENCE_S)
            time.sleep(moments.uniform(0.0, 0.25))
            device.process.kill()
            killed += under_way(device)
            device.process.start()
            for model in site.models:
                said = device.process.until(lambda m=model: device.serves(m, verify=True), "an answer", PATIENCE_S)
                assert said["digest_matches"]
                assert said["digest"] == digests[model, said["release"]]
        for start in starts:
            _, error = start.communicate(timeout=PATIENCE_S)
            assert start.returncode == 0, error
        assert killed, "no kill hit an update under way"
        site.until(lambda: site.ended(plan), "the rollouts end")
        states = {one["model"]: one["state"] for one in site.status(plan)["rollouts"]}
        for model, state in states.items():
            assert state in {"succeeded", "halted"}, "three cuts of one trial go back"
            device.wait_for(model, shared[model] if state == "succeeded" else 1, PATIENCE_S)
