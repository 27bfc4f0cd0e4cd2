"""What was measured on one problem, a file of the repository: each point under the digest of the code that made it.

A row is taken from here as long as neither the problem nor its own code has changed: an interrupted run goes on, on
another machine too, and a run in a fresh checkout prints what was measured without measuring it again. Where the code
has changed, a row is believed again if its first and its last setting, made anew, give the very same points.
"""

import ast
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sprat_server.training.evaluate import Share

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One method with one setting on one problem.

    Attributes:
        setting: in words.
        bytes: of the payload.
        validation: share of the full retrain's gain on the validation split; choices are made on this one.
        error: standard error of that share.
        test: the same on the test split; None where the full retrain gained nothing there.
        seconds: that making and judging it took.
    """

    setting: str
    bytes: int
    validation: float
    error: float
    test: float | None
    seconds: float

    def same_as(self, other: "Point") -> bool:
        """Say whether it is the same in all but the time that it took."""
        return replace(self, seconds=other.seconds) == other

    def keeps(self, share: float) -> bool:
        """Say whether the validation split is proof enough of a share, by the rule of a retrain (`Share.keeps`)."""
        return Share(self.validation, self.error).keeps(share)


def source_digest(*files: Path) -> str:
    """Return eight hex digits that change with what Python files do: not with their comments, docstrings or layout."""
    whole = hashlib.sha256()
    for file in files:
        tree = ast.parse(file.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        whole.update(ast.unparse(tree).encode() + b"\0")
    return whole.hexdigest()[:8]


class LedgerInUse(Exception):
    """Another process measures the same problem; the message says which file it holds."""


class Ledger:
    """The file of one problem: a line about it, then a line for each point. It is written beside its name and renamed.

    Args:
        path: of the file; it need not be there.
        problem: digest of the problem. What the file holds of another problem is not looked at, and lost at the next
            point.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self._path = path
        self._head: dict[str, Any] = {"problem": problem, "states": None, "gains": None}
        self._points: dict[str, tuple[str, dict[str, Point]]] = {}  # key of a method -> digest of its code, points
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        head, *rows = map(json.loads, lines or ["{}"])
        if head.get("problem") == problem:
            self._head |= head
            for row in rows:
                key, code = row.pop("method"), row.pop("code")
                self._points.setdefault(key, (code, {}))[1][row["setting"]] = Point(**row)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs from measuring this problem meanwhile.

        Raises:
            LedgerInUse: another run measures it.
        """
        own = hashlib.sha256(bytes(self._path.absolute())).hexdigest()[:8]
        with (Path(tempfile.gettempdir()) / f"{self._path.name}-{own}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LedgerInUse(f"another run measures {self._path}; wait for it, or stop it") from None
            yield

    @property
    def begun(self) -> bool:
        """Whether anything of this problem is known."""
        return self._head["gains"] is not None

    def measured_on(self, states: str) -> None:
        """Say what base and full retrain the next points are measured on; those of others are forgotten.

        The same code trains other weights on another processor: a problem is measured on one.
        """
        if self._head["states"] not in {None, states}:
            self._head["gains"], self._points = None, {}
        self._head["states"] = states

    def gains(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what the full retrain gains (`Problem.gains`), made only once."""
        if self._head["gains"] is None:
            self._head["gains"] = make()
            self._write()
        gains: dict[str, Any] = self._head["gains"]
        return gains

    def points(self, method: str, code: str) -> dict[str, Point]:
        """Return the points of a method by setting, those that code of this digest made."""
        made_by, points = self._points.get(method, (code, {}))
        return dict(points) if made_by == code else {}

    def before(self, method: str, code: str) -> dict[str, Point]:
        """Return the points of a method by setting that code of another digest made; nothing where there are none."""
        made_by, points = self._points.get(method, (code, {}))
        return {} if made_by == code else dict(points)

    def keep(self, method: str, code: str, points: Mapping[str, Point]) -> None:
        """Write the points of a method instead of those that were there."""
        self._points[method] = code, dict(points)
        self._write()

    def _write(self) -> None:
        rows = (
            {"method": key, "code": code, **asdict(point)}
            for key, (code, points) in self._points.items()
            for point in points.values()
        )
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        beside.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text("".join(json.dumps(row) + "\n" for row in (self._head, *rows)), encoding="utf-8")
        beside.replace(self._path)
