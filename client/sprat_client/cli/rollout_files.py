"""Rollouts as code: YAML or JSON files, one rollout a document, checked before anything is sent.

A file says what the API takes (docs/rollouts.md), with `release: model@number` and windows such as `22:00-05:00` as
shorthands. Every problem is said with its line. Plain scalars are those of JSON: `22:00` and `no` are texts here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sprat_client.cli.documents import Reading, read_documents
from sprat_client.cli.quantities import parse_window
from sprat_client.cli.releases import split_release
from sprat_shared.errors import InvalidInput, SpratError

CODE: Final = "rollout.bad-file"
_TEXT, _WHOLE, _TRUE, _MAP, _LIST = "a text", "a whole number", "true or false", "a mapping", "a list"
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    _TEXT: (str,), _WHOLE: (int,), _TRUE: (bool,), _MAP: (dict,), _LIST: (list,)
}  # fmt: skip
_KNOWN: Final[Mapping[str, str]] = {
    "kind": _TEXT,
    "name": _TEXT,
    "model": _TEXT,
    "release": f"{_WHOLE}, or model@number",
    "waves": _LIST,
    "grow": _MAP,
    "devices": _LIST,
    "where": _TEXT,
    "group": _TEXT,
    "gates": _MAP,
    "control": _TEXT,
    "in_flight": _WHOLE,
    "approvals": _WHOLE,
    "start_at": _TEXT,
    "windows": _LIST,
    "retries": _MAP,
    "supersede": _TRUE,
    "override_quarantine": _TEXT,
    "start": _TRUE,
}
_INNER: Final[Mapping[str, frozenset[str]]] = {
    "grow": frozenset({"from", "factor"}),
    "retries": frozenset({"link", "disk", "busy", "first_wait_s"}),
    "gates": frozenset({"rule", "silence_s", "held_s", "policy"}),
}


@dataclass(frozen=True, slots=True)
class RolloutFile:
    """One document of a file.

    Attributes:
        source: the file's name as it was given.
        wanted: the body of the API.
        start: whether to start it too.
        lines: dotted path of each value to its line, from 1; the document's own is "".
    """

    source: str
    wanted: dict[str, Any]
    start: bool
    lines: Mapping[str, int]

    @property
    def title(self) -> str:
        """What people call it."""
        return self.wanted.get("name") or f"{self.wanted['model']}@{self.wanted['release']}"

    def located(self, bad: SpratError) -> str:
        """Return an error of the server with the line that it is about, as far as it says what that is."""
        text = re.sub(r"^body\.(rollout\.)?", "", str(bad))
        wave = re.match(r"wave '([^']*)'", text)
        if wave is not None:
            at = [i for i, one in enumerate(self.wanted.get("waves") or ()) if one.startswith(wave[1])]
            return self._line(f"waves.{at[0]}" if at else "waves", text)
        return self._line(re.split(r"[: ]", text, maxsplit=1)[0], text)

    def _line(self, path: str, text: str) -> str:
        while path not in self.lines and path:
            path = path.rpartition(".")[0]
        return f"{self.source}:{self.lines[path]}: {text}"


def read_rollouts(file: Path) -> list[RolloutFile]:
    """Read every rollout of a file.

    Raises:
        InvalidInput: it cannot be read, or is not what a rollout may be; all problems are named, each with its line.
    """
    return [_document(reading) for reading in read_documents(file, code=CODE, what="rollout")]


def _document(reading: Reading) -> RolloutFile:
    said = reading.said
    if not isinstance(said, dict):
        reading.bad("", "a rollout is a mapping, such as release: digits@2")
    wanted = _checked(reading, said) if isinstance(said, dict) else {}
    reading.require_good()
    return RolloutFile(reading.source, wanted, said.get("start") is True, reading.lines)


def _checked(reading: Reading, said: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in said.items():
        _check_one(reading, name, value)
    if said.get("kind", "rollout") != "rollout":
        reading.bad("kind", f"{said['kind']!r:.40} cannot be applied; this sprat knows rollout")
    if "waves" in said and "grow" in said:
        reading.bad("grow", "say either waves or grow")
    wanted = {name: value for name, value in said.items() if name not in {"kind", "start"} and value is not None}
    _name_release(reading, wanted)
    wanted |= {kind: _texts(reading, kind, wanted[kind]) for kind in ("waves", "devices") if kind in wanted}
    if isinstance(wanted.get("windows"), list):
        wanted["windows"] = list(_windows(reading, wanted["windows"]))
    return wanted


def _check_one(reading: Reading, name: str, value: Any) -> None:
    if name not in _KNOWN:
        reading.bad(name, f"it is not known; a rollout may have {', '.join(sorted(_KNOWN))}")
    elif value is not None and not _fits(_KNOWN[name], value):
        reading.bad(name, f"expected {_KNOWN[name]}, got {value!r:.60}")
    elif isinstance(value, dict):
        for inner in sorted(set(value) - _INNER.get(name, frozenset(value))):
            reading.bad(f"{name}.{inner}", f"it is not known; {name} may have {', '.join(sorted(_INNER[name]))}")


def _texts(reading: Reading, name: str, values: Any) -> list[str]:
    said = []
    for i, one in enumerate(values if isinstance(values, list) else []):
        if isinstance(one, str) or (isinstance(one, int) and not isinstance(one, bool)):
            said.append(str(one))
        else:
            reading.bad(f"{name}.{i}", f"expected a text, got {one!r:.60}")
    return said


def _name_release(reading: Reading, wanted: dict[str, Any]) -> None:
    release = wanted.get("release")
    if isinstance(release, str):
        try:
            model, number = split_release(release, None)
        except SpratError as bad:
            reading.bad("release", str(bad))
            return
        if wanted.setdefault("model", model) != model:
            reading.bad("model", f"{wanted['model']!r:.60} is another model than that of {release}")
        wanted["release"] = number
    for name in ("model", "release"):
        if name not in wanted:
            reading.bad("", f"{name} is missing; write release: model@number")


def _windows(reading: Reading, windows: list[Any]) -> Iterator[Any]:
    for i, one in enumerate(windows):
        try:
            yield parse_window(one) if isinstance(one, str) else one
        except InvalidInput as bad:
            reading.bad(f"windows.{i}", str(bad))


def _fits(kind: str, value: Any) -> bool:
    if kind == _KNOWN["release"]:
        return isinstance(value, str | int) and not isinstance(value, bool)
    return isinstance(value, _KINDS[kind]) and (kind == _TRUE or not isinstance(value, bool))
