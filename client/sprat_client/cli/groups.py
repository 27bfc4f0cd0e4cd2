"""`sprat group`: filters of devices under a name."""

from typing import Annotated

import typer

from sprat_client.cli.devices import SHOWN
from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_fields, emit_table

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Saved groups: filters of devices under a name, whose devices are kept as they change (docs/targeting.md).",
)

Name = Annotated[str, typer.Argument(help="Name of the group.")]
Where = Annotated[str, typer.Argument(help="The filter.")]
Limit = Annotated[int, typer.Option(min=0, help="Show so many of the devices.")]


@app.command()
def create(ctx: typer.Context, *, name: Name, where: Where, json_: JsonFlag = False) -> None:
    """Save a filter under a name.

    Example: sprat group create lab 'labels.site = "lab" and not failed'
    """
    with connect(ctx) as client:
        made = client.groups.create(name, where)
    emit(made, as_json=json_, text=f"group {made['name']}: {made['devices']} devices")


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the saved groups.

    Example: sprat group list
    """
    with connect(ctx) as client:
        groups = client.groups.list()
    columns = {
        "group": lambda one: one["name"],
        "devices": lambda one: one["devices"],
        "where": lambda one: " ".join(one["where"].split()),
        "by": lambda one: one["created_by"],
    }
    emit_table(groups, columns, as_json=json_, empty="no group yet; see: sprat group create --help")


@app.command()
def show(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Show a saved group.

    Example: sprat group show lab
    """
    with connect(ctx) as client:
        emit_fields(client.groups.get(name), as_json=json_)


@app.command()
def edit(ctx: typer.Context, *, name: Name, where: Where, json_: JsonFlag = False) -> None:
    """Give a saved group another filter.

    Example: sprat group edit lab 'labels.site = "lab" and last_seen > 7d ago'
    """
    with connect(ctx) as client:
        edited = client.groups.edit(name, where)
    emit(edited, as_json=json_, text=f"group {edited['name']}: {edited['devices']} devices")


@app.command()
def delete(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Delete a saved group; its devices stay as they are.

    Example: sprat group delete lab
    """
    with connect(ctx) as client:
        gone = client.groups.delete(name)
    emit(gone, as_json=json_, text=f"group {gone['name']} is deleted; its filter was: {gone['where']}")


@app.command()
def devices(
    ctx: typer.Context,
    *,
    name: Name,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List the devices of a saved group.

    Example: sprat group devices lab
    """
    with connect(ctx) as client:
        members = client.groups.devices(name, limit=limit)
    emit_table(members, SHOWN, as_json=json_, empty=f"no device is in group {name}")


@app.command()
def preview(ctx: typer.Context, *, where: Where, limit: Limit = 10, json_: JsonFlag = False) -> None:
    """Say how many devices a filter means, and show some, without saving anything.

    Example: sprat group preview 'model.digits.active < 4 and not failed'
    """
    with connect(ctx) as client:
        found = client.devices.preview(where=where, limit=limit)
    if json_:
        emit(found, as_json=True, text="")
        return
    emit(found, as_json=False, text=f"{found['count']} of {found['live']} devices")
    if found["sample"]:
        emit_table(found["sample"], SHOWN, as_json=False, empty="")
