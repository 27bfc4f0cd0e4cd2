"""The command `sprat-agent`: enrol, run, install, retry, infer, tuf; `on_site` has the others."""

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.logs import log_json_to_stderr
from sprat_client.agent.on_site import ON_SITE, add_on_site, run_on_site
from sprat_client.agent.settings import AgentSettings, GuardSettings, SiteSettings, StatisticsSettings
from sprat_client.agent.version import VERSION
from sprat_shared.errors import InvalidInput, SpratError
from sprat_shared.ids import check_model_name

_LEAST_INPUTS: Final = 2
_EXIT_CODES: Final = """\
exit codes:
  0    done; with `run`: every assignment is fulfilled
  1    an assignment failed on this device (disk, memory, holdout samples); the old release serves;
       `doctor`: something is bad
  2    the command line is wrong
  65   what was given cannot be used
  66   not enrolled, or no agent runs on the folder
  73   already enrolled, or another agent runs on the folder; `rollback`: nothing to go back to
  75   link or server are not ready, or a condition is not met (`enrol`, `run --once`); the agent is busy
  76   an update was refused or went back; the old release serves
  77   the server does not accept the token
  74   the disk fails: nothing can be read or written
  78   the folder's files cannot be read: they are damaged, or a newer agent wrote them
  79   a step was stuck, and the agent ended itself: start it again
"""


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="sprat-agent",
        description="Keeps this device's models up to date over a thin link, and serves them to local applications.",
        epilog="example:\n  sprat-agent enrol --server https://sprat.example --token TOKEN --dir /var/lib/sprat\n"
        "  sprat-agent run --dir /var/lib/sprat\n\n" + _EXIT_CODES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"sprat-agent {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, example: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=text, epilog=f"example:\n  {example}\n\n{_EXIT_CODES}", formatter_class=raw
        )
        added.add_argument("--dir", type=Path, required=True, metavar="D", help="folder of this device's agent")
        return added

    enrol = command(
        "enrol",
        "Join the fleet, with an enrolment token or by waiting until an operator accepts the device.",
        "sprat-agent enrol --server https://sprat.example --token TOKEN --dir /var/lib/sprat --name gate-7",
    )
    enrol.add_argument(
        "--server", required=True, metavar="URL", help="https://host[:port]; plain http to loopback only"
    )
    how = enrol.add_mutually_exclusive_group(required=True)
    how.add_argument("--token", metavar="T", help="enrolment token; - reads it from stdin")
    how.add_argument(
        "--wait",
        action="store_true",
        help="without a token: print the key's fingerprint and wait for `sprat device accept`",
    )
    enrol.add_argument("--name", metavar="N", help="what people call the device (default: the host's name)")
    enrol.add_argument(
        "--profile", metavar="P", help="the class of devices that it is of; assignments for another one are refused"
    )
    enrol.add_argument("--ca", metavar="FILE", help="trust these certificates (PEM) instead of the system's")
    enrol.add_argument("--insecure", action="store_true", help="allow plain http to other machines")
    enrol.add_argument("--json", action="store_true", help="print one JSON object")

    run = command(
        "run",
        "Poll, update, and serve until stopped.",
        "sprat-agent run --dir /var/lib/sprat --holdout pcb-defects=/var/lib/sprat-holdout/pcb",
    )
    run.add_argument(
        "--once", action="store_true", help="stop when nothing is left to do; the exit code says how it went"
    )
    run.add_argument(
        "--holdout",
        action="append",
        default=[],
        type=_of_model,
        metavar="MODEL=PATH",
        help="labelled samples that new releases must not do worse on: a file or folder of .npz or .safetensors with "
        "`inputs` and `labels` (repeatable)",
    )
    run.add_argument(
        "--unlabelled",
        action="append",
        default=[],
        type=_of_model,
        metavar="MODEL=PATH",
        help="inputs without labels, likewise: what is local in a release is computed from these and the holdout's "
        "(repeatable)",
    )
    run.add_argument(
        "--least-inputs",
        type=int,
        default=StatisticsSettings().least,
        metavar="N",
        help="with fewer inputs a release with local statistics is refused (default: %(default)s)",
    )
    run.add_argument(
        "--port", type=int, default=0, help="of the loopback endpoint (default: any free one, see endpoint.json)"
    )
    run.add_argument(
        "--poll-interval-s", type=_positive, metavar="S", help="ask so often (default: as the server says)"
    )
    run.add_argument(
        "--hooks",
        type=Path,
        metavar="H",
        help="executables named like states, run on entering them, and STATE.after",
    )
    run.add_argument(
        "--trial-s", type=_positive, default=5.0, metavar="S", help="a trial without an error ends after so long"
    )
    run.add_argument("--trial-requests", type=int, default=100, metavar="N", help="or after so many requests")
    run.add_argument(
        "--site-listen",
        metavar="HOST:PORT",
        help="where other devices of a site reach this one, by TLS (default: they do not)",
    )
    run.add_argument(
        "--site-address",
        metavar="HOST:PORT",
        help="what they are told instead, where --site-listen is 0.0.0.0 or behind a translation of addresses",
    )
    run.add_argument(
        "--site-mdns",
        action="store_true",
        help="say by mDNS, on the local network, where this device listens, and look there for those of the site that "
        "do not answer where the plan says; needs sprat[mdns]",
    )
    run.add_argument(
        "--site-report-s",
        type=_positive,
        default=SiteSettings().report_s,
        metavar="S",
        help="the server hears at most so often that modules or links of the site take longer, or less, than before, "
        "and twelve times as often where that doubled or halved (default: %(default)s)",
    )
    run.add_argument(
        "--guard-every",
        type=_count,
        default=GuardSettings().every,
        metavar="N",
        help="of a release that shares layers compare one request of so many, drawn at random, with the release that "
        "shares nothing; 0: none (default: %(default)s)",
    )
    run.add_argument(
        "--guard-idle-s",
        type=_positive,
        default=GuardSettings().idle_s,
        metavar="S",
        help="when no application asked for so long (default: %(default)s)",
    )

    install = commands.add_parser(
        "install",
        parents=[run],  # what it installs is judged and tried as by `run`
        conflict_handler="resolve",
        add_help=False,
        help="Install what a bundle holds for this device, without the network.",
        description="Installs what a bundle holds for this device, verified as over the network, and never touches the "
        "network. No agent may run on the folder meanwhile: stop it first, and start it again after.",
        epilog="example:\n  sprat-agent install /media/usb/line-3.bundle --dir /var/lib/sprat\n\n" + _EXIT_CODES,
        formatter_class=raw,
    )
    install.add_argument("bundle", type=Path, metavar="BUNDLE", help="file that `sprat bundle export` wrote")

    add_on_site(command, _of_model)

    retry = command(
        "retry",
        "Let releases that failed too often on this device be tried again.",
        "sprat-agent retry --dir /var/lib/sprat pcb-defects",
    )
    retry.add_argument("model", type=check_model_name, metavar="MODEL", help="name of the model")
    retry.add_argument("--json", action="store_true", help="print one JSON object")

    _add_tuf(commands, raw)

    infer = command(
        "infer",
        "Ask a task of the site, or a model, of the running agent; print the outputs and who answered.",
        "sprat-agent infer --dir /var/lib/sprat find --input image=image.npy --input words=words.npy",
    )
    infer.add_argument("task", nargs="?", metavar="TASK", help="name of the task")
    infer.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="an input of the task: .npy, or .safetensors with one tensor (repeatable)",
    )
    infer.add_argument("--deadline-s", type=_positive, metavar="S", help="of the task (default: as its plan says)")
    infer.add_argument("--model", metavar="M", help="name of the model, in the place of a task")
    infer.add_argument("--inputs", type=Path, metavar="FILE", help=".npz with the array `inputs`, (batch, ...)")
    return parser


