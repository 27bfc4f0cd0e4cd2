"""A server and devices as real processes on loopback."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_models
from demo.device import Device
from demo.server import Server
from demo.shell import Shell

HERE = Path(__file__).parent
PATIENCE_S = 90.0


@dataclass
class House:
    """One server, the shell of its operator, and a folder for everything."""

    folder: Path
    server: Server
    shell: Shell

    def register(self, model: str) -> None:
        """Register the tiny network from ONNX, with worn weights, as release 1."""
        weights = tiny_models.write_weights(self.folder / f"{model}.safetensors", tiny_models.worn())
        graph = tiny_models.write_graph(self.folder / f"{model}.onnx", tiny_models.worn())
        self.shell.one("model", "register", model, "--graph", str(graph), "--weights", str(weights))

    def release(self, model: str, weights: tiny_models.Weights) -> dict[str, Any]:
        """Make the next release from weights; returns it."""
        file = tiny_models.write_weights(self.folder / "new.safetensors", weights)
        job = self.shell.one("release", "create", model, "--weights", str(file))
        release: dict[str, Any] = self.shell.one("release", "show", f"{model}@{job['result']['release']}")
        return release

    def roll_out(self, model: str, release: int, devices: list[Device], waves: str, *words: str) -> Any:
        """Roll out to these devices; returns the rollout as the command printed it."""
        named = [word for device in devices for word in ("--device", device.name)]
        codes = (0, 1)
        return self.shell.one(
            "rollout", "create", f"{model}@{release}", "--waves", waves, *named, *(words or ("--watch",)), codes=codes
        )

    @contextlib.contextmanager
    def devices(
        self, model: str, *names: str, server_url: str | None = None, right: tiny_models.Weights | None = None
    ) -> Iterator[list[Device]]:
        """Enrol and run devices with a holdout each; `right` says its labels, if not the truth."""
        token = self.shell.one("enrolment-token", "create", "--uses", str(len(names)))["token"]
        with contextlib.ExitStack() as stack:
            made = []
            for number, name in enumerate(names):
                holdout = tiny_models.write_samples(self.folder / f"{name}.npz", count=150, seed=number, right=right)
                options = ("--holdout", f"{model}={holdout}", "--trial-s", "0.3")
                url = server_url or self.server.url
                device = Device(name, self.folder / name, url, options=options, link="")
                device.enrol(token)
                made.append(stack.enter_context(device))
            yield made


def make_server(folder: Path, port: int = 0) -> Server:
    """A server on a folder; on its old one after a kill."""
    more = {"SPRAT_POLL_INTERVAL_S": "1", "SPRAT_CLOCK_INTERVAL_S": "2"}
    return Server(folder, recipe_packages="tiny_recipe", paths=(HERE,), port=port, more=more)


def measured(device: Device, model: str, right: tiny_models.Weights | None = None) -> float:
    """The accuracy of what a device serves, on samples that nobody else has."""
    test = tiny_models.samples(500, 99, right)
    return device.accuracy(model, test["inputs"], test["labels"])  # type: ignore[arg-type]
