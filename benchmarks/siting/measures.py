"""What is measured at a site: each part sets up the plans that it compares, and says what it found as rows."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from demo.processes import environment

from siting import heads, networks
from siting.rig import CLOUD, SITE, STEPS, Rig

Found = tuple[dict[str, Any], list[str]]
_WARM: Final = 10
_MEASURED: Final = 20
_TOLD_S: Final = 120.0  # until what was measured is told
ENCODERS: Final = ("vision", "words", "voice")


def entry(rig: Rig, task: str) -> str:
    """Return the device at which a task is asked."""
    return str(rig.given["tasks"][task]["from"])


def asked(
    rig: Rig, trained: Path, task: str, *, count: int, steps: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Ask for a task where it arises, after some that do not count; all must be answered."""
    words = ("--count", str(_WARM + count))
    found = rig.ask(entry(rig, task), trained / f"{task}.npz", steps or [task], *words)[_WARM:]
    wrong = [one for one in found if "error" in one]
    if wrong:
        raise RuntimeError(f"{task}: {len(wrong)} of {count} were not answered, the first: {wrong[0]}")
    return found


def exactness(rig: Rig, trained: Path) -> Found:
    """Whether the site's answers are those of the unsplit model, module by module on different devices."""
    everywhere(rig)
    told = json.loads((trained / "trained.json").read_text())
    models, found = heads.encoders(), {}
    for task in STEPS:
        with np.load(trained / f"{task}.npz") as arrays:
            samples = {name: arrays[name][:32] for name in arrays.files}
        head = getattr(networks, told[task]["factory"])(told[task]["config"]).eval()
        head.load_state_dict(_weights(trained / f"{task}-head.safetensors"))
        wanted = _unsplit(models, head, samples).numpy()
        worst = 0.0
        for one in rig.ask(entry(rig, task), trained / f"{task}.npz", [task], "--count", "32", "--keep"):
            got = np.asarray(next(iter(one["outputs"].values())))[0]
            worst = max(worst, float(np.abs(got - wanted[one["sample"]]).max()))
        found[task] = worst
    goal = rig.given["tolerance"]
    lines = ["", f"Largest difference to the unsplit model (goal {goal:g}):"]
    return found, lines + [f"  {task:10} {worst:.2e}" for task, worst in found.items()]


