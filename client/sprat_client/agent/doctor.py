"""What an agent needs, looked at one by one: each finding says what is so, and of what is not right what to do."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.control import give_order
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.identity import Identity, load_key
from sprat_client.agent.journal import Journal
from sprat_client.agent.lock import is_locked
from sprat_client.agent.releases import Shelf
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.states import State
from sprat_client.agent.store import StoreCorrupted, TensorStore
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.store import TrustStore
from sprat_shared.errors import SpratError
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY

OK, WARN, BAD = "ok", "warn", "bad"
_TIMEOUT_S: Final = 10.0
_RESTART: Final = "restart the agent: it mends what it can"
_CLOCK_OFF_S: Final = 600.0
_ENDS_SOON_S: Final = 14 * 86400.0
_SPACE_FOR_UPDATES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: `ok`, `warn` or `bad`, what is so, and what to do."""

    check: str
    level: str
    said: str
    todo: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the JSON object."""
        return asdict(self)


def examine(folder: Path, holdouts: Mapping[str, Path], hooks: Path | None) -> list[Finding]:
    """Look at everything; nothing is changed.

    Args:
        folder: of the agent.
        holdouts: labelled samples by model name, and
        hooks: folder of executables, beside what a running agent says that it uses.
    """
    try:
        identity = Identity.load(folder)
        load_key(folder)
    except SpratError as bad:
        return [Finding("enrolled", BAD, str(bad), "sprat-agent enrol --server URL --token T --dir D")]
    findings = [Finding("enrolled", OK, f"as {identity.name}, device {identity.device}")]
    running = is_locked(folder / "run.lock")
    used = _used(folder) if running else {}
    holdouts = {**{model: Path(path) for model, path in used.get("holdouts", {}).items()}, **holdouts}
    hooks = hooks or (Path(used["hooks"]) if used.get("hooks") else None)
    looks: list[Callable[[], Iterator[Finding]]] = [
        lambda: _folder(folder),
        lambda: _space(folder),
        lambda: _server(identity),
        lambda: _journal(folder, identity),
        lambda: _models(folder),
        lambda: _holdouts(holdouts),
        lambda: _hooks(hooks),
        lambda: _endpoint(folder, running=running),
    ]
    for look in looks:
        try:
            findings.extend(look())
        except (SpratError, OSError) as bad:
            findings.append(Finding("doctor", BAD, str(bad)))
    return findings


def _used(folder: Path) -> dict[str, Any]:
    try:
        return give_order(folder, {"do": "settings"}) or {}
    except SpratError:
        return {}


def _folder(folder: Path) -> Iterator[Finding]:
    open_to_others = [
        str(path.name)
        for path in (folder, folder / "device.key", folder / "agent.json")
        if path.exists() and path.stat().st_mode & 0o077
    ]
    if open_to_others:
        said = f"others may open {', '.join(open_to_others)}"
        yield Finding("folder", BAD, said, f"chmod -R go= {folder}; if others used the machine: replace the device")
    elif not os.access(folder, os.W_OK):
        yield Finding("folder", BAD, f"{folder} cannot be written", "mount it writable, or run as its owner")
    else:
        yield Finding("folder", OK, f"{folder} is its owner's alone")


def _space(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    held = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    said = f"{free / 1e6:.0f} MB free, the models take {held / 1e6:.0f} MB"
    if free < AgentSettings(folder=folder).space_margin_bytes:
        yield Finding("space", BAD, said, "make room: no update can be taken")
    elif free < max(held, _SPACE_FOR_UPDATES):
        yield Finding("space", WARN, said, "a release that changes everything may not fit beside what is here")
    else:
        yield Finding("space", OK, said)


def _server(identity: Identity) -> Iterator[Finding]:
    """Ask the server for its health: reachable, its certificate, and its clock."""
    import ssl  # noqa: PLC0415  # heavy, and not needed before

    import httpx  # noqa: PLC0415  # likewise

    secure = identity.server_url.startswith("https")
    context = ssl.create_default_context(cafile=identity.ca_file) if secure else False
    try:
        with (
            httpx.Client(verify=context, trust_env=False, timeout=_TIMEOUT_S) as client,
            client.stream("GET", identity.server_url + "/healthz") as response,
        ):
            status, date = response.status_code, response.headers.get("Date", "")
            stream = response.extensions.get("network_stream")
            tls = stream.get_extra_info("ssl_object") if secure and stream is not None else None
            certificate = {} if tls is None else tls.getpeercert() or {}
    except httpx.HTTPError as bad:
        todo = "look at address, firewall and certificate; if it moved: sprat-agent relocate --server URL"
        yield Finding("server", BAD, f"{identity.server_url}: {type(bad).__name__}: {bad}", todo)
        return
    level = OK if status < httpx.codes.INTERNAL_SERVER_ERROR else WARN
    yield Finding("server", level, f"{identity.server_url} answers {status}", "" if level == OK else "try again later")
    if not secure:
        yield Finding("tls", WARN, "plain HTTP", "let the server speak TLS, unless the link is protected otherwise")
    elif ends := certificate.get("notAfter"):
        left_s = ssl.cert_time_to_seconds(str(ends)) - time.time()
        soon = left_s < _ENDS_SOON_S
        said = f"{tls.version() if tls else ''}, the certificate is good until {ends}"
        yield Finding("tls", WARN if soon else OK, said, "renew the server's certificate" if soon else "")
    try:
        off_s = time.time() - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return
    if abs(off_s) > _CLOCK_OFF_S:
        said = f"{abs(off_s) / 60:.0f} minutes {'ahead of' if off_s > 0 else 'behind'} the server's"
        yield Finding("clock", WARN, said, "set it: updates are judged by signed times, windows and logs by the clock")
    else:
        yield Finding("clock", OK, f"{abs(off_s):.0f} s from the server's")


def _journal(folder: Path, identity: Identity) -> Iterator[Finding]:
    """Say how fresh what is trusted is, what is not believed, and what waits."""
    disk = PosixDisk()
    journal = Journal(folder / "journal.json", disk)
    clock = Clock()
    if (latest := journal.marks(DIRECTOR_REPOSITORY).time) is not None:
        clock.know(latest)
    if (trouble := journal.trust.trouble) is not None:
        yield Finding("trust", BAD, f"{trouble.code}: {trouble.detail}", "ask the operators what the server sent")
    elif not journal.models:
        yield Finding("trust", OK, "nothing was assigned yet")
    else:
        until = TrustStore(folder / "trust", disk, identity=identity, keeper=journal, clock=clock).fresh_until()
        late = until < clock.now()
        todo = "it is refreshed by the next poll; if it stays: is the server's timestamp signed anew?" if late else ""
        yield Finding("trust", WARN if late else OK, f"metadata are good until {until.astimezone(UTC):%F %R} UTC", todo)
    if journal.paused_until is not None and journal.paused_until > time.time():
        at = datetime.fromtimestamp(journal.paused_until, UTC)
        yield Finding("pause", WARN, f"no update is worked on until {at:%F %R} UTC", "sprat-agent resume")
    for model, record in journal.models.items():
        if record.work is not None and record.work.waiting:
            yield Finding("waiting", WARN, f"{model} in {record.state}: {record.work.waiting}")
        if record.refused and record.state is State.IDLE:
            last = record.refused[-1]
            said = f"{model}@{last.release} was not taken: {last.code}"
            if last.assignment == record.highest_assignment:
                yield Finding("refused", WARN, said, "sprat-agent events says more; a newer assignment tries again")


def _models(folder: Path) -> Iterator[Finding]:
    """Check the files of what serves, and load it."""
    from sprat_client.runtime.onnxruntime_host import OnnxRuntime  # noqa: PLC0415  # heavy

    disk = PosixDisk()
    store = TensorStore(folder / "store", disk)
    for model in Journal(folder / "journal.json", disk).models:
        shelf = Shelf(model, folder / "models" / model, store, disk)
        slots = shelf.slots()
        if slots.active is None:
            yield Finding("model", WARN, f"{model}: no release is here yet")
        for slot in filter(None, (slots.active, slots.previous)):
            try:
                manifest = shelf.manifest(slot.release_id)
                shelf.check(manifest)
                OnnxRuntime().load(shelf.folder_of(slot.release_id))
            except (StoreCorrupted, SpratError) as bad:
                level = BAD if slot == slots.active else WARN
                yield Finding("model", level, f"{model}@{slot.release}: {bad}", _RESTART)
            else:
                yield Finding("model", OK, f"{model}@{slot.release}: every file has its bytes, and it loads")


def _holdouts(holdouts: Mapping[str, Path]) -> Iterator[Finding]:
    from sprat_client.agent.samples import load_holdout  # noqa: PLC0415  # loads numpy

    if not holdouts:
        yield Finding("holdout", WARN, "none is known", "run --holdout MODEL=PATH: without, nothing says what is worse")
    for model, path in holdouts.items():
        try:
            load_holdout(path)
        except (SpratError, OSError) as bad:
            yield Finding("holdout", BAD, f"{model}: {bad}", "each release would be refused or taken unproven")
        else:
            yield Finding("holdout", OK, f"{model}: {path} can be read")


def _hooks(hooks: Path | None) -> Iterator[Finding]:
    if hooks is None:
        return
    known = {state.value for state in State} | {f"{state.value}.after" for state in State}
    for file in sorted(hooks.iterdir()):
        if file.name not in known:
            yield Finding("hooks", WARN, f"{file.name} is never run", "name it like a state, or STATE.after")
        elif not os.access(file, os.X_OK):
            yield Finding("hooks", WARN, f"{file.name} is not executable and is left out", f"chmod +x {file}")
        else:
            yield Finding("hooks", OK, f"{file.name} is run")


def _endpoint(folder: Path, *, running: bool) -> Iterator[Finding]:
    if not running:
        yield Finding("agent", WARN, "no agent runs on the folder", "systemctl start sprat-agent, or sprat-agent run")
        return
    import httpx  # noqa: PLC0415  # heavy

    try:
        url = json.loads((folder / "endpoint.json").read_bytes())["url"]
        answer = httpx.get(f"{url}/healthz", timeout=_TIMEOUT_S, trust_env=False)
    except FileNotFoundError:
        yield Finding("endpoint", OK, "the agent runs without one")
    except (httpx.HTTPError, OSError, ValueError, KeyError) as bad:
        yield Finding("endpoint", BAD, f"it does not answer: {bad}", _RESTART)
    else:
        level = OK if answer.is_success else BAD
        yield Finding("endpoint", level, f"{url} answers {answer.status_code}", "" if level == OK else _RESTART)
