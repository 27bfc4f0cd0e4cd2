"""Sites as files: devices, modules and tasks by name, sizes as people write them; read into what the API takes.

devices:
camera: {memory: 400MB, up_mbit: 20, down_mbit: 50, delay_ms: 2}
box: {memory: 4GB}
modules:
vision: {memory: 350MB, file: 90MB, seconds: {camera: 0.4, box: 0.05}}
judge: {memory: 2MB, seconds: {camera: 0.001, box: 0.001}}
tasks:
inspect:
data: {image: camera, verdict: camera}      # inputs where they arise, answers where they are wanted
uses: {see: vision, say: judge}             # node: module
flows: {image -> see: 150kB, see -> say: 2kB, say -> verdict: 64}
rate: 2
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sprat_client.cli.documents import Reading, read_documents
from sprat_client.cli.quantities import parse_bytes
from sprat_shared.errors import InvalidInput, SpratError

CODE: Final = "placement.bad-file"
_NAMED: Final = ("devices", "modules", "tasks")
_SIZES: Final = {"memory": "memory_bytes", "file": "file_bytes"}
_THING: Final = re.compile(r"(device|module|task) ([^\s:,]+)(?:: node ([^\s:,]+))?")
_FLOW: Final = re.compile(r"\s*(\S+)\s*->\s*(\S+)\s*")


@dataclass(frozen=True, slots=True)
class SiteFile:
    """A site of a file.

    Attributes:
        wanted: the body of the API.
        reading: where each value stands.
    """

    wanted: dict[str, Any]
    reading: Reading

    def located(self, bad: SpratError) -> str:
        """Return an error of the server with the line that it is about, as far as it says what that is."""
        text = re.sub(r"^body\.", "", str(bad))
        named = _THING.match(text)
        if named is not None:
            path = f"{named[1]}s.{named[2]}" + (f".uses.{named[3]}" if named[3] else "")
            return f"{self.reading.source}:{self.reading.line(path, 1)}: {text}"
        parts = re.split(r"[: ]", text, maxsplit=1)[0].split(".")
        if len(parts) > 1 and parts[0] in _NAMED and parts[1].isdecimal():
            names = [one["name"] for one in self.wanted.get(parts[0], [])]
            parts[1] = names[int(parts[1])] if int(parts[1]) < len(names) else parts[1]
            inner = {wanted: said for said, wanted in _SIZES.items()}
            parts = [inner.get(part, part) for part in parts]
        return f"{self.reading.source}:{self.reading.line('.'.join(parts), 1)}: {text}"


def read_site(file: Path) -> SiteFile:
    """Read a site.

    Raises:
        InvalidInput: it cannot be read, or is no site; all problems are named, each with its line.
    """
    readings = read_documents(file, code=CODE, what="site")
    reading = readings[0]
    if len(readings) > 1:
        raise InvalidInput(f"{file}: {len(readings)} documents; a site is one", code=CODE)
    if not isinstance(reading.said, dict):
        reading.bad("", "a site is a mapping of devices, modules and tasks")
        reading.require_good()
    wanted = dict(reading.said)
    for kind in _NAMED:
        wanted[kind] = list(_named(reading, kind, wanted.get(kind)))
    reading.require_good()
    return SiteFile(wanted, reading)


def read_modules(file: Path) -> dict[str, dict[str, Any]]:
    """Read what a site's file says of modules, as plans of sites take it: their memory, seconds and joules.

    Raises:
        InvalidInput: it cannot be read, or says nothing of modules; all problems are named, each with its line.
    """
    reading = read_documents(file, code=CODE, what="site")[0]
    if not isinstance(reading.said, dict):
        reading.bad("", "a site is a mapping of devices, modules and tasks")
        reading.require_good()
    modules = {one["name"]: one for one in _named(reading, "modules", reading.said.get("modules"))}
    reading.require_good()
    known = ("memory_bytes", "seconds", "joules")
    return {name: {key: said[key] for key in known if key in said} for name, said in modules.items()}


def _named(reading: Reading, kind: str, said: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(said, dict) or not said:
        reading.bad(kind, f"a site needs {kind}: a mapping of names")
        return
    for name, one in said.items():
        path = f"{kind}.{name}"
        if not isinstance(one, dict):
            reading.bad(path, f"expected a mapping, got {one!r:.60}")
            continue
        wanted = {
            _SIZES.get(key) or key: _bytes(reading, f"{path}.{key}", value) if key in _SIZES else value
            for key, value in one.items()
        }
        if kind == "tasks" and "flows" in wanted:
            wanted["flows"] = list(_flows(reading, f"{path}.flows", wanted["flows"]))
        yield {"name": name, **wanted}


def _bytes(reading: Reading, path: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(path, value)
    except InvalidInput as bad:
        reading.bad(path, str(bad).removeprefix(path).strip())
        return None


def _flows(reading: Reading, path: str, said: Any) -> Iterator[Mapping[str, Any]]:
    if not isinstance(said, dict):
        reading.bad(path, "flows are a mapping, such as image -> see: 150kB")
        return
    for way, size in said.items():
        found = _FLOW.fullmatch(way)
        if found is None:
            reading.bad(f"{path}.{way}", "write it as source -> target")
            continue
        yield {"from": found[1], "to": found[2], "bytes": _bytes(reading, f"{path}.{way}", size)}
