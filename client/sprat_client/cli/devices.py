"""`sprat device` and `sprat enrolment-token`: the fleet and how a device joins it."""

from typing import Annotated, Any

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_fields, emit_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Devices: the agents of the fleet.")
enrolment_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Enrolment tokens: with them devices join the fleet."
)


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the devices.

    Example: sprat device list
    """
    with connect(ctx) as client:
        devices = client.devices.list()
    columns = {
        "device": lambda one: one["id"],
        "name": lambda one: one["name"],
        "group": lambda one: one["group"],
        "runs": lambda one: ", ".join(f"{on['model']}@{on['active'] or '-'}" for on in one["models"]) or "-",
        "should run": lambda one: ", ".join(f"{on['model']}@{on['assigned'] or '-'}" for on in one["models"]) or "-",
        "last seen": lambda one: one["last_seen_at"] if one["revoked_at"] is None else "revoked",
    }
    emit_table(devices, columns, as_json=json_, empty="no device yet; see: sprat enrolment-token create --help")


@app.command()
def show(
    ctx: typer.Context,
    *,
    device: Annotated[str, typer.Argument(help="Its name, id, or a unique start or end of the id.")],
    reports: Annotated[int, typer.Option(min=0, help="Show so many of its newest reports.")] = 5,
    json_: JsonFlag = False,
) -> None:
    """Show one device: what it should run, and what it reported.

    Example: sprat device show press-3 --reports 10
    """
    with connect(ctx) as client:
        device_id = client.devices.resolve(device)
        shown: dict[str, Any] = dict(client.devices.get(device_id))
        if reports:
            shown["reports"] = client.devices.reports(device_id, limit=reports)
    emit_fields(shown, as_json=json_)


@app.command()
def revoke(
    ctx: typer.Context,
    *,
    device: Annotated[str, typer.Argument(help="Its name, id, or a unique start or end of the id.")],
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")],
    json_: JsonFlag = False,
) -> None:
    """Refuse a device at once and for good; rollouts wait for it no more.

    Example: sprat device revoke press-3 --reason stolen
    """
    with connect(ctx) as client:
        revoked = client.devices.revoke(client.devices.resolve(device), reason=reason)
    emit(revoked, as_json=json_, text=f"device {revoked['name']} ({revoked['id']}) is revoked")


@enrolment_app.command("create")
def create(
    ctx: typer.Context,
    *,
    uses: Annotated[int, typer.Option(min=1, help="How many devices may enrol with it.")] = 1,
    expires_s: Annotated[int, typer.Option(min=1, help="Seconds until it ends.")] = 3600,
    group: Annotated[str | None, typer.Option(help="Group that these devices belong to.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Make an enrolment token; it is printed once.

    Example: sprat enrolment-token create --uses 10 --expires-s 86400 --group line-a
    """
    with connect(ctx) as client:
        made = client.enrolment_tokens.create(uses=uses, expires_s=expires_s, group=group)
    emit(made, as_json=json_, text=made["token"])


@enrolment_app.callback()
def enrolment() -> None:
    """Enrolment tokens: with them devices join the fleet."""
