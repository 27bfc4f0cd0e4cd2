"""What holds for one run of `sprat`: the server, the token, where they come from, and how to print."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlsplit

import typer

from sprat_shared.errors import InvalidInput, Unauthenticated

if TYPE_CHECKING:
    from sprat_client.api import SpratClient


_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(slots=True)
class Invocation:
    """The root options of this run."""

    server: str | None = None
    token: str | None = field(default=None, repr=False)
    as_json: bool = False
    insecure: bool = False


def _remember_json(ctx: typer.Context, value: bool) -> bool:  # noqa: FBT001 - the shape of typer's callbacks
    ctx.ensure_object(Invocation).as_json = value
    return value


JsonFlag = Annotated[
    bool, typer.Option("--json", callback=_remember_json, help="Print one JSON object a line instead of text.")
]


def connect(ctx: typer.Context) -> "SpratClient":
    """Return a client of the server that options, environment or `sprat login` name.

    Raises:
        InvalidInput: none of them names a server, or plain HTTP to another machine.
        Unauthenticated: there is no token.
    """
    from sprat_client.api import SpratClient  # noqa: PLC0415 - httpx is not loaded for `sprat delta`

    invocation, saved, server = ctx.ensure_object(Invocation), read_config(), server_of(ctx)
    # A saved token is for the saved server only: it is never sent to another one.
    token = invocation.token or (saved.get("token") if server == saved.get("server") else None)
    if token is None:
        raise Unauthenticated(f"there is no token for {server}; use SPRAT_TOKEN or sprat login")
    _refuse_plain_http(server, insecure=invocation.insecure)
    return SpratClient(server, token)


def server_of(ctx: typer.Context) -> str:
    """Return the server that options, environment or `sprat login` name.

    Raises:
        InvalidInput: none of them does.
    """
    server = ctx.ensure_object(Invocation).server or read_config().get("server")
    if server is None:
        raise InvalidInput("no server is named; use --server, SPRAT_SERVER or sprat login", code="cli.no-server")
    return server


def _refuse_plain_http(server: str, *, insecure: bool) -> None:
    parts = urlsplit(server)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not insecure:
        raise InvalidInput(
            f"{server}: plain HTTP shows your token to everyone on the way; use https://, or --insecure if the link is "
            "protected otherwise",
            code="cli.plain-http",
        )


def config_path() -> Path:
    """Return the path of the config file: SPRAT_CONFIG, else sprat/config.json in XDG_CONFIG_HOME or ~/.config."""
    if explicit := os.environ.get("SPRAT_CONFIG"):
        return Path(explicit)
    folder = os.environ.get("XDG_CONFIG_HOME")
    return (Path(folder) if folder else Path.home() / ".config") / "sprat" / "config.json"


def read_config() -> dict[str, str]:
    """Return {"server", "token"} of `sprat login`, or {} where nobody logged in.

    Raises:
        InvalidInput: the file is not what `sprat login` writes, or others may read it.
    """
    path = config_path()
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise InvalidInput(f"{path} holds a token and others may read it; run: chmod 600 {path}")
    try:
        config = json.loads(text)
    except ValueError:
        config = None
    if not isinstance(config, dict) or not all(isinstance(value, str) for value in config.values()):
        raise InvalidInput(f"{path} is not what sprat login writes; remove it and log in again")
    return config


def write_config(server: str, token: str) -> Path:
    """Keep server and token in the config file, readable by its owner only; returns its path."""
    path = config_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"server": server, "token": token}, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
