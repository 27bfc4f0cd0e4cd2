"""`sprat audit`: who changed what, and whether anybody changed that."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_table
from sprat_shared.errors import InvalidInput

OfServer = Annotated[bool, typer.Option("--of-server", help="What was done to the server itself, not in a project.")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The append-only log of every change.")


@app.command("list")
def list_(
    ctx: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many entries, the newest.")] = 50,
    subject: Annotated[str | None, typer.Option(help="Only about this, such as rollout:ID.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as token.create.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only what this one did, such as operator:anna.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only from this time on, UTC.")] = None,
    until: Annotated[datetime | None, typer.Option(help="Only before this time, UTC.")] = None,
    of_server: OfServer = False,
    json_: JsonFlag = False,
) -> None:
    """List who changed what, newest first.

    Example: sprat audit list --action rollout.abort --since 2026-11-01
    """
    said = {"subject": subject, "action": action, "actor": actor, "since": _utc(since), "until": _utc(until)}
    with connect(ctx) as client:
        entries = client.audit.list(limit=limit, of_server=of_server, **said)
    columns = {
        "at": lambda one: one["at"],
        "from": lambda one: one["address"],
        "actor": lambda one: one["actor"],
        "action": lambda one: one["action"],
        "subject": lambda one: one["subject"],
    }
    emit_table(entries, columns, as_json=json_, empty="nothing happened yet")


@app.command()
def verify(
    ctx: typer.Context,
    *,
    file: Annotated[
        Path | None, typer.Argument(help="What `sprat audit export` wrote.  [default: ask the server]")
    ] = None,
    expect: Annotated[
        list[str] | None, typer.Option(help="SEQ:DIGEST that an earlier verify printed; the log must still hold it.")
    ] = None,
    of_server: OfServer = False,
    json_: JsonFlag = False,
) -> None:
    """Recompute the log's chain of digests here, from what the server gives, and say which record breaks it.

    Note what it prints elsewhere and expect it the next time: so it shows too if the newest records were cut off.

    Example: sprat audit verify --expect 41:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    """
    from sprat_client.api.audit_chain import check_chain  # noqa: PLC0415 - httpx is not loaded for `sprat delta`

    expected = dict(_expected(text) for text in expect or [])
    if file is not None:
        head = check_chain(_records_of(file), expected)
    else:
        with connect(ctx) as client:
            head = check_chain(client.audit.chain(of_server=of_server), expected)
    text = f"the chain of {head.seq} records is whole; expect next time: {head.seq}:{head.digest}"
    emit({"records": head.seq, "digest": head.digest}, as_json=json_, text=text)


@app.command()
def export(
    ctx: typer.Context,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.  [default: stdout]")] = None,
    of_server: OfServer = False,
    json_: JsonFlag = False,
) -> None:
    """Write the whole log, oldest first, one JSON object a line; `sprat audit verify FILE` reads it.

    Example: sprat audit export -o audit.jsonl
    """
    with connect(ctx) as client:
        lines = (json.dumps(record, ensure_ascii=False) for record in client.audit.chain(of_server=of_server))
        if output is None:
            for line in lines:
                typer.echo(line)
            return
        written = 0
        try:
            with output.open("w", encoding="utf-8") as file:
                for line in lines:
                    file.write(f"{line}\n")
                    written += 1
        except OSError as error:
            raise InvalidInput(f"{output} cannot be written: {error.strerror}") from None
    emit({"records": written, "file": str(output)}, as_json=json_, text=f"{written} records are in {output}")


def _expected(text: str) -> tuple[int, str]:
    seq, colon, digest = text.partition(":")
    if not seq.isdecimal() or not colon or not digest:
        raise InvalidInput(f"--expect {text!r}: write SEQ:DIGEST, as `sprat audit verify` prints it")
    return int(seq), digest


def _records_of(file: Path) -> Iterator[dict[str, Any]]:
    """Read JSON lines, one by one."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    yield json.loads(line)
                except ValueError as bad:
                    raise InvalidInput(f"{file}, line {number}: not JSON ({bad})") from None
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from None


@app.callback()
def audit() -> None:
    """Read the append-only log of every change."""


def _utc(at: datetime | None) -> str | None:
    return None if at is None else at.replace(tzinfo=UTC).isoformat()