def _add_tuf(commands: Any, raw: Any) -> None:
    tuf = commands.add_parser(
        "tuf",
        help="Drive the trust store by itself, as the TUF conformance suite does.",
        description="Drives the agent's trust store, fetcher and downloader on any TUF repository, by the protocol of "
        "theupdateframework/tuf-conformance (CLIENT-CLI.md).",
        epilog="example:\n  sprat-agent tuf --metadata-dir D init root.json\n"
        "  sprat-agent tuf --metadata-dir D --metadata-url https://tuf.example/metadata refresh\n\n"
        "exit codes:\n  0    done\n  1    refused, or not reached; what was trusted before still is\n"
        "  2    the command line is wrong\n",
        formatter_class=raw,
    )
    tuf.add_argument("--metadata-dir", type=Path, required=True, metavar="D", help="folder of the trusted metadata")
    tuf.add_argument("--metadata-url", metavar="U", help="where the repository's metadata are")
    tuf.add_argument("--target-name", action="append", default=[], metavar="T", help="a target's path (repeatable)")
    tuf.add_argument("--target-base-url", metavar="B", help="where the repository's targets are")
    tuf.add_argument("--target-dir", type=Path, metavar="X", help="folder for verified targets")
    doing = tuf.add_subparsers(dest="doing", required=True, metavar="DO")
    init = doing.add_parser("init", help="Take a root as the start of trust.")
    init.add_argument("root", type=Path, metavar="ROOT", help="file with the signed root metadata")
    doing.add_parser("refresh", help="Bring the metadata up to date.")
    doing.add_parser("download", help="Bring them up to date, then fetch and verify the targets.")