def _weights(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file  # noqa: PLC0415 - of the server's extra

    return load_file(file)


def _unsplit(models: Mapping[str, Any], head: Any, samples: Mapping[str, Any]) -> torch.Tensor:
    given = {name: torch.from_numpy(array) for name, array in samples.items()}
    features = []
    with torch.inference_mode():
        if "picture" in given:
            features.append(models["vision"](given["picture"])["features"])
        if "ids" in given:
            features.append(models["words"](given["ids"], given["mask"])["embedding"])
        if "mel" in given:
            features.append(models["voice"](given["mel"])["embedding"])
        answer: torch.Tensor = next(iter(head(*features).values()))
    return answer


def everywhere(rig: Rig) -> None:
    """Have all modules on all devices, where they are not yet: fast links bring them, then the links are as given."""
    if "everywhere" not in rig.done:
        rig.create_site()
        rig.plan(*(word for model in rig.models for word in ("--hosts", f"{model}={','.join(rig.devices)}")))
        rig.limit()
        rig.done["everywhere"] = True


def seconds(rig: Rig, trained: Path) -> dict[str, dict[str, float]]:
    """Return the median seconds of one run of each module on each device, as `sprat site measures` tells them.

    Each device is asked for all tasks under its quota, and answers by its own modules.
    """
    if "seconds" in rig.done:
        found: dict[str, dict[str, float]] = rig.done["seconds"]
        return found
    everywhere(rig)
    for device in rig.devices:
        for task in STEPS:
            rig.ask(device, trained / f"{task}.npz", [task], "--count", str(_MEASURED))
        rig.told(f"asked on {device}")
    found = {model: {} for model in rig.models}
    for one in _known(rig):
        found[one["model"]][one["device"]] = one["seconds"]["value"]
    rig.done["seconds"] = found
    return found


def _known(rig: Rig) -> list[dict[str, Any]]:
    """Return what is known of each module on each device, once all of it was measured in service."""
    begun = time.monotonic()
    while True:
        known: list[dict[str, Any]] = rig.sprat("site", "measures", SITE)["modules"]
        if not (unknown := [one for one in known if not _ran(one)]):
            return known
        if time.monotonic() > begun + _TOLD_S:
            one = unknown[0]
            raise RuntimeError(f"{one['model']} on {one['device']} is not measured in service: {one['seconds']}")
        time.sleep(1.0)


def _ran(cell: Mapping[str, Any]) -> bool:
    """Return whether a module was measured on a device as it ran there, and not only as it was loaded."""
    figure = cell["seconds"]
    return figure is not None and figure["origin"] == "measured" and figure["p90"] is not None


def placed(rig: Rig, trained: Path, *more: str) -> dict[str, Any]:
    """Place by what devices measured, on the site proper, and serve so; return how the plan stands."""
    seconds(rig, trained)
    on = ",".join(device for device in rig.devices if device != CLOUD)
    at = []
    weights = sum(one["weight"] for one in rig.given["tasks"].values())
    for task, one in rig.given["tasks"].items():
        at += ["--at", f"{task}={one['from']}", "--rate", f"{task}={rig.given['rate'] * one['weight'] / weights:g}"]
    named = [word for task in rig.given["tasks"] for word in ("--task", task)]
    made = rig.sprat("site", "plan", SITE, *named, "--on", on, *at, *more)
    rig.told(f"placed: {json.dumps(made['placement'])}")
    return rig.apply(made)


def latency(rig: Rig, trained: Path) -> Found:
    """Latency of each task: as sprat places it, one step after the other, all on one device, behind the thin link."""
    count = int(rig.given["requests"])
    found: dict[str, Any] = {"seconds": seconds(rig, trained)}
    alone = {task: [task] for task in STEPS}
    ways_: list[tuple[str, Callable[[], Any], Mapping[str, Sequence[str]]]] = [
        ("sprat", lambda: rig.done.update(placed=placed(rig, trained)), alone),
        ("one step after the other", lambda: _by_steps(rig), STEPS),
        ("all on box", lambda: _all_on(rig, "box"), alone),
        ("server behind the link", lambda: _all_on(rig, CLOUD), alone),
    ]
    for name, plan, steps in ways_:
        plan()
        rows = {}
        for task in STEPS:
            took = [one["seconds"] for one in asked(rig, trained, task, count=count, steps=steps[task])]
            rows[task] = {"p50": float(np.percentile(took, 50)), "p95": float(np.percentile(took, 95))}
        found[name] = rows
        rig.told(f"latency: {name}")
    ways = [name for name in found if name != "seconds"]
    weights = {task: one["weight"] for task, one in rig.given["tasks"].items()}
    mean = {
        name: sum(weights[task] * found[name][task]["p50"] for task in STEPS) / sum(weights.values()) for name in ways
    }
    found["weighted"] = mean
    lines = [
        "",
        f"Latency, ms, median and 95th percentile of {count} requests:",
        "",
        "| task | " + " | ".join(ways) + " |",
    ]
    lines += ["|---|" + "---:|" * len(ways)]
    lines += [
        f"| {task} | "
        + " | ".join(f"{1000 * found[way][task]['p50']:.0f} / {1000 * found[way][task]['p95']:.0f}" for way in ways)
        + " |"
        for task in STEPS
    ]
    lines += ["| weighted median | " + " | ".join(f"{1000 * mean[way]:.0f}" for way in ways) + " |"]
    saved = 1 - mean["sprat"] / mean["server behind the link"]
    return found, [*lines, "", f"Against the server behind its link: {-100 * saved:.1f} % (goal: -57 % or less)."]


def _by_steps(rig: Rig) -> dict[str, Any]:
    """Serve single steps, from the same devices as the plan that was placed."""
    hosts = {one["model"]: ",".join(one["hosts"]) for one in rig.done["placed"]["modules"]}
    return rig.plan(*(word for model, on in hosts.items() for word in ("--hosts", f"{model}={on}")))


def _all_on(rig: Rig, device: str) -> dict[str, Any]:
    return rig.plan(*(word for model in rig.models for word in ("--hosts", f"{model}={device}")))


_LOAD: Final = """
import sys
from pathlib import Path
from sprat_client.runtime.onnxruntime_host import OnnxRuntime
import numpy, onnxruntime
def pss():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
OnnxRuntime
before = pss()
held = []
for folder in sys.argv[1:]:
    host = OnnxRuntime().load(Path(folder))
    shapes = {one.name: [1 if n is None else n for n in one.shape] for one in host.inputs}
    host.run({one.name: numpy.zeros(shapes[one.name], one.dtype) for one in host.inputs})
    held.append(host)
print((pss() - before) * 1024)
"""


def memory(rig: Rig, _trained: Path) -> Found:
    """Memory of all modules once, against each task with modules of its own, each in a process of its own."""
    everywhere(rig)
    own_folders = rig.folder_of("box") / "models"
    folders = {model: rig.scratch / "copies" / model for model in rig.models}
    for model, folder in folders.items():  # what the agent maps as well would count by half
        shutil.copytree(next((own_folders / model).rglob("graph.onnx")).parent, folder)

    def loaded(models: Sequence[str]) -> int:
        command = [sys.executable, "-c", _LOAD, *(str(folders[model]) for model in models)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        return int(done.stdout)

    own = {task: loaded([one for one in ENCODERS if one in _needs(task)] + [f"{task}-head"]) for task in STEPS}
    shared = loaded(list(rig.models))
    saved = 1 - shared / sum(own.values())
    found = {"each by itself": own, "sum": sum(own.values()), "shared": shared, "saved": saved}
    lines = ["", "Memory, MB above an idle runtime:"]
    lines += [f"  {task:10} by itself {nbytes / 1e6:7.1f}" for task, nbytes in own.items()]
    said = f"{sum(own.values()) / 1e6:.1f}, modules once {shared / 1e6:.1f}: {-100 * saved:.1f} %"
    lines += [f"  all, each with modules of its own {said} (goal: -60 % or less)"]
    return found, lines


def _needs(task: str) -> set[str]:
    return {{"see": "vision", "read": "words", "hear": "voice"}.get(step, f"{task}-head") for step in STEPS[task]}


PARTS: Final[Mapping[str, Callable[[Rig, Path], Found]]] = {
    "memory": memory,
    "exactness": exactness,
    "latency": latency,
}
