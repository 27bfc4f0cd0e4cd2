"""Results to stdout: JSON lines, or text that people and grep can read."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import typer

Columns = Mapping[str, Callable[[Any], Any]]
"""Heading to what to show of a record."""


def emit(record: Mapping[str, Any], *, as_json: bool, text: str) -> None:
    """Print one result."""
    typer.echo(json.dumps(record, ensure_ascii=False) if as_json else text)


def emit_table(records: Iterable[Mapping[str, Any]], columns: Columns, *, as_json: bool, empty: str) -> None:
    """Print a list of results; `empty` goes to stderr where there are none."""
    if as_json:
        for record in records:
            emit(record, as_json=True, text="")
        return
    rows = [[shown(show(record)) for show in columns.values()] for record in records]
    if not rows:
        typer.echo(empty, err=True)
        return
    for line in aligned([list(columns), *rows]):
        typer.echo(line)


def emit_fields(record: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one result, a field a line; nested values as JSON."""
    names = max((len(name) for name in record), default=0)
    text = "\n".join(f"{name:<{names}}  {shown(value)}" for name, value in record.items())
    emit(record, as_json=as_json, text=text)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns stand under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def shown(value: Any) -> str:
    """Return a JSON value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def size(count: float | None) -> str:
    """Return a number of bytes as text: 950 B, 4.12 kB, 1.05 MB."""
    if count is None:
        return "-"
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.2f} {unit}"
    return f"{count:.0f} B"


def short(digest: str | None) -> str:
    """Return the start of a digest, enough to tell them apart."""
    return "-" if digest is None else digest.removeprefix("sha256:")[:12]
