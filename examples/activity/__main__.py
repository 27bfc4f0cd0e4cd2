"""`python -m activity`: a model of one's own goes the whole way, with the commands that one types.

Phones tell activities on the belt. Then they are put into a holder that turns them: the model is wrong. It is retrained
on some people's labelled samples, and the update goes to the devices of others.
"""

import contextlib
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from demo.device import Device
from demo.processes import ROOT, ProcessFailed, environment
from demo.server import Server
from demo.shell import Shell

from activity.data import DEVICES, HOLDER, dataset, people

MODEL: Final = "activity"
_PATHS: Final = (ROOT / "examples", ROOT / "benchmarks")
_HOLDOUT: Final = 200  # of each device's samples; the others measure it
_SERVE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """How it went: bytes of the update and of the model, and the devices' accuracy before, after, and undone."""

    update_bytes: int
    model_bytes: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    undone: tuple[float, ...]


def main() -> int:
    """Run it; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="sprat-activity-") as folder:
        try:
            result = tell(Path(folder))
        except ProcessFailed as failed:
            print(failed, file=sys.stderr)
            return 1
    print(f"\nan update of {result.update_bytes:,} bytes for a model of {result.model_bytes:,}")
    for what in ("before", "after", "undone"):
        print(f"{what:<7} {', '.join(f'{share:.1%}' for share in getattr(result, what))} right on the devices")
    return 0


def tell(folder: Path) -> Result:
    """Do it all in an empty folder.

    Raises:
        ProcessFailed: a program failed.
    """
    weights = _train_base(folder)
    server = Server(folder, recipe_packages="activity", paths=_PATHS, more={"SPRAT_POLL_INTERVAL_S": "1"})
    print(f"$ SPRAT_RECIPE_PACKAGES=activity {shlex.join(['sprat-server', *server.process.command[1:]])}")
    with contextlib.ExitStack() as running:
        running.enter_context(server)
        shell = Shell(server.url, server.admin_token, show=_show)

        shell.one(
            "model", "register", MODEL, "--recipe", "activity.model:build", "--weights", str(weights),
            "--example", "1,6,64",
        )  # fmt: skip
        token = shell.one("enrolment-token", "create", "--uses", str(len(DEVICES)))["token"]
        devices = [_device(folder, server.url, person) for person in DEVICES]
        for device, person in zip(devices, DEVICES, strict=True):
            device.enrol(token)
            running.enter_context(device)
            shell.one("device", "label", device.name, "mount=holder", f"person={person}")
        _roll_out(shell, f"{MODEL}@1", "100%")
        before = _measure(devices, 1)

        samples = folder / "holder.npz"
        np.savez(samples, **dataset(HOLDER, turned=True))  # type: ignore[arg-type] # numpy's stub takes allow_pickle for a name
        shell.one("dataset", "upload", "holder", str(samples))
        job = shell.one(
            "retrain", MODEL, "--dataset", "holder", "--keep", "0.95", "--max-epochs", "6", "--max-candidates", "4",
            "--watch",
        )  # fmt: skip
        release = job["result"]["release"]
        rollout = _roll_out(shell, f"{MODEL}@{release}", "1,100%")
        after = _measure(devices, release)
        print(shell.run("rollout", "why", rollout).stdout)
        shell.one("rollout", "undo", rollout, "--reason", "the holders are given back")  # for no bytes
        undone = _measure(devices, 1)
        print(shell.run("report", "savings").stdout)
        made = shell.one("release", "show", f"{MODEL}@{release}")
    return Result(job["result"]["update_bytes"], made["model_bytes"], before, after, undone)


def _train_base(folder: Path) -> Path:
    weights = folder / "belt.safetensors"
    words = ["-m", "activity.train_base", str(weights)]
    _show(["python", *words])
    env = environment(PYTHONPATH=":".join(map(str, _PATHS)))
    ended = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise ProcessFailed(f"training the first weights failed:\n{ended.stderr.strip()}")
    return weights


def _device(folder: Path, url: str, person: int) -> Device:
    windows, labels = people([person], turned=True)
    order = np.random.default_rng(person).permutation(len(labels))[:_HOLDOUT]
    holdout = folder / f"phone-{person}.npz"
    np.savez(holdout, inputs=windows[order], labels=labels[order])
    name = f"phone-{person}"
    return Device(
        name, folder / name, url, options=("--holdout", f"{MODEL}={holdout}", "--trial-s", "1"), link="direct"
    )


def _measure(devices: Sequence[Device], release: int) -> tuple[float, ...]:
    """Return the accuracy of each device once it serves a release, on samples that it does not validate with."""
    shares = []
    for device, person in zip(devices, DEVICES, strict=True):
        device.wait_for(MODEL, release, _SERVE_S)
        windows, labels = people([person], turned=True)
        others = np.random.default_rng(person).permutation(len(labels))[_HOLDOUT:]
        shares.append(device.accuracy(MODEL, windows[others], labels[others]))
    return tuple(shares)


def _roll_out(shell: Shell, release: str, waves: str) -> str:
    """Roll out to the devices in the holder, and wait for the end; return the rollout's id."""
    rollout: dict[str, Any] = shell.one("rollout", "create", release, "--waves", waves, "--start", "--watch")
    return str(rollout["id"])


def _show(words: Sequence[str]) -> None:
    print(f"$ {shlex.join(words)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
