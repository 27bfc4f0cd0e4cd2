"""`sprat dataset`: upload, list, show."""

from pathlib import Path
from typing import Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_fields, emit_table, short
from sprat_client.cli.watching import NoWait, finish, upload

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Datasets: labelled samples to retrain on.")


@app.command("upload")
def upload_(
    ctx: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="What to call it.")],
    file: Annotated[Path, typer.Argument(help=".npz or .safetensors with inputs, labels and, if wanted, split.")],
    no_wait: NoWait = False,
    json_: JsonFlag = False,
) -> None:
    """Upload a dataset; the server checks it and keeps it under its digest.

    `inputs` is (n, …), `labels` (n,) integers; `split` (n,) holds 0 for training, 1 for validation, 2 for the test
    that only reports. Without it the server draws 70/15/15. A training sample may have the label -1: nobody labelled
    it, and updates learn from what the full retrain says of it (distillation).

    Example: sprat dataset upload tilted-digits tilted.npz
    """
    with connect(ctx) as client:
        job = finish(client, client.datasets.create(name, blob=upload(client, file)), no_wait=no_wait)
    digest = (job["result"] or {}).get("digest")
    emit(job, as_json=json_, text=f"job {job['id']}" if no_wait else f"{name} {digest or ''}".rstrip())


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the datasets.

    Example: sprat dataset list
    """
    with connect(ctx) as client:
        datasets = client.datasets.list()
    columns = {
        "dataset": lambda one: one["name"],
        "digest": lambda one: short(one["digest"]),
        "samples": lambda one: one["samples"],
        "since": lambda one: one["created_at"],
    }
    emit_table(datasets, columns, as_json=json_, empty="no dataset yet; see: sprat dataset upload --help")


@app.command()
def show(
    ctx: typer.Context,
    *,
    dataset: Annotated[str, typer.Argument(help="Its name, digest, or a unique start of the digest.")],
    json_: JsonFlag = False,
) -> None:
    """Show one dataset.

    Example: sprat dataset show tilted-digits
    """
    with connect(ctx) as client:
        emit_fields(client.datasets.resolve(dataset), as_json=json_)
