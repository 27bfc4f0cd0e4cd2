"""What the demo does, chapter by chapter, with the commands and requests that an operator and an application use."""

import contextlib
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from digits_demo.data import TEST, Digits, clean, drifted, mislabelled

from demo.device import Device
from demo.fault_proxy import FaultProxy
from demo.processes import ROOT, ProcessFailed, environment
from demo.report import BadRelease, DeviceResult, PromiseBroken, Report, versions
from demo.screen import Screen
from demo.server import Server
from demo.shell import Shell

MODEL: Final = "digits"
RECIPE: Final = "digits_demo.model:build"
KEEP: Final = "0.98"
_NAMES: Final = ("gate-1", "gate-2", "gate-3")
_TILTS: Final = (23.0, 25.0, 27.0)
_HOLDOUT_SAMPLES: Final = 130
_SERVE_S: Final = 60.0
_LINK_BYTES_PER_S: Final = 200_000.0
_LINK_LATENCY_S: Final = 0.02
# Downstream bytes at which the bad link is cut: within the base's megabyte, then soon after the update is on its way.
_CUTS: Final = (150_000, 420_000, 700_000)
_CUTS_OF_UPDATE: Final = (500, 1_500, 4_000)


@dataclass(slots=True)
class Place:
    """Where one device stands: what it sees, and how it did.

    Attributes:
        device: the device.
        upright: digits as its camera saw them before it was knocked.
        local: the same as it sees them now; the first are its holdout, the others measure it.
        before: accuracy of the base release on what it sees now.
    """

    device: Device
    upright: Digits
    local: Digits
    before: float = 0.0

    def accuracy(self, digits: Digits) -> float:
        """Return the accuracy of what the device serves, on samples that it does not validate with."""
        kept = slice(_HOLDOUT_SAMPLES, None)
        return self.device.accuracy(MODEL, digits.inputs[kept], digits.labels[kept])