def _tuf(asked: argparse.Namespace) -> int:
    from sprat_client.agent.conformance import ConformanceClient  # noqa: PLC0415

    client = ConformanceClient(asked.metadata_dir)
    try:
        if asked.doing == "init":
            client.init(asked.root.read_bytes())
        elif asked.metadata_url is None:
            raise InvalidInput(f"{asked.doing}: --metadata-url is needed")
        elif asked.doing == "refresh":
            client.refresh(asked.metadata_url)
        elif not asked.target_name or asked.target_base_url is None or asked.target_dir is None:
            raise InvalidInput("download: --target-name, --target-base-url and --target-dir are needed")
        else:
            client.download(asked.metadata_url, asked.target_name, asked.target_base_url, asked.target_dir)
    except (SpratError, OSError) as bad:
        sys.stderr.write(f"sprat-agent: {bad}\n")
        return 1
    return 0


def _of_model(text: str) -> tuple[str, Path]:
    model, equals, path = text.partition("=")
    if not equals or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: write MODEL=PATH")
    try:
        return check_model_name(model), Path(path)
    except SpratError as bad:
        raise argparse.ArgumentTypeError(str(bad)) from None


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a positive number of seconds is needed")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}: a number from 0 is needed")
    return value


def _emit(value: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value) + "\n")
        return
    for name, said in value.items():
        rows = said.items() if isinstance(said, dict) and all(isinstance(row, dict) for row in said.values()) else []
        if not rows:
            sys.stdout.write(f"{name:<16} {said if isinstance(said, str) else json.dumps(said)}\n")
        for row, facts in rows:  # a table such as `models`: one line for each
            told = "  ".join(f"{key} {_brief(fact)}" for key, fact in facts.items() if fact not in (None, [], {}))
            sys.stdout.write(f"{f'{name} {row}':<16} {told}\n")


def _brief(fact: Any) -> str:
    """Return a fact for people: of a release its number and the start of its digest, of a guard what it has seen."""
    match fact:
        case {"release": number, "weights": str(weights), "local": list(local)}:
            own = f", {len(local)} local tensors" if local else ""
            return f"release {number} ({weights.removeprefix('sha256:')[:12]}{own})"
        case {
            "donor": donor,
            "budget": budget,
            "compared": compared,
            "disagreed": differ,
            "e_value": e,
            "blind": blind,
        }:
            told = f"shares with {donor}, {differ} of {compared} answers differ, {budget:.2%} may, e-value {e:.3g}"
            return told if blind is None else f"{told}, blind: {blind}"
        case str(text):
            return text
        case _:
            return json.dumps(fact)


def _enrol(asked: argparse.Namespace) -> int:
    from sprat_client.agent.durable import PosixDisk  # noqa: PLC0415  # `--help` loads nothing of this
    from sprat_client.agent.enrol import enrol  # noqa: PLC0415

    token = sys.stdin.readline().strip() if asked.token == "-" else asked.token  # noqa: S105
    identity = enrol(
        asked.dir,
        PosixDisk(),
        server_url=asked.server,
        token=token,
        name=asked.name,
        profile=None if asked.profile is None else check_model_name(asked.profile),
        ca_file=asked.ca,
        insecure=asked.insecure,
        waiting=lambda answer: _say_waiting(answer.fingerprint),
    )
    said = {"device": str(identity.device), "name": identity.name, "server": identity.server_url, "dir": str(asked.dir)}
    _emit(said, as_json=asked.json)
    return 0


def _say_waiting(fingerprint: str) -> None:
    sys.stderr.write(
        f"waiting to be accepted; this device's key is {fingerprint}\n"
        "compare it with what `sprat device pending` shows, then: sprat device accept ID\n"
    )
    sys.stderr.flush()


