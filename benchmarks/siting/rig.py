"""A real site: a server and agents as processes, each device in a network namespace with a quota of CPU time."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self, TypeVar

from demo.processes import ROOT, Program, environment, program
from demo.server import Server
from demo.shell import Shell
from links.star import Place, Star
from links.tun import Shape

from siting.quotas import Quota, processors

T = TypeVar("T")
SITE: Final = "bench"
CLOUD: Final = "cloud"
"""The device beside the server, behind its thin link."""
_PORT: Final = 8478
_READY_S: Final = 900.0
_FAST: Final = Shape(bytes_per_s=125e6)

_MODELS: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    "vision": ("vision", ["picture=1,3,{side},{side}:U8"]),
    "words": ("words", ["ids=1,{words}:I64", "mask=1,{words}:I64"]),
    "voice": ("voice", ["mel=1,{frames},40"]),
    "kinds-head": ("head", ["features=1,1280"]),
    "topic-head": ("head", ["features=1,384"]),
    "language-head": ("head", ["features=1,256"]),
    "find-head": ("find", ["picture=1,1280", "words=1,384"]),
    "sort-head": ("sort", ["picture=1,1280", "words=1,384"]),
}
"""Model -> its recipe in `siting.networks`, and its inputs."""
_INPUTS: Final[Mapping[str, str]] = {
    "picture": "uint8[n, 3, {side}, {side}]",
    "ids": "int64[n, {words}]",
    "mask": "int64[n, {words}]",
    "mel": "float32[n, {frames}, 40]",
    "seen": "float32[n, 1280]",
    "read": "float32[n, 384]",
    "heard": "float32[n, 256]",
}
_SEE: Final = {"model": "vision", "inputs": {"picture": "picture"}}
_READ: Final = {"model": "words", "inputs": {"ids": "ids", "mask": "mask"}}
_HEAR: Final = {"model": "voice", "inputs": {"mel": "mel"}}
STEPS: Final[Mapping[str, Sequence[str]]] = {
    "kinds": ["see", "kinds-tell"],
    "find": ["see", "read", "find-tell"],
    "sort": ["see", "read", "sort-tell"],
    "topic": ["read", "topic-tell"],
    "language": ["hear", "language-tell"],
}
"""Each task as single steps, each a task of its own: what an application asks that has no parallel routing."""


def tasks(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tasks, and their single steps as tasks, as a task file has them."""
    found: dict[str, Any] = {
        "see": _task(given, {"see": _SEE}, {"seen": "see.features"}),
        "read": _task(given, {"read": _READ}, {"read": "read.embedding"}),
        "hear": _task(given, {"hear": _HEAR}, {"heard": "hear.embedding"}),
    }
    for name, encoder, ports, output in (
        ("kinds", {"see": _SEE}, {"features": "see.features"}, "logits"),
        ("topic", {"read": _READ}, {"features": "read.embedding"}, "logits"),
        ("language", {"hear": _HEAR}, {"features": "hear.embedding"}, "logits"),
        ("find", {"see": _SEE, "read": _READ}, {"picture": "see.features", "words": "read.embedding"}, "match"),
        ("sort", {"see": _SEE, "read": _READ}, {"picture": "see.features", "words": "read.embedding"}, "logits"),
    ):
        head = {"model": f"{name}-head", "inputs": ports}
        found[name] = _task(given, {**encoder, "tell": head}, {output: f"tell.{output}"})
        ended = {"see.features": "seen", "read.embedding": "read", "hear.embedding": "heard"}
        alone = {"model": f"{name}-head", "inputs": {port: ended[source] for port, source in ports.items()}}
        found[f"{name}-tell"] = _task(given, {"tell": alone}, {output: f"tell.{output}"})
    return found


def _task(given: Mapping[str, Any], steps: Mapping[str, Any], outputs: Mapping[str, str]) -> dict[str, Any]:
    sources = {source for step in steps.values() for source in step["inputs"].values() if "." not in source}
    return {
        "inputs": {name: _INPUTS[name].format(**given) for name in sorted(sources)},
        "steps": dict(steps),
        "outputs": dict(outputs),
        "deadline_s": 5.0,
    }


