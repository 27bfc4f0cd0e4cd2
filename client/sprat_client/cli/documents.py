"""Files that people write, YAML or JSON: read with the line of each value, so that every problem is said with its line.

Plain scalars are those of JSON: `22:00` and `no` are texts here.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sprat_shared.errors import InvalidInput

_MOST_BYTES: Final = 1 << 20
_MOST_DEPTH: Final = 20
_SCALARS: Final = (
    (re.compile(r"true|false"), lambda text: text == "true"),
    (re.compile(r"null|~|"), lambda _text: None),
    (re.compile(r"-?(0|[1-9][0-9]{0,17})"), int),
    (re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?"), float),
)


@dataclass(slots=True)
class Reading:
    """One document, and what is wrong with it.

    Attributes:
        source: the file's name as it was given.
        code: of the error.
        said: the document: mappings, lists, texts, numbers, true, false and null.
        lines: dotted path of each value to its line, from 1; the document's own is "".
        problems: line and what is wrong there.
    """

    source: str
    code: str
    said: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def bad(self, path: str, what: str) -> None:
        """Note what is wrong with a value."""
        self.problems.append((self.line(path, 1), f"{path}: {what}" if path else what))

    def line(self, path: str, default: int) -> int:
        """Return the line of a value, or of the nearest one that it is in."""
        while path not in self.lines and path:
            path = path.rpartition(".")[0]
        return self.lines.get(path, default)

    def require_good(self) -> None:
        """Return if nothing is wrong.

        Raises:
            InvalidInput: something is; every problem has a line of its own.
        """
        if self.problems:
            said = "\n".join(f"{self.source}:{line}: {what}" for line, what in sorted(set(self.problems)))
            raise InvalidInput(said, code=self.code)


def read_documents(file: Path, *, code: str, what: str) -> list[Reading]:
    """Read every document of a file.

    Args:
        file: it.
        code: of errors.
        what: a document is, for messages.

    Raises:
        InvalidInput: it cannot be read, is no YAML, or there is nothing in it.
    """
    documents = []
    for node in _nodes(file, code, what):
        if node is not None and node.value != "":
            reading = Reading(str(file), code)
            reading.said = _value(reading, node, "", 0)
            documents.append(reading)
    if not documents:
        raise InvalidInput(f"{file}: there is no {what} in it", code=code)
    return documents


def _nodes(file: Path, code: str, what: str) -> list[Any]:
    import yaml  # noqa: PLC0415 - only these commands need it

    try:
        text = file.read_bytes()
    except OSError as bad:
        raise InvalidInput(f"{file}: {bad.strerror}", code=code) from None
    if len(text) > _MOST_BYTES:
        raise InvalidInput(f"{file}: more than {_MOST_BYTES:,} bytes; a {what} is smaller", code=code)
    try:
        for event in yaml.parse(text.decode(), Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # it may stand for endlessly more than it is
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise InvalidInput(f"{file}:{line}: write it out, without aliases", code=code)
        return list(yaml.compose_all(text.decode(), Loader=yaml.SafeLoader))
    except UnicodeDecodeError as bad:
        raise InvalidInput(f"{file}: it is not UTF-8 ({bad.reason} at byte {bad.start})", code=code) from None
    except yaml.MarkedYAMLError as bad:
        at = bad.problem_mark or bad.context_mark
        raise InvalidInput(f"{file}:{at.line + 1 if at else 1}: {bad.problem or bad.context}", code=code) from None
    except (yaml.YAMLError, RecursionError) as bad:
        raise InvalidInput(f"{file}: it is neither YAML nor JSON ({bad})", code=code) from None


def _value(reading: Reading, node: Any, path: str, depth: int) -> Any:
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
