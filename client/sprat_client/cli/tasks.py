"""`sprat task`: what sites can be asked for, as typed graphs over modules."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_fields, emit_table
from sprat_client.cli.task_files import TaskFile, read_tasks
from sprat_client.cli.watching import finish
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