def _run(asked: argparse.Namespace) -> int:
    from sprat_client.agent.loop import Agent  # noqa: PLC0415
    from sprat_client.agent.watchdog import Watchdog  # noqa: PLC0415

    for option, given in (("--holdout", asked.holdout), ("--unlabelled", asked.unlabelled)):
        for model, path in given:
            if not path.exists():
                raise InvalidInput(f"{option} {model}={path}: no such file or folder")
    if asked.least_inputs < _LEAST_INPUTS:
        raise InvalidInput(f"--least-inputs {asked.least_inputs}: statistics need {_LEAST_INPUTS} inputs or more")
    if asked.hooks is not None and not asked.hooks.is_dir():
        raise InvalidInput(f"--hooks {asked.hooks}: no such folder")
    settings = AgentSettings(
        folder=asked.dir,
        holdouts=dict(asked.holdout),
        unlabelled=dict(asked.unlabelled),
        hooks=None if asked.hooks is None else asked.hooks.resolve(),
        port=asked.port,
        poll_interval_s=asked.poll_interval_s,
        trial_s=asked.trial_s,
        trial_requests=asked.trial_requests,
        statistics=replace(StatisticsSettings(), least=asked.least_inputs),
        site=replace(
            SiteSettings(),
            listen=asked.site_listen,
            address=asked.site_address,
            mdns=asked.site_mdns,
            report_s=asked.site_report_s,
        ),
        guard=replace(GuardSettings(), every=asked.guard_every, idle_s=asked.guard_idle_s),
    )
    if asked.command == "install":
        return _install(asked.bundle, replace(settings, port=None, site=SiteSettings()))
    with Watchdog() as watchdog, Agent(settings, watchdog=watchdog) as agent:
        if threading.current_thread() is threading.main_thread():
            for stop in (signal.SIGTERM, signal.SIGINT):
                signal.signal(stop, lambda *_: agent.stop())
        return agent.run(once=asked.once)


def _install(path: Path, settings: AgentSettings) -> int:
    from sprat_client.agent.bundle_file import BundleFile  # noqa: PLC0415
    from sprat_client.agent.loop import Agent  # noqa: PLC0415

    with BundleFile(path) as bundle, Agent(settings, offline=True) as agent:
        code = agent.install(bundle)
        for ended in agent.settled:
            why = "" if ended.error_code is None else f": {ended.error_code}"
            sys.stdout.write(f"{ended.model}@{ended.release} {ended.outcome.value}{why}\n")
        if not agent.settled:
            sys.stdout.write("nothing in it is new to this device\n")
    return code


def _retry(asked: argparse.Namespace) -> int:
    from sprat_client.agent.retry import retry  # noqa: PLC0415

    _emit(retry(asked.dir, asked.model), as_json=asked.json)
    return 0


def _infer(asked: argparse.Namespace) -> int:
    import numpy as np  # noqa: PLC0415

    from sprat_client.agent.endpoint import Endpoint  # noqa: PLC0415

    if (asked.task is None) == (asked.model is None):
        raise InvalidInput("infer: name a task, or --model and --inputs")
    if asked.task is not None:
        from sprat_client.agent.input_files import read_inputs  # noqa: PLC0415

        given = read_inputs(asked.input)
        with Endpoint(asked.dir) as endpoint:
            told = endpoint.infer_task(asked.task, given, deadline_s=asked.deadline_s)
        _emit({**told.summary(), "outputs": {k: v.tolist() for k, v in told.outputs.items()}}, as_json=True)
        return 0
    if asked.inputs is None:
        raise InvalidInput("infer: --inputs FILE is needed with --model")
    try:
        with np.load(asked.inputs, allow_pickle=False) as arrays:
            inputs = arrays["inputs"]
    except (OSError, ValueError, KeyError) as bad:
        raise InvalidInput(f"--inputs {asked.inputs}: {bad}") from bad
    with Endpoint(asked.dir) as endpoint:
        answer = endpoint.infer(asked.model, inputs)
    outputs = {name: output.tolist() for name, output in answer.outputs.items()}
    _emit({"model": asked.model, "release": answer.release, "outputs": outputs}, as_json=True)
    return 0


_COMMANDS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "enrol": _enrol,
    "run": _run,
    "install": _run,
    "retry": _retry,
    "infer": _infer,
    "tuf": _tuf,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    asked = _parser().parse_args(arguments)
    log_json_to_stderr()
    try:
        return run_on_site(asked, _emit) if asked.command in ON_SITE else _COMMANDS[asked.command](asked)
    except SpratError as bad:
        if getattr(asked, "json", False):
            sys.stdout.write(json.dumps({"error": {"code": bad.code, "detail": str(bad)}}) + "\n")
        sys.stderr.write(f"sprat-agent: {bad}\n")
        return bad.exit_code
    except OSError as bad:
        sys.stderr.write(f"sprat-agent: {bad}: the disk fails, or the folder is not this user's\n")
        return os.EX_IOERR