@dataclass(slots=True)
class Story:
    """One run of the demo.

    Args:
        folder: an empty folder for everything it makes.
        screen: where it is told.
    """

    folder: Path
    screen: Screen
    _open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, init=False)

    def tell(self) -> Report:
        """Run it all; every process is stopped at the end, whatever happened.

        Raises:
            ProcessFailed: a program failed.
            PromiseBroken: what sprat promises did not hold.
        """
        with self._open:
            weights = self._train_base()
            server, shell = self._start_server()
            self._register(shell, weights)
            places, link = self._gather_fleet(server, shell)
            self._drift_hurts(places)
            result = self._retrain(shell)
            good = shell.one("release", "show", f"{MODEL}@{result['release']}")
            self._roll_out(shell, places, good, link)
            bad = self._refuse_bad_release(shell)
            devices = [self._verify(place, good, link) for place in places]
            return self._report(result, good, devices, bad)

    def _train_base(self) -> Path:
        self.screen.chapter("The first weights are trained on upright digits")
        weights = self.folder / "base.safetensors"
        words = ["-m", "digits_demo.train_base", str(weights)]
        self.screen.command(["python", *words])
        env = environment(PYTHONPATH=str(ROOT / "examples"))
        ended = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise ProcessFailed(f"training the first weights failed:\n{ended.stderr.strip()}")
        self.screen.say(f"{weights.name}: {weights.stat().st_size:,} bytes")
        return weights

    def _start_server(self) -> tuple[Server, Shell]:
        self.screen.chapter("A server starts: private PostgreSQL, API, one worker")
        more = {"SPRAT_POLL_INTERVAL_S": "1"}
        server = Server(self.folder, recipe_packages="digits_demo", paths=(ROOT / "examples",), more=more)
        self.screen.command(["sprat-server", *server.process.command[1:]])
        self._open.enter_context(server)
        self.screen.say(f"it listens on {server.url}")
        shell = Shell(server.url, server.admin_token, show=self.screen.command, progress=True)
        return server, shell

    def _register(self, shell: Shell, weights: Path) -> None:
        self.screen.chapter("The model is registered: exported to ONNX, compared with torch, signed as release 1")
        words = ["--recipe", RECIPE, "--weights", str(weights), "--example", "1,1,28,28"]
        shell.one("model", "register", MODEL, *words)
        base = shell.one("release", "show", f"{MODEL}@1")
        full = next(update["bytes"] for update in base["updates"] if update["base"] is None)
        self.screen.say(f"{MODEL}@1: {base['model_bytes']:,} bytes of weights; a new device fetches {full:,}")

    def _gather_fleet(self, server: Server, shell: Shell) -> tuple[list[Place], FaultProxy]:
        self.screen.chapter("Three devices join; the third is behind a bad link")
        host, port = server.address
        proxy = FaultProxy((host, port), bytes_per_s=_LINK_BYTES_PER_S, latency_s=_LINK_LATENCY_S, cuts_at=_CUTS)
        link = self._open.enter_context(proxy)
        token = shell.one("enrolment-token", "create", "--uses", "3")["token"]
        places = [self._place(number, server.url, link) for number in range(len(_NAMES))]
        for place in places:
            place.device.enrol(token)
            self._open.enter_context(place.device)
        rollout = self._release_to_fleet(shell, 1, "100%")
        for place in places:
            place.device.wait_for(MODEL, 1, _SERVE_S)
        self.screen.good(
            f"{rollout['committed']} devices serve {MODEL}@1; the bad link carried {link.log.bytes_down:,} bytes"
            f" and was cut {link.log.cuts} times"
        )
        return places, link

    def _place(self, number: int, server_url: str, link: FaultProxy) -> Place:
        name, bad = _NAMES[number], number == len(_NAMES) - 1
        test = clean().part(TEST)
        upright = Digits(test.inputs[number::3], test.labels[number::3], test.split[number::3])
        local = drifted(upright, seed=10 + number, tilt_degrees=_TILTS[number])
        holdout = self.folder / f"{name}-holdout.npz"
        np.savez(holdout, inputs=local.inputs[:_HOLDOUT_SAMPLES], labels=local.labels[:_HOLDOUT_SAMPLES])
        device = Device(
            name,
            self.folder / name,
            link.url if bad else server_url,
            options=("--holdout", f"{MODEL}={holdout}", "--trial-s", "2"),
            link=f"{_LINK_BYTES_PER_S / 1000:.0f} kB/s, {_LINK_LATENCY_S * 1000:.0f} ms" if bad else "direct",
        )
        return Place(device, upright, local)

    def _drift_hurts(self, places: list[Place]) -> None:
        self.screen.chapter("The cameras are knocked: tilted, blurred, less contrast, noise")
        for place in places:
            place.before = place.accuracy(place.local)
            self.screen.say(
                f"{place.device.name}: {place.accuracy(place.upright):.1%} right on upright digits,"
                f" {place.before:.1%} on what it sees now"
            )

    def _retrain(self, shell: Shell) -> dict[str, Any]:
        self.screen.chapter("Retrain on labelled drifted digits, and turn the change into an update")
        result = self._train_release(shell, "drifted", drifted(clean()))
        self.screen.good(
            f"{MODEL}@{result['release']}: an update of [bold]{result['update_bytes']:,} bytes[/bold];"
            f" test accuracy {result['accuracy_base']:.1%} before, {result['accuracy_retrained']:.1%} fully retrained,"
            f" {result['accuracy_released']:.1%} released"
        )
        return result

    def _train_release(self, shell: Shell, name: str, digits: Digits, *how: str) -> dict[str, Any]:
        """Upload a dataset, retrain on it, return what the job found: the same commands for good data and bad."""
        file = self.folder / f"{name}.npz"
        np.savez(file, **digits.arrays())  # type: ignore[arg-type] # numpy's stub takes allow_pickle for a name
        shell.one("dataset", "upload", name, str(file))
        job = shell.one("retrain", MODEL, "--dataset", name, "--keep", KEEP, *how, "--watch")
        result: dict[str, Any] = job["result"]
        return result

    def _release_to_fleet(self, shell: Shell, release: int, waves: str) -> Any:
        """Roll out and watch it as a person would; return how it ended."""
        ended = shell.run("rollout", "create", f"{MODEL}@{release}", "--waves", waves, "--start", "--watch")
        if not ended.stdout:
            raise ProcessFailed(
                f"the rollout of {MODEL}@{release} did not begin: exit code {ended.returncode}, see above"
            )
        return shell.one("rollout", "status", ended.stdout.split()[0])

    def _roll_out(self, shell: Shell, places: list[Place], good: dict[str, Any], link: FaultProxy) -> None:
        self.screen.chapter("It is rolled out: one device first, then all")
        link.cut_after(*_CUTS_OF_UPDATE)
        cuts = link.log.cuts
        rollout = self._release_to_fleet(shell, good["number"], "1,100%")
        if rollout["state"] != "succeeded":
            raise PromiseBroken(f"the rollout of the good release {rollout['state']}: {rollout['reason']}")
        parts = shell.all("rollout", "devices", rollout["id"])
        for wave in rollout["waves"]:
            names = ", ".join(part["name"] for part in parts if part["wave"] == wave["ordinal"])
            self.screen.good(f"wave {wave['ordinal']} {wave['state']}: {names}")
        for place in places:
            place.device.wait_for(MODEL, good["number"], _SERVE_S)
            self.screen.good(
                f"{place.device.name}: {place.before:.1%} right before, {place.accuracy(place.local):.1%} now"
            )
        self.screen.say(f"the bad link was cut {link.log.cuts - cuts} more times")

    def _refuse_bad_release(self, shell: Shell) -> BadRelease:
        self.screen.chapter("Someone mixes up all labels, retrains and rolls out, with the same commands")
        result = self._train_release(shell, "mixed-up", mislabelled(drifted(clean(), seed=1)), "--max-candidates", "2")
        rollout = self._release_to_fleet(shell, result["release"], "1,100%")
        if rollout["state"] != "halted":
            raise PromiseBroken(f"the rollout of the bad release {rollout['state']}; it should have halted")
        parts = shell.all("rollout", "devices", rollout["id"])
        exposed = [part for part in parts if part["exposed_by"] is not None]
        reports = [report for one in exposed for report in shell.one("device", "show", one["name"])["reports"]]
        said = [report for report in reports if report["release"] == result["release"]]
        reason = next((report["error_detail"] for report in said if report["error_detail"]), rollout["reason"])
        self.screen.good(f"{exposed[0]['name']} refused it: {reason}")
        self.screen.good(f"the rollout halted; devices that were offered it: {rollout['exposed']}")
        refused = bool(said) and all(report["outcome"] == "refused" for report in said)
        return BadRelease(refused=refused, devices_exposed=rollout["exposed"], reason=reason)

    def _verify(self, place: Place, good: dict[str, Any], link: FaultProxy) -> DeviceResult:
        """Ask a device for the digest of what it serves, recomputed from the files it has mapped."""
        device = place.device
        device.wait_for(MODEL, good["number"], _SERVE_S)
        said = device.serves(MODEL, verify=True)
        if said is None:
            raise PromiseBroken(f"{device.name} serves nothing")
        bad = device.server_url == link.url
        return DeviceResult(
            name=device.name,
            link=f"{device.link}, cut {link.log.cuts} times" if bad else device.link,
            digest=said["digest"],
            digest_matches=said["digest_matches"] is True and said["digest"] == good["weights"],
            accuracy_before=place.before,
            accuracy_after=place.accuracy(place.local),
        )

    def _report(
        self, result: dict[str, Any], good: dict[str, Any], devices: list[DeviceResult], bad: BadRelease
    ) -> Report:
        self.screen.chapter("What it came to")
        return Report(
            model_bytes=good["model_bytes"],
            update_bytes=result["update_bytes"],
            accuracy_base=result["accuracy_base"],
            accuracy_retrained=result["accuracy_retrained"],
            accuracy_released=result["accuracy_released"],
            recovered_gain=result["recovered_gain"],
            test_indices=result["test_indices"],
            devices=devices,
            bad_release=bad,
            seconds=round(self.screen.seconds, 1),
            versions=versions(),
        )
