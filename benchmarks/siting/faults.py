"""What applications see while devices of a site die, hang, slow down, are cut off, are replaced, or are updated.

Five applications ask at the rates of their tasks, 20 requests a second together, each with the deadline that is
given. Every answer is held against what the plan that gave it must answer; nothing wrong may ever come.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from demo.processes import environment, program
from links.tun import Shape
from safetensors.torch import load_file, save_file

from siting.measures import Found, entry, placed
from siting.rig import SITE, STEPS, Rig, answers_of

_SAMPLES: Final = 16
_QUIET_S, _BROKEN_S, _AFTER_S = 4.0, 10.0, 6.0
_VICTIM: Final = "box"
_SURVIVE: Final = ("--survive-one", "--replicas", "3")
_TOLD_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of the requests while something was done to the site.

    Attributes:
        requests: of all tasks.
        wrong: answers that are not those of their plan, or of several plans.
        late: answers or errors after the deadline.
        unnamed: errors without a code of sites.
        failed: errors.
        fallback: answers of a fallback.
        within: share answered within the deadline, from `recovery_s` after the fault on.
        recovery_s: from the fault to the last request that was not answered in time, by when it was sent.
        why: how often each error was said, by its first words.
    """

    requests: int
    wrong: int
    late: int
    unnamed: int
    failed: int
    fallback: int
    within: float
    recovery_s: float
    why: dict[str, int]


def faults(rig: Rig, trained: Path) -> Found:
    """All faults, one after the other, each healed before the next."""
    stands = placed(rig, trained, *_SURVIVE)
    wanted = {stands["number"]: expected(rig, trained)}
    rig.told(f"hosts: {json.dumps({one['model']: one['hosts'] for one in stands['modules']})}")
    found: dict[str, Any] = {}
    all_: dict[str, Callable[[], Seen]] = {
        name: lambda way=way: seen(rig, trained, wanted, *way)  # type: ignore[misc]
        for name, way in _faults(rig).items()
    }
    all_["vision updated"] = lambda: _update(rig, trained, wanted)
    all_["box replaced"] = lambda: _replaced(rig, trained, wanted)
    for name, one in all_.items():
        if not rig.faults or name in rig.faults:
            found[name] = one()
            rig.told(f"{name}: {found[name]}")
    lines = ["", f"Under {rig.given['rate']} requests a second, deadline {rig.given['deadline_ms']} ms:", ""]
    lines += [
        "| what | requests | wrong | late | errors without a name | failed | in time after 2 s | recovered after, s |"
    ]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {name} | {one.requests} | {one.wrong} | {one.late} | {one.unnamed} | {one.failed} | "
        f"{100 * one.within:.1f} % | {one.recovery_s:.1f} |"
        for name, one in found.items()
    ]
    return {name: {key: getattr(one, key) for key in Seen.__slots__} for name, one in found.items()}, lines


def expected(rig: Rig, trained: Path) -> dict[str, dict[int, Any]]:
    """Return what each task answers of each sample under the plan that serves now, asked twice: both are the same."""
    found: dict[str, dict[int, Any]] = {}
    for task in STEPS:
        words = ("--count", str(2 * _SAMPLES), "--samples", str(_SAMPLES), "--keep")
        found[task] = {}
        for one in rig.ask(entry(rig, task), trained / f"{task}.npz", [task], *words):
            value = np.asarray(next(iter(one["outputs"].values())))
            before = found[task].setdefault(one["sample"], value)
            if np.abs(before - value).max() > rig.given["tolerance"]:
                raise RuntimeError(f"{task}: sample {one['sample']} was answered in two ways while nothing was broken")
    return found


def _faults(rig: Rig) -> Mapping[str, tuple[Callable[[], None], Callable[[], None]]]:
    victim = rig.agents[_VICTIM]
    place = rig.place(_VICTIM)
    usual = (place.up, place.down)

    def slow() -> None:
        place.up = place.down = Shape(delay_s=0.4, bytes_per_s=50_000)

    def as_before() -> None:
        place.up, place.down = usual

    def stop(sent: signal.Signals) -> None:
        os.kill(victim.pid, sent)

    def start() -> None:
        victim.stop()
        rig.start(_VICTIM)

    return {
        "nothing": (lambda: None, lambda: None),
        "box killed": (victim.kill, start),
        "box stopped (SIGSTOP)": (
            lambda: os.kill(victim.pid, signal.SIGSTOP),
            lambda: os.kill(victim.pid, signal.SIGCONT),
        ),
        "box behind a slow link": (slow, as_before),
        "box cut off": (lambda: setattr(place, "out", True), lambda: setattr(place, "out", False)),
    }


def _replaced(rig: Rig, trained: Path, wanted: Mapping[int, Any]) -> Seen:
    """Have a device die and another one take its place, which is of a plan in the end."""
    found = seen(rig, trained, wanted, rig.agents[_VICTIM].kill, lambda: _replace(rig))
    rig.fast()
    _wait_for_address(rig)
    placed(rig, trained, *_SURVIVE)
    rig.thin()
    return found


