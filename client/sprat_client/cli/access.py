"""`sprat token` and `sprat login`: who may do what."""

import sys
from typing import Annotated

import typer

from sprat_client.cli.invocation import Invocation, JsonFlag, connect, write_config
from sprat_client.cli.output import emit, emit_table
from sprat_shared.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tokens of operators.")


@app.command()
def create(
    ctx: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="Whose or what's it is, such as ci or mara.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="viewer, operator, releaser or admin.  [default: viewer]")
    ] = None,
    expires_s: Annotated[int | None, typer.Option(min=1, help="Seconds until it ends.  [default: never]")] = None,
    json_: JsonFlag = False,
) -> None:
    """Make a token; it is printed once. A scope includes those before it: viewer, operator, releaser, admin.

    Example: sprat token create ci --scope releaser --expires-s 2592000
    """
    with connect(ctx) as client:
        made = client.tokens.create(name, scopes=scope or ["viewer"], expires_s=expires_s)
    emit(made, as_json=json_, text=made.get("token", made["id"]))


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the tokens, without their secrets.

    Example: sprat token list
    """
    with connect(ctx) as client:
        tokens = client.tokens.list()
    columns = {
        "token": lambda one: one["id"],
        "name": lambda one: one["name"],
        "scopes": lambda one: ", ".join(one["scopes"]),
        "expires": lambda one: one["expires_at"] if one["revoked_at"] is None else "revoked",
        "last used": lambda one: one["last_used_at"],
    }
    emit_table(tokens, columns, as_json=json_, empty="no token")


@app.command()
def revoke(
    ctx: typer.Context,
    *,
    token: Annotated[str, typer.Argument(help="Its name, id, or a unique start or end of the id.")],
    json_: JsonFlag = False,
) -> None:
    """End a token at once.

    Example: sprat token revoke ci
    """
    with connect(ctx) as client:
        token_id = client.tokens.resolve(token)
        client.tokens.revoke(token_id)
    emit({"id": token_id, "revoked": True}, as_json=json_, text=f"token {token_id} is revoked")


def login(
    ctx: typer.Context,
    *,
    server: Annotated[str | None, typer.Option(help="The server, http(s)://host:port.", show_default=False)] = None,
    json_: JsonFlag = False,
) -> None:
    """Keep server and token in a file that only you can read (0600), after trying them.

    The token is read from SPRAT_TOKEN, else asked for, or read from stdin where that is not a terminal.

    Example: sprat login --server http://127.0.0.1:8470
    """
    invocation = ctx.ensure_object(Invocation)
    invocation.server = server or invocation.server
    if invocation.server is None:
        raise InvalidInput("say which server: sprat login --server http://host:port", code="cli.no-server")
    if invocation.token is None:
        asked = typer.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
        invocation.token = asked.strip()
    if not invocation.token:
        raise InvalidInput("the token is empty; give it on stdin or in SPRAT_TOKEN", code="cli.no-token")
    with connect(ctx) as client:
        client.models.list()
    path = write_config(invocation.server, invocation.token)
    said = {"server": invocation.server, "config": str(path)}
    emit(said, as_json=json_, text=f"logged in to {invocation.server}; kept in {path}")
