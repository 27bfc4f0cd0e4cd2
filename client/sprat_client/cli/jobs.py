"""`sprat job`: list, get, watch, cancel."""

from typing import Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_fields, emit_table
from sprat_client.cli.watching import progress_of, wait_for_job

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Jobs: what the server's workers do.")

Job = Annotated[str, typer.Argument(help="Job id, or a unique start or end of one.")]


@app.command("list")
def list_(
    ctx: typer.Context,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, the newest.")] = 20,
    json_: JsonFlag = False,
) -> None:
    """List the newest jobs.

    Example: sprat job list --limit 5
    """
    with connect(ctx) as client:
        jobs = client.jobs.list(limit=limit)
    columns = {
        "job": lambda one: one["id"],
        "kind": lambda one: one["kind"],
        "state": lambda one: one["state"],
        "progress": lambda one: progress_of(one)[1] if one["state"] == "running" else None,
        "since": lambda one: one["created_at"],
    }
    emit_table(jobs, columns, as_json=json_, empty="no job yet")


@app.command()
def get(ctx: typer.Context, *, job: Job, json_: JsonFlag = False) -> None:
    """Show one job: its state, progress, result or error.

    Example: sprat job get 0198c0de --json
    """
    with connect(ctx) as client:
        emit_fields(client.jobs.get(client.jobs.resolve(job)), as_json=json_)


@app.command()
def watch(ctx: typer.Context, *, job: Job, json_: JsonFlag = False) -> None:
    """Wait for a job's end with progress on stderr; the exit code says whether it succeeded.

    Example: sprat job watch 0198c0de
    """
    with connect(ctx) as client:
        ended = wait_for_job(client, client.jobs.get(client.jobs.resolve(job)))
    emit_fields(ended, as_json=json_)


@app.command()
def cancel(ctx: typer.Context, *, job: Job, json_: JsonFlag = False) -> None:
    """Ask a job to stop; a running one stops at its next checkpoint.

    Example: sprat job cancel 0198c0de
    """
    with connect(ctx) as client:
        asked = client.jobs.cancel(client.jobs.resolve(job))
    text = f"job {asked['id']} is {asked['state']}" + (" and was asked to stop" if asked["state"] == "running" else "")
    emit(asked, as_json=json_, text=text)