def _replace(rig: Rig) -> None:
    """Have another device take the place of the one that is gone; it is of the next plan."""
    token = rig.sprat("device", "replace", _VICTIM)["token"]
    folder = rig.folder_of(_VICTIM)
    folder.rename(folder.with_name(f"{_VICTIM}-gone"))
    words = ["enrol", "--server", rig.url, "--token", token, "--dir", str(folder), "--name", _VICTIM, "--insecure"]
    command = [program("sprat-agent"), *words]
    rig.at(_VICTIM, subprocess.run, command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    rig.start(_VICTIM)


def _wait_for_address(rig: Rig) -> None:
    """Wait until the server was told where the new device is reached."""
    deadline = time.monotonic() + _TOLD_S
    while "site-address" not in rig.sprat("device", "show", _VICTIM)["attributes"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{_VICTIM} did not say where it is reached")
        time.sleep(1.0)


def _update(rig: Rig, trained: Path, wanted: dict[int, Any]) -> Seen:
    """Switch to a plan with a new release of a module that three tasks use, under load."""
    state = load_file(trained / "vision.safetensors")
    for name, tensor in state.items():
        if name.endswith("weight") and tensor.dim() == 1:  # scales of norms
            state[name] = tensor * 1.02
    file = rig.scratch / "vision-2.safetensors"
    save_file(state, file)
    rig.sprat("release", "create", "vision", "--weights", str(file), "--lossless")
    plans: list[dict[str, Any]] = []
    found = seen(rig, trained, wanted, lambda: plans.append(placed(rig, trained, *_SURVIVE)), lambda: None, later=True)
    wanted[plans[0]["number"]] = expected(rig, trained)
    return replace(found, wrong=_wrong(rig, _LAST, wanted))


_LAST: list[tuple[str, dict[str, Any]]] = []


def seen(
    rig: Rig,
    trained: Path,
    wanted: Mapping[int, Any],
    break_: Callable[[], None],
    heal: Callable[[], None],
    *,
    later: bool = False,
) -> Seen:
    """Ask while something is broken and healed; return what came.

    Args:
        rig: the site.
        trained: where the samples are.
        wanted: plan -> task -> sample -> what it must answer.
        break_: done after some seconds,
        heal: and some seconds later.
        later: what came is compared by the caller, who then knows the plan that began meanwhile.
    """
    weights = {task: one["weight"] for task, one in rig.given["tasks"].items()}
    whole_s, deadline_s = _QUIET_S + _BROKEN_S + _AFTER_S, rig.given["deadline_ms"] / 1000
    asking = {}
    for task, weight in weights.items():
        rate = rig.given["rate"] * weight / sum(weights.values())
        words = ("--rate", f"{rate:g}", "--count", str(round(rate * whole_s)), "--samples", str(_SAMPLES), "--keep")
        more = ("--deadline-s", str(deadline_s))
        asking[task] = rig.begin_to_ask(entry(rig, task), trained / f"{task}.npz", [task], *words, *more)
    time.sleep(_QUIET_S)
    broken = time.time()
    break_()
    time.sleep(max(0.0, broken + _BROKEN_S - time.time()))
    heal()
    came = [(task, one) for task, process in asking.items() for one in answers_of(process)]
    _LAST[:] = came
    bad = [one for _, one in came if "error" in one]
    late = [one for _, one in came if one["seconds"] > deadline_s + 0.1]  # of the application and its loopback
    missed = [one["at"] for one in (*bad, *late) if one["at"] >= broken - deadline_s]
    after = [one for _, one in came if one["at"] >= broken + rig.given["recovery_s"]]
    good = [one for one in after if "error" not in one and one["seconds"] <= deadline_s + 0.1]
    return Seen(
        requests=len(came),
        wrong=0 if later else _wrong(rig, came, wanted),
        late=len(late),
        unnamed=sum(not one["error"].startswith("site.") for one in bad),
        failed=len(bad),
        fallback=sum(bool(one.get("fallback")) for _, one in came),
        within=len(good) / max(1, len(after)),
        recovery_s=max([0.0, *(at - broken for at in missed)]),
        why=dict(Counter(re.sub(r"[0-9.]+", "#", one["detail"])[:160] for one in bad)),
    )


def _wrong(rig: Rig, came: list[tuple[str, dict[str, Any]]], wanted: Mapping[int, Any]) -> int:
    """Count the answers that are not those of the one plan that they name."""
    wrong = 0
    for task, one in came:
        if "error" in one:
            continue
        right = None
        with suppress(KeyError, ValueError):
            [plan] = one["plans"]
            right = wanted[int(plan.removeprefix(f"{SITE}/"))][task][one["sample"]]
        value = np.asarray(next(iter(one["outputs"].values())))
        wrong += right is None or bool(np.abs(right - value).max() > rig.given["tolerance"])
    return wrong
