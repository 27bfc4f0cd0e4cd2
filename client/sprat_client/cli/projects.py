"""`sprat project`: what keeps the models, devices and all else of different people apart."""

from typing import Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_fields, emit_table

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Projects keep the models, devices and all else of different people apart.",
)

Name = Annotated[str, typer.Argument(help="Its name.")]


@app.command()
def create(
    ctx: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens, as in line-3.")],
    title: Annotated[str, typer.Option(help="What people call it.")] = "",
    json_: JsonFlag = False,
) -> None:
    """Make a project, with signing keys of its own; needs an admin's token of the whole server.

    Then make tokens in it: sprat --project NAME token create.

    Example: sprat project create line-3 --title "Line 3"
    """
    with connect(ctx) as client:
        made = client.projects.create(name, title=title)
    emit(made, as_json=json_, text=f"project {name} is made; next: sprat --project {name} token create NAME")


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the projects that your token may act in.

    Example: sprat project list
    """
    with connect(ctx) as client:
        projects = client.projects.list()
    columns = {
        "name": lambda one: one["name"],
        "title": lambda one: one["title"],
        "made by": lambda one: one["created_by"],
        "made": lambda one: one["created_at"],
    }
    emit_table(projects, columns, as_json=json_, empty="no project")


@app.command()
def show(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Show a project.

    Example: sprat project show line-3
    """
    with connect(ctx) as client:
        emit_fields(client.projects.get(name), as_json=json_)


@app.command()
def change(
    ctx: typer.Context,
    *,
    name: Name,
    title: Annotated[str, typer.Option(help="What people call it from now on.")],
    json_: JsonFlag = False,
) -> None:
    """Give a project another title; its name stays.

    Example: sprat project change line-3 --title "Line 3, new ovens"
    """
    with connect(ctx) as client:
        changed = client.projects.change(name, title=title)
    emit(changed, as_json=json_, text=f"project {name} is called {title!r}")
