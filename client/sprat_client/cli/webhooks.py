"""`sprat webhook` and `sprat events`: what happened, sent to addresses or followed here."""

from typing import Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_fields, emit_table

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Addresses that are sent events, signed.")

Name = Annotated[str, typer.Argument(help="Its name.")]
Types = Annotated[
    list[str] | None, typer.Option("--type", help="Only events of this type; may be given again.  [default: all]")
]


@app.command()
def create(
    ctx: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens, as in pager.")],
    url: Annotated[str, typer.Option(help="Where to send, https://…")],
    types: Types = None,
    json_: JsonFlag = False,
) -> None:
    """Have events sent to an address. The secret that signs them is printed once.

    Example: sprat webhook create pager --url https://hooks.example.com/sprat --type rollout.halted
    """
    with connect(ctx) as client:
        made = client.webhooks.create(name, url=url, types=types or [])
    emit(made, as_json=json_, text=made.get("secret", made["id"]))


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the webhooks.

    Example: sprat webhook list
    """
    with connect(ctx) as client:
        webhooks = client.webhooks.list()
    columns = {
        "name": lambda one: one["name"],
        "state": lambda one: one["state"],
        "types": lambda one: ", ".join(one["types"]) or "all",
        "url": lambda one: one["url"],
        "failing since": lambda one: one["failing_since"],
    }
    emit_table(webhooks, columns, as_json=json_, empty="no webhook")


@app.command()
def show(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Show a webhook.

    Example: sprat webhook show pager
    """
    with connect(ctx) as client:
        emit_fields(client.webhooks.get(name), as_json=json_)


@app.command()
def delete(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Send nothing more to an address, and forget what was sent.

    Example: sprat webhook delete pager
    """
    with connect(ctx) as client:
        client.webhooks.delete(name)
    emit({"name": name, "deleted": True}, as_json=json_, text=f"webhook {name} is deleted")


@app.command()
def rotate(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Give a webhook another secret, printed once; the one before signs beside it for a day.

    Example: sprat webhook rotate pager
    """
    with connect(ctx) as client:
        made = client.webhooks.rotate(name)
    emit(made, as_json=json_, text=made.get("secret", made["id"]))


@app.command()
def enable(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Send to an address again that was disabled because no delivery succeeded for days.

    Example: sprat webhook enable pager
    """
    with connect(ctx) as client:
        client.webhooks.enable(name)
    emit({"name": name, "enabled": True}, as_json=json_, text=f"webhook {name} is sent events again")


@app.command("test")
def try_out(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Send an event of the type webhook.test to this address alone.

    Example: sprat webhook test pager && sprat webhook deliveries pager
    """
    with connect(ctx) as client:
        client.webhooks.test(name)
    text = f"an event is on its way; see: sprat webhook deliveries {name}"
    emit({"name": name, "sent": True}, as_json=json_, text=text)


@app.command()
def deliveries(
    ctx: typer.Context,
    *,
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, the newest.")] = 50,
    json_: JsonFlag = False,
) -> None:
    """List what a webhook was sent and how that went, the newest event first.

    Example: sprat webhook deliveries pager --limit 10
    """
    with connect(ctx) as client:
        sent = client.webhooks.deliveries(name, limit=limit)
    columns = {
        "event": lambda one: one["event"],
        "type": lambda one: one["type"],
        "state": lambda one: one["state"],
        "attempts": lambda one: one["attempts"],
        "answer": lambda one: one["status"],
        "tried": lambda one: one["tried_at"],
        "next": lambda one: one["next_at"],
        "error": lambda one: one["error"],
    }
    emit_table(sent, columns, as_json=json_, empty="nothing was sent yet")


@app.command()
def replay(
    ctx: typer.Context,
    *,
    name: Name,
    event: Annotated[str, typer.Argument(help="Id of the event, as `sprat webhook deliveries` shows it.")],
    json_: JsonFlag = False,
) -> None:
    """Send an event to a webhook again, whether it was delivered or given up.

    Example: sprat webhook replay pager 01a229d7-b64f-7047-a776-2de43df6354c
    """
    with connect(ctx) as client:
        again = client.webhooks.replay(name, event)
    emit(again, as_json=json_, text=f"event {event} is on its way to {name} again")


def events(
    ctx: typer.Context,
    *,
    follow: Annotated[bool, typer.Option("--follow", help="Go on, and show what happens.")] = False,
    types: Types = None,
    after: Annotated[
        int | None, typer.Option(help="With --follow: begin after the event of this number.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, the newest.")] = 50,
    json_: JsonFlag = False,
) -> None:
    """List what happened, newest first; or follow it as it happens, until Ctrl-C.

    Example: sprat events --follow --type rollout.halted --json
    """
    columns = {
        "number": lambda one: one["seq"],
        "at": lambda one: one["timestamp"],
        "type": lambda one: one["type"],
        "subject": lambda one: one["subject"],
    }
    with connect(ctx) as client:
        if not follow:
            emit_table(client.events.list(types=types or [], limit=limit), columns, as_json=json_, empty="no event")
            return
        for event in client.events.follow(types=types or [], after=after):
            text = f"{event['seq']:>6}  {event['timestamp']}  {event['type']:<20} {event['subject']}"
            emit(event, as_json=json_, text=text)