class Rig:
    """The site, from an empty folder to enrolled agents; a context manager that ends all of it.

    Args:
        folder: of everything.
        given: `given.yaml`.
        trained: folder of `siting.heads.write`.
        told: is told what goes on.

    Raises:
        OSError: privileges are missing.
    """

    def __init__(self, folder: Path, given: Mapping[str, Any], trained: Path, told: Callable[[str], None]) -> None:
        self.given, self.told = given, told
        self._folder, self._trained = folder, trained
        self.shapes = {name: _shapes(one) for name, one in given["devices"].items()}
        self.shapes[CLOUD] = _shapes(given["server"])
        self.star = Star(dict.fromkeys(self.shapes, (_FAST, _FAST)))
        self.server = Server(
            folder,
            recipe_packages="siting",
            paths=(ROOT / "benchmarks", ROOT / "examples"),
            more={
                "SPRAT_HOST": "0.0.0.0",
                "SPRAT_INSECURE": "1",
                "SPRAT_POLL_INTERVAL_S": "1",
                "SPRAT_CLOCK_INTERVAL_S": "1",
            },
        )
        self.agents: dict[str, Program] = {}
        self.quotas: dict[str, Quota] = {}
        self.done: dict[str, Any] = {}
        self.scratch, self.models = folder, list(_MODELS)
        self.faults: Sequence[str] = ()  # the only ones that are tried; none: all
        self._limited = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.star)
            stack.callback(self.server.process.stop)
            self.at(CLOUD, _giving_way, self.server.start)
            port = self.server.address[1]
            self._shell = Shell(f"http://127.0.0.1:{port}", self.server.admin_token)
            self.url = f"http://{self.place(CLOUD).address}:{port}"
            self._register()
            cores = self._cores()
            on = processors({name: cores[name] for name in self.given["devices"]})
            for name in cores:  # the one beside the server works only where no other one does
                self.quotas[name] = stack.enter_context(Quota(name, cores[name], on.get(name, min(on.values()))))
                self._enrol(name)
                stack.callback(self.agents[name].stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def devices(self) -> list[str]:
        """Return the names of all devices, the one beside the server too."""
        return list(self.shapes)

    def _cores(self) -> dict[str, float]:
        return {name: one["cores"] for name, one in self.given["devices"].items()} | {
            CLOUD: self.given["server"]["cores"]
        }

    def place(self, name: str) -> Place:
        """Return where a device is."""
        return self.star.places[name]

    def at(self, name: str, work: Callable[..., T], *words: Any, **more: Any) -> T:
        """Do something in the network of a device; what it starts is there too."""
        return self.place(name).inside.submit(work, *words, **more).result()

    def sprat(self, *words: str, codes: Sequence[int] = (0,)) -> Any:
        """Run `sprat` beside the server; return its one result."""
        return self.at(CLOUD, _giving_way, self._shell.one, *words, codes=codes)

    def folder_of(self, name: str) -> Path:
        """Return the agent's folder of a device."""
        return self._folder / name

    def fast(self) -> None:
        """Make all links fast, for what is not measured."""
        for place in self.star.places.values():
            place.up = place.down = _FAST

    def limit(self) -> None:
        """Make links and quotas what they are given to be; until then they are fast, and there are none."""
        self._limited = True
        for name, agent in self.agents.items():
            self.quotas[name].add(agent.pid)
        self.thin()
        uplink = self.given["server"]["down_mbit"]  # what all devices fetch with, together
        self.sprat("site", "edit", SITE, "--uplink", str(uplink), *self._site())

    def thin(self) -> None:
        """Make the links what they are given to be."""
        for name, (up, down) in self.shapes.items():
            self.place(name).up, self.place(name).down = up, down

    def _register(self) -> None:
        trained = json.loads((self._trained / "trained.json").read_text())
        for model, (recipe, inputs) in _MODELS.items():
            self.told(f"register {model}")
            config = trained[model.removesuffix("-head")]["config"] if model.endswith("-head") else {}
            examples = [word for one in inputs for word in ("--example", one.format(**self.given))]
            weights = str(self._trained / f"{model}.safetensors")
            words = ["--recipe", f"siting.networks:{recipe}", "--config", json.dumps(config), "--weights", weights]
            self.sprat("model", "register", model, *words, *examples)
        file = self._folder / "tasks.json"
        file.write_text(json.dumps(tasks(self.given)))  # YAML too, and without aliases
        self.at(CLOUD, self._shell.all, "task", "create", str(file))

    def _enrol(self, name: str) -> None:
        self.told(f"enrol {name}")
        token = self.sprat("enrolment-token", "create", "--uses", "1")["token"]
        place, folder = self.place(name), str(self.folder_of(name))
        words = ["enrol", "--server", self.url, "--token", token, "--dir", folder, "--name", name, "--insecure"]
        self.at(
            name,
            subprocess.run,
            [program("sprat-agent"), *words],
            env=environment(),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        listen = ["--site-listen", f"{place.address}:{_PORT}", "--trial-s", "0.5"]
        command = [program("sprat-agent"), "run", "--dir", folder, *listen]
        self.agents[name] = Program(f"agent {name}", command, log=self._folder / f"{name}.log", env=environment())
        self.start(name)

    def start(self, name: str) -> None:
        """Start the agent of a device."""
        self.at(name, self.agents[name].start)
        if self._limited:
            self.quotas[name].add(self.agents[name].pid)

    def create_site(self) -> None:
        """Make the site of all devices, once each has said where it is reached."""
        self.sprat("site", "create", SITE, *self._site())

    def _site(self) -> list[str]:
        words = []
        for name, (up, down) in self.shapes.items():
            said = f"up={up.bytes_per_s * 8e-6:g},down={down.bytes_per_s * 8e-6:g},delay={up.delay_s * 1000:g}"
            memory = self.given["devices"].get(name, {}).get("memory", "4GB")
            words += ["--device", f"{name}:memory={memory},{said}"]
        return words

    def plan(self, *words: str, seconds: float = _READY_S) -> dict[str, Any]:
        """Make a plan of all tasks, single steps too, and have it serve; return how it stands."""
        named = [word for task in tasks(self.given) for word in ("--task", task)]
        return self.apply(self.sprat("site", "plan", SITE, *named, *words), seconds=seconds)

    def apply(self, plan: Mapping[str, Any], *, seconds: float = _READY_S) -> dict[str, Any]:
        """Apply a plan, and wait until all serve by it; return how it stands."""
        title = f"{SITE}/{plan['number']}"
        begun = time.monotonic()
        self.sprat("site", "apply", title)
        while time.monotonic() < begun + seconds:
            stands: dict[str, Any] = self.sprat("site", "status", title)
            if stands["state"] == "serving":
                self.told(f"{title} serves after {time.monotonic() - begun:.1f} s")
                return stands
            if stands["state"] in {"failed", "aborted"}:
                break
            time.sleep(0.5)
        raise RuntimeError(f"{title} does not serve: {json.dumps(stands)[:2000]}")

    def ask(self, name: str, inputs: Path, tasks_: Sequence[str], *words: str) -> list[dict[str, Any]]:
        """Let an application on a device ask; return what it printed. `words` are more of `siting.asker`'s."""
        return answers_of(self.begin_to_ask(name, inputs, tasks_, *words))

    def begin_to_ask(self, name: str, inputs: Path, tasks_: Sequence[str], *words: str) -> "Asking":
        """Start an application that asks; `answers_of` waits for it."""
        command = [sys.executable, "-m", "siting.asker", str(self.folder_of(name)), str(inputs), *words]
        command += [word for task in tasks_ for word in ("--task", task)]
        path = f"{ROOT / 'benchmarks'}:{ROOT / 'examples'}:{environment()['PYTHONPATH']}"
        said = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads meanwhile is full at some point
        process = self.at(name, subprocess.Popen, command, env=environment(PYTHONPATH=path), stdout=said, text=True)
        return Asking(process, said)

    def memory(self, name: str) -> dict[str, int]:
        """Return the bytes of a device's agent: `Pss`, and of it `Private`, each page counted once."""
        said = Path(f"/proc/{self.agents[name].pid}/smaps_rollup").read_text()
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in said.splitlines()[1:] if ":" in line}
        return {"Pss": found["Pss"], "Private": found["Private_Clean"] + found["Private_Dirty"]}


@dataclass(frozen=True, slots=True)
class Asking:
    """An application that asks.

    Attributes:
        process: of it.
        said: file of all that it prints.
    """

    process: "subprocess.Popen[str]"
    said: IO[bytes]


def answers_of(asking: Asking) -> list[dict[str, Any]]:
    """Return what an application printed, once it ended."""
    with asking.said as file:
        status = asking.process.wait()
        file.seek(0)
        said = file.read().decode()
    if status:
        raise RuntimeError(f"an application that asks ended with status {status}")
    return [json.loads(line) for line in said.splitlines()]


def _giving_way(work: Callable[..., T], *words: Any, **more: Any) -> T:
    """Do the work of what is on this machine only here, server and commands: it takes nothing from the devices."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, 10)
    try:
        return work(*words, **more)
    finally:
        os.setpriority(os.PRIO_PROCESS, thread, 0)


def _shapes(one: Mapping[str, Any]) -> tuple[Shape, Shape]:
    delay = one["delay_ms"] / 1000
    return (
        Shape(delay_s=delay, bytes_per_s=one["up_mbit"] * 1e6 / 8),
        Shape(delay_s=delay, bytes_per_s=one["down_mbit"] * 1e6 / 8),
    )
