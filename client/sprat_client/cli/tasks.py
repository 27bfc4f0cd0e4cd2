"""`sprat task`: what sites can be asked for, as typed graphs over modules."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.models import parse_config, parse_example
from sprat_client.cli.output import emit, emit_fields, emit_table
from sprat_client.cli.task_files import TaskFile, read_tasks
from sprat_client.cli.watching import NoWait, finish, upload
from sprat_shared.errors import InvalidInput, SpratError

if TYPE_CHECKING:
    from sprat_client.api import SpratClient
    from sprat_client.api.sites import TaskView

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Tasks: what sites can be asked for, as typed graphs over modules (docs/site-plans.md).",
)

Name = Annotated[str, typer.Argument(help="Name of the task.")]


@app.command()
def create(
    ctx: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(help="YAML or JSON: tasks by name, with inputs, steps, outputs.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace a task of the same name.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Check the tasks of a file against the newest releases of their modules, edge by edge, and keep them.

    Example: sprat task create find.yaml
    """
    read = read_tasks(file)
    with connect(ctx) as client:
        for name in read.tasks:
            made = _create(client, read, name, replace=replace)
            text = f"task {name}: {', '.join(read.tasks[name]['inputs'])} -> {', '.join(made['outputs'])}"
            emit(made, as_json=json_, text=text)


def _create(client: "SpratClient", read: TaskFile, name: str, *, replace: bool) -> "TaskView":
    wanted = read.tasks[name] | {"replace": replace}
    if isinstance(test := wanted.get("test"), dict) and isinstance(test.get("dataset"), str):
        wanted["test"] = test | {"dataset": client.datasets.resolve(test["dataset"])["digest"]}
    try:
        finish(client, client.tasks.create(wanted), no_wait=False)
    except SpratError as bad:
        if bad.code in {"task.invalid", "request.invalid", "input.invalid"}:
            raise InvalidInput(read.located(name, bad), code=bad.code) from bad
        raise
    return client.tasks.get(name)


@app.command()
def split(
    ctx: typer.Context,
    *,
    name: Name,
    recipe: Annotated[str, typer.Option(help="package.module:build, importable where the worker runs.")],
    weights: Annotated[Path, typer.Option(help="The trained weights of the whole module, safetensors.")],
    example: Annotated[
        list[str],
        typer.Option(
            help="Shape of the input, batch axis included: 1,3,32,32. Of several inputs, once for each, in the order "
            "of the module's arguments: name=1,8 or name=1,8:I64."
        ),
    ],
    part: Annotated[list[str], typer.Option(help="MODEL=SUBMODULE: what becomes a model of its own; once for each.")],
    rest: Annotated[str | None, typer.Option(help="The model made of what is left, if not only wiring.")] = None,
    config: Annotated[str | None, typer.Option(help="JSON for the recipe, or @FILE that holds it.")] = None,
    example_dtype: Annotated[str, typer.Option(help="Dtype where none is said, safetensors code.")] = "F32",
    deadline_s: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 1.0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a task of the same name.")] = False,
    no_wait: NoWait = False,
    json_: JsonFlag = False,
) -> None:
    """Take a torch module apart: named submodules become models, and the task puts them together again.

    A model that is there already is used if it is just that part, so two tasks have an encoder once.

    Example: sprat task split find --recipe shop.nets:build --weights find.safetensors --example image=1,3,32,32
    --example words=1,8:I64 --part vision=image_encoder --part text=text_encoder --rest find-head
    """
    asked: dict[str, Any] = {
        "name": name,
        "recipe": {"factory": recipe, "config": parse_config(config)},
        "example": parse_example(example, example_dtype),
        "parts": parse_parts(part),
        "rest": rest,
        "deadline_s": deadline_s,
        "replace": replace,
    }
    with connect(ctx) as client:
        job = client.tasks.split(asked | {"weights": upload(client, weights)})
        job = finish(client, job, no_wait=no_wait)
    emit(job, as_json=json_, text=f"job {job['id']}" if no_wait else _told(name, job["result"] or {}))


def parse_parts(said: Sequence[str]) -> dict[str, str]:
    """Return `model=submodule` of each part as the API takes it.

    Raises:
        InvalidInput: one is of another form, or a model is named twice.
    """
    parts: dict[str, str] = {}
    for text in said:
        model, equals, path = text.partition("=")
        if not (equals and model and path) or model in parts:
            raise InvalidInput(f"--part {text!r}: say MODEL=SUBMODULE, each model once, as --part vision=image_encoder")
        parts[model] = path
    return parts


def _told(name: str, result: dict[str, Any]) -> str:
    models: dict[str, dict[str, Any]] = result.get("models", {})
    lines = [f"task {name}: {result.get('difference', 0):.1e} of the largest value away from the module"]
    for model, one in sorted(models.items()):
        waits = f"; {one['state']}, see: sprat release sign {model}@1" if one["state"] != "published" else ""
        how = "was there, and is used" if one["reused"] else "is registered"
        lines.append(f"  {model}@{one['release']} {how}{waits}")
    if result.get("unused"):
        lines.append(f"  in no model, as nothing depends on it: {', '.join(result['unused'])}")
    return "\n".join(lines)


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the tasks.

    Example: sprat task list
    """
    with connect(ctx) as client:
        tasks = client.tasks.list()
    columns = {
        "task": lambda one: one["name"],
        "takes": lambda one: ", ".join(one["inputs"]),
        "gives": lambda one: ", ".join(one["outputs"]),
        "modules": lambda one: ", ".join(sorted({step["model"] for step in one["steps"].values()})),
        "plans": lambda one: ", ".join(one["plans"]),
    }
    emit_table(tasks, columns, as_json=json_, empty="no task yet; see: sprat task create --help")


@app.command()
def show(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Show a task.

    Example: sprat task show find
    """
    with connect(ctx) as client:
        emit_fields(client.tasks.get(name), as_json=json_)


@app.command()
def delete(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Delete a task of which no plan is signed.

    Example: sprat task delete find
    """
    with connect(ctx) as client:
        gone = client.tasks.delete(name)
    emit(gone, as_json=json_, text=f"task {name} is deleted")
