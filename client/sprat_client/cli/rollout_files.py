"""Rollouts as code: YAML or JSON files, one rollout a document, checked before anything is sent.

A file says what the API takes (docs/rollouts.md), with `release: model@number` and windows such as `22:00-05:00` as
shorthands. Every problem is said with its line. Plain scalars are those of JSON: `22:00` and `no` are texts here.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sprat_client.cli.quantities import parse_window
from sprat_client.cli.releases import split_release
from sprat_shared.errors import InvalidInput, SpratError

CODE: Final = "rollout.bad-file"
_MOST_BYTES: Final = 1 << 20
_MOST_DEPTH: Final = 20
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
_SCALARS: Final = (
    (re.compile(r"true|false"), lambda text: text == "true"),
    (re.compile(r"null|~|"), lambda _text: None),
    (re.compile(r"-?(0|[1-9][0-9]{0,17})"), int),
    (re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?"), float),
)


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


@dataclass(slots=True)
class _Reading:
    """What is known of a document while it is read."""

    source: str
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def bad(self, path: str, what: str) -> None:
        where = path
        while where not in self.lines and where:
            where = where.rpartition(".")[0]
        self.problems.append((self.lines.get(where, 1), f"{path}: {what}" if path else what))


def read_rollouts(file: Path) -> list[RolloutFile]:
    """Read every rollout of a file.

    Raises:
        InvalidInput: it cannot be read, or is not what a rollout may be; all problems are named, each with its line.
    """
    import yaml  # noqa: PLC0415 - only these commands need it

    try:
        text = file.read_bytes()
    except OSError as bad:
        raise InvalidInput(f"{file}: {bad.strerror}", code=CODE) from None
    if len(text) > _MOST_BYTES:
        raise InvalidInput(f"{file}: more than {_MOST_BYTES:,} bytes; a rollout is smaller", code=CODE)
    try:
        for event in yaml.parse(text.decode(), Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # it may stand for endlessly more than it is
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise InvalidInput(f"{file}:{line}: write it out, without aliases", code=CODE)
        nodes = list(yaml.compose_all(text.decode(), Loader=yaml.SafeLoader))
    except UnicodeDecodeError as bad:
        raise InvalidInput(f"{file}: it is not UTF-8 ({bad.reason} at byte {bad.start})", code=CODE) from None
    except yaml.MarkedYAMLError as bad:
        at = bad.problem_mark or bad.context_mark
        raise InvalidInput(f"{file}:{at.line + 1 if at else 1}: {bad.problem or bad.context}", code=CODE) from None
    except (yaml.YAMLError, RecursionError) as bad:
        raise InvalidInput(f"{file}: it is neither YAML nor JSON ({bad})", code=CODE) from None
    documents = [_document(str(file), node) for node in nodes if node is not None and node.value != ""]
    if not documents:
        raise InvalidInput(f"{file}: there is no rollout in it", code=CODE)
    return documents


def _document(source: str, node: Any) -> RolloutFile:
    reading = _Reading(source)
    said = _value(reading, node, "", 0)
    if not isinstance(said, dict):
        reading.bad("", "a rollout is a mapping, such as release: digits@2")
    wanted = _checked(reading, said) if isinstance(said, dict) else {}
    if reading.problems:
        raise InvalidInput(
            "\n".join(f"{source}:{line}: {what}" for line, what in sorted(set(reading.problems))), code=CODE
        )
    return RolloutFile(source, wanted, said.get("start") is True, reading.lines)


def _value(reading: _Reading, node: Any, path: str, depth: int) -> Any:
    reading.lines.setdefault(path, node.start_mark.line + 1)
    if depth > _MOST_DEPTH:
        reading.bad(path, f"nested more than {_MOST_DEPTH} deep")
        return None
    if node.id == "mapping":
        said: dict[str, Any] = {}
        for key, value in node.value:
            name = str(key.value) if key.id == "scalar" else ""
            inner = f"{path}.{name}".lstrip(".")
            if not name or name in said:
                reading.lines[inner] = key.start_mark.line + 1
                reading.bad(inner, "it stands twice" if name else "names are plain texts")
            reading.lines[inner] = key.start_mark.line + 1
            said[name] = _value(reading, value, inner, depth + 1)
        return said
    if node.id == "sequence":
        return [_value(reading, one, f"{path}.{i}".lstrip("."), depth + 1) for i, one in enumerate(node.value)]
    if node.style is None:
        for form, make in _SCALARS:
            if form.fullmatch(node.value):
                return make(node.value)
    return node.value


def _checked(reading: _Reading, said: Mapping[str, Any]) -> dict[str, Any]:
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


def _check_one(reading: _Reading, name: str, value: Any) -> None:
    if name not in _KNOWN:
        reading.bad(name, f"it is not known; a rollout may have {', '.join(sorted(_KNOWN))}")
    elif value is not None and not _fits(_KNOWN[name], value):
        reading.bad(name, f"expected {_KNOWN[name]}, got {value!r:.60}")
    elif isinstance(value, dict):
        for inner in sorted(set(value) - _INNER.get(name, frozenset(value))):
            reading.bad(f"{name}.{inner}", f"it is not known; {name} may have {', '.join(sorted(_INNER[name]))}")


def _texts(reading: _Reading, name: str, values: Any) -> list[str]:
    said = []
    for i, one in enumerate(values if isinstance(values, list) else []):
        if isinstance(one, str) or (isinstance(one, int) and not isinstance(one, bool)):
            said.append(str(one))
        else:
            reading.bad(f"{name}.{i}", f"expected a text, got {one!r:.60}")
    return said


def _name_release(reading: _Reading, wanted: dict[str, Any]) -> None:
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


def _windows(reading: _Reading, windows: list[Any]) -> Iterator[Any]:
    for i, one in enumerate(windows):
        try:
            yield parse_window(one) if isinstance(one, str) else one
        except InvalidInput as bad:
            reading.bad(f"windows.{i}", str(bad))


def _fits(kind: str, value: Any) -> bool:
    if kind == _KNOWN["release"]:
        return isinstance(value, str | int) and not isinstance(value, bool)
    return isinstance(value, _KINDS[kind]) and (kind == _TRUE or not isinstance(value, bool))
