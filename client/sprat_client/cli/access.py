"""`sprat token` and `sprat login`: who may do what."""

import sys
from typing import Annotated

import typer

from sprat_client.cli.invocation import DEFAULT_PROFILE, Invocation, JsonFlag, connect, write_profile
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
    whole_server: Annotated[
        bool, typer.Option("--whole-server", help="For every project and the server itself, not for one project.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Make a token; it is printed once. A scope includes those before it: viewer, operator, releaser, admin.

    It is of the project in which it is made (sprat --project).

    Example: sprat token create ci --scope releaser --expires-s 2592000
    """
    with connect(ctx) as client:
        made = client.tokens.create(name, scopes=scope or ["viewer"], expires_s=expires_s, whole_server=whole_server)
    emit(made, as_json=json_, text=made.get("token", made["id"]))


@app.command("list")
def list_(
    ctx: typer.Context,
    *,
    of_server: Annotated[bool, typer.Option("--of-server", help="Those of the whole server.")] = False,
    json_: JsonFlag = False,
) -> None:
    """List the project's tokens, without their secrets.

    Example: sprat token list
    """
    with connect(ctx) as client:
        tokens = client.tokens.list(of_server=of_server)
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
    of_server: Annotated[bool, typer.Option("--of-server", help="One of the whole server.")] = False,
    json_: JsonFlag = False,
) -> None:
    """End a token at once.

    Example: sprat token revoke ci
    """
    with connect(ctx) as client:
        token_id = client.tokens.resolve(token, of_server=of_server)
        client.tokens.revoke(token_id)
    emit({"id": token_id, "revoked": True}, as_json=json_, text=f"token {token_id} is revoked")


def login(
    ctx: typer.Context,
    *,
    server: Annotated[str | None, typer.Option(help="The server, http(s)://host:port.", show_default=False)] = None,
    profile: Annotated[
        str | None, typer.Option(help="Keep them under this name, for sprat --profile.", show_default=False)
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Keep server, token and project in a file that only you can read (0600), after trying them.

    The token is read from SPRAT_TOKEN, else asked for, or read from stdin where that is not a terminal.

    Example: sprat login --server http://127.0.0.1:8470
    """
    invocation = ctx.ensure_object(Invocation)
    invocation.server = server or invocation.server
    name, invocation.profile = profile or invocation.profile or DEFAULT_PROFILE, None
    if invocation.server is None:
        raise InvalidInput("say which server: sprat login --server http://host:port", code="cli.no-server")
    if invocation.token is None:
        asked = typer.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
        invocation.token = asked.strip()
    if not invocation.token:
        raise InvalidInput("the token is empty; give it on stdin or in SPRAT_TOKEN", code="cli.no-token")
    with connect(ctx) as client:
        client.models.list()
    kept = {"server": invocation.server, "token": invocation.token}
    if invocation.project is not None:
        kept["project"] = invocation.project
    path = write_profile(name, kept)
    said = {"server": invocation.server, "project": invocation.project, "profile": name, "config": str(path)}
    emit(said, as_json=json_, text=f"logged in to {invocation.server}; kept in {path}")
