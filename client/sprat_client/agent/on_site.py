"""The commands of whoever stands beside a device: status, doctor, events, facts, pause, resume, rollback, relocate."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from sprat_shared.errors import InvalidInput
from sprat_shared.ids import check_model_name
from sprat_shared.protocol.facts_report import LONGEST_KEY, LONGEST_VALUE

_UNITS_S: Final[Mapping[str, float]] = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FOR_EVER_S: Final = 10 * 365 * 86400.0
_FACTS: Final = ("metered", "charging", "idle")
_WORDS: Final[Mapping[str, bool | None]] = {"yes": True, "no": False, "unknown": None}


class AddCommand(Protocol):
    """Adds a command with `--dir` to the parser."""

    def __call__(self, name: str, text: str, example: str) -> argparse.ArgumentParser:
        """Return the parser of the command."""


def add_on_site(command: AddCommand, of_model: Callable[[str], tuple[str, Path]]) -> None:
    """Add the commands to the parser."""
    example = "sprat-agent {} --dir /var/lib/sprat"
    status = command(
        "status",
        "Say what serves, what each model waits for, what failed here, and what is not believed.",
        example.format("status") + " --json",
    )
    doctor = command(
        "doctor",
        "Look at all that an agent needs, and say of what is not right what to do. Exit code 1: something is bad.",
        example.format("doctor"),
    )
    doctor.add_argument(
        "--holdout", action="append", default=[], type=of_model, metavar="MODEL=PATH", help="as `run` takes it"
    )
    doctor.add_argument("--hooks", type=Path, metavar="H", help="likewise; a running agent says both itself")
    events = command("events", "Print what happened on this device, oldest first.", example.format("events --follow"))
    events.add_argument("--follow", action="store_true", help="and go on with what happens, until stopped")
    facts = command(
        "facts",
        "Say, or show, what the owner knows of the device; policies may ask for it. `unknown` leaves it to the kernel.",
        example.format("facts --metered yes"),
    )
    for name, what in (
        ("metered", "its link is paid by the byte"),
        ("charging", "it runs on mains, or its battery is being charged"),
        ("idle", "nobody asks its models just now"),
    ):
        facts.add_argument(f"--{name}", choices=list(_WORDS), help=what)
    facts.add_argument(
        "--attribute",
        action="append",
        default=[],
        type=_attribute,
        metavar="NAME=VALUE",
        help="for the filters of operators, such as camera=imx219; `camera-` removes it; may be repeated",
    )
    pause = command(
        "pause",
        "Let no update be worked on; what serves serves on, and polls and reports go on.",
        example.format("pause --for 2h"),
    )
    pause.add_argument(
        "--for", dest="for_s", type=_duration, metavar="T", help="such as 90s, 30m, 2h, 7d (default: until `resume`)"
    )
    resume = command("resume", "End a pause.", example.format("resume"))
    rollback = command(
        "rollback",
        "Go back to the release in the other slot, now. The server is told; only a newer assignment changes it again.",
        "sprat-agent rollback pcb-defects --dir /var/lib/sprat",
    )
    rollback.add_argument("model", type=check_model_name, metavar="MODEL", help="name of the model")
    relocate = command(
        "relocate",
        "Ask the server at another address from now on, without joining again; half a download goes on there.",
        example.format("relocate --server https://new.example"),
    )
    relocate.add_argument("--server", required=True, metavar="URL", help="https://host[:port]")
    relocate.add_argument("--ca", metavar="FILE", help="trust these certificates (PEM) instead of those trusted now")
    relocate.add_argument("--insecure", action="store_true", help="allow plain http to other machines")
    for parser in (status, doctor, events, facts, pause, resume, rollback, relocate):
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object" + " a line" * (parser is events)
        )


def run_on_site(asked: argparse.Namespace, emit: Callable[..., None]) -> int:
    """Run one of these commands; return its exit code."""
    return ON_SITE[asked.command](asked, emit)


def as_owner(folder: Path) -> Path:
    """Become the folder's owner where this is root and the owner is not, and return the folder as that one reaches it.

    A file that root wrote there could not be read by the agent; and the folder may lie where only root can walk.
    """
    try:
        owner = folder.stat()
    except OSError:
        return folder  # whatever opens it says what is wrong
    if os.geteuid() != 0 or owner.st_uid == 0:
        return folder
    os.chdir(folder)
    os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)
    return Path()


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None or not 0 < (value := float(found[1]) * _UNITS_S[found[2]]) <= _FOR_EVER_S:
        raise argparse.ArgumentTypeError(f"{text!r}: write 90s, 30m, 2h or 7d")
    return value


def _status(asked: argparse.Namespace, emit: Callable[..., None]) -> int:
    from sprat_client.agent.status import read_status  # noqa: PLC0415  # `--help` loads nothing of this

    emit(read_status(asked.dir), as_json=asked.json)
    return 0


def _doctor(asked: argparse.Namespace, emit: Callable[..., None]) -> int:
    from sprat_client.agent.doctor import BAD, examine  # noqa: PLC0415  # likewise

    findings = examine(as_owner(asked.dir), dict(asked.holdout), asked.hooks)
    if asked.json:
        emit({"checks": [finding.as_json() for finding in findings]}, as_json=True)
    else:
        for finding in findings:
            todo = f"\n{'':<20}{finding.todo}" if finding.todo else ""
            sys.stdout.write(f"{finding.level:<5}{finding.check:<15}{finding.said}{todo}\n")
    return int(any(finding.level == BAD for finding in findings))


def _events(asked: argparse.Namespace, _emit: Callable[..., None]) -> int:
    from sprat_client.agent.events import follow_events, read_events  # noqa: PLC0415  # likewise
    from sprat_client.agent.identity import Identity  # noqa: PLC0415  # likewise

    Identity.load(asked.dir)
    try:
        for event in follow_events(asked.dir) if asked.follow else read_events(asked.dir):
            sys.stdout.write((json.dumps(event) if asked.json else _line(event)) + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 0
    return 0


def _line(event: Mapping[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event.get("time", 0)))
    more = "  ".join(f"{key} {value}" for key, value in event.items() if key not in {"time", "event"})
    return f"{at}Z  {event.get('event', '?'):<12} {more}"


def _facts(asked: argparse.Namespace, emit: Callable[..., None]) -> int:
    from sprat_client.agent.attributes import owners_attributes  # noqa: PLC0415  # likewise
    from sprat_client.agent.control import give_order  # noqa: PLC0415  # likewise
    from sprat_client.agent.durable import PosixDisk, write_json  # noqa: PLC0415  # likewise
    from sprat_client.agent.facts import FACTS_FILE, DeviceFacts, read_facts  # noqa: PLC0415  # likewise
    from sprat_client.agent.identity import Identity  # noqa: PLC0415  # likewise

    folder = as_owner(asked.dir)
    Identity.load(folder)
    told: dict[str, Any] = {name: _WORDS[word] for name in _FACTS if (word := getattr(asked, name)) is not None}
    if asked.attribute:
        attributes = owners_attributes(folder) | dict(asked.attribute)
        told["attributes"] = {key: value for key, value in attributes.items() if value is not None} or None
    if told:
        said = {**read_facts(folder), **told}
        write_json(PosixDisk(), folder / FACTS_FILE, {name: value for name, value in said.items() if value is not None})
        give_order(folder, {"do": "look"})
    facts, words = DeviceFacts(folder), {value: word for word, value in _WORDS.items()}
    shown: dict[str, Any] = {name: words[getattr(facts, name)] for name in _FACTS}
    emit(shown | {"attributes": owners_attributes(folder)}, as_json=asked.json)
    return 0


def _attribute(text: str) -> tuple[str, str | None]:
    name, is_set, value = text.partition("=")
    if not is_set and name.endswith("-"):
        name, value = name[:-1], ""
    elif not is_set or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=VALUE, or NAME- to remove it")
    if not 0 < len(name) <= LONGEST_KEY or len(value) > LONGEST_VALUE or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"{text[:60]!r}: a name has at most {LONGEST_KEY} characters, a value {LONGEST_VALUE}"
        )
    return name, value or None


def _pause(asked: argparse.Namespace, emit: Callable[..., None]) -> int:
    from sprat_client.agent.control import give_order  # noqa: PLC0415  # likewise
    from sprat_client.agent.durable import PosixDisk  # noqa: PLC0415  # likewise
    from sprat_client.agent.identity import Identity  # noqa: PLC0415  # likewise
    from sprat_client.agent.journal import Journal  # noqa: PLC0415  # likewise
    from sprat_client.agent.lock import FolderLock  # noqa: PLC0415  # likewise

    folder = as_owner(asked.dir)
    Identity.load(folder)
    until = None if asked.command == "resume" else time.time() + (asked.for_s or _FOR_EVER_S)
    if give_order(folder, {"do": "resume"} if until is None else {"do": "pause", "until": until}) is None:
        with FolderLock(folder / "run.lock"):
            Journal(folder / "journal.json", PosixDisk()).pause(until)
    if until is None:
        emit({"paused": "no"}, as_json=asked.json)
    else:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until))
        emit({"paused": "until resumed" if asked.for_s is None else f"until {at}"}, as_json=asked.json)
    return 0


def _rollback(asked: argparse.Namespace, emit: Callable[..., None]) -> int:
    from sprat_client.agent.control import give_order  # noqa: PLC0415  # likewise

    folder = as_owner(asked.dir)
    order = {"do": "rollback", "model": asked.model}
    done = give_order(folder, order)
    if done is None:
        from sprat_client.agent.loop import Agent  # noqa: PLC0415  # likewise
        from sprat_client.agent.settings import AgentSettings  # noqa: PLC0415  # likewise

        with Agent(AgentSettings(folder=folder, port=None)) as agent:
            done = agent.orders.obey(order)
    emit(done, as_json=asked.json)
    return 0


def _relocate(asked: argparse.Namespace, emit: Callable[..., None]) -> int:
    from sprat_client.agent.durable import PosixDisk  # noqa: PLC0415  # likewise
    from sprat_client.agent.relocate import relocate  # noqa: PLC0415  # likewise

    if asked.ca is not None and not Path(asked.ca).is_file():
        raise InvalidInput(f"--ca {asked.ca}: no such file")
    ca_file = None if asked.ca is None else str(Path(asked.ca).resolve())
    folder = as_owner(asked.dir)
    moved = relocate(folder, PosixDisk(), server_url=asked.server, ca_file=ca_file, insecure=asked.insecure)
    emit({"device": str(moved.device), "name": moved.name, "server": moved.server_url}, as_json=asked.json)
    return 0


ON_SITE: Final[Mapping[str, Callable[[argparse.Namespace, Callable[..., None]], int]]] = {
    "status": _status,
    "doctor": _doctor,
    "events": _events,
    "facts": _facts,
    "pause": _pause,
    "resume": _pause,
    "rollback": _rollback,
    "relocate": _relocate,
}
