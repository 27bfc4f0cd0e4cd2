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


DEFAULT_PROFILE: Final = "default"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(slots=True)
class Invocation:
    """The root options of this run."""

    server: str | None = None
    token: str | None = field(default=None, repr=False)
    project: str | None = None
    profile: str | None = None
    as_json: bool = False
    insecure: bool = False


def _remember_json(ctx: typer.Context, value: bool) -> bool:  # noqa: FBT001 - the shape of typer's callbacks
    ctx.ensure_object(Invocation).as_json = value
    return value


JsonFlag = Annotated[
    bool, typer.Option("--json", callback=_remember_json, help="Print one JSON object a line instead of text.")
]


def connect(ctx: typer.Context) -> "SpratClient":
    """Return a client of the server and the project that options, environment or `sprat login` name.

    Raises:
        InvalidInput: none of them names a server, or plain HTTP to another machine.
        Unauthenticated: there is no token.
    """
    from sprat_client.api import SpratClient  # noqa: PLC0415 - httpx is not loaded for `sprat delta`

    invocation, server = ctx.ensure_object(Invocation), server_of(ctx)
    # A saved token is for the saved server only: it is never sent to another one. So is the saved project.
    saved = read_profile(invocation.profile)
    saved = saved if server == saved.get("server") else {}
    token = invocation.token or saved.get("token")
    if token is None:
        raise Unauthenticated(f"there is no token for {server}; use SPRAT_TOKEN or sprat login")
    project = invocation.project or (saved.get("project") if token == saved.get("token") else None)
    _refuse_plain_http(server, insecure=invocation.insecure)
    return SpratClient(server, token, project=project)


def server_of(ctx: typer.Context) -> str:
    """Return the server that options, environment or `sprat login` name.

    Raises:
        InvalidInput: none of them does.
    """
    invocation = ctx.ensure_object(Invocation)
    server = invocation.server or read_profile(invocation.profile).get("server")
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


def read_profile(name: str | None) -> dict[str, str]:
    """Return {"server", "token", "project"} of `sprat login`, or {} where nobody logged in.

    Raises:
        InvalidInput: there is no profile of this name, the file is not what `sprat login` writes, or others may read
            it.
    """
    profiles = read_profiles()
    if name is not None and name not in profiles:
        known = ", ".join(sorted(profiles)) or "none"
        raise InvalidInput(
            f"there is no profile {name!r} (there are: {known}); make it with: sprat login --profile {name}",
            code="cli.no-profile",
        )
    return profiles.get(name or DEFAULT_PROFILE, {})


def read_profiles() -> dict[str, dict[str, str]]:
    """Return what `sprat login` kept, by profile; InvalidInput as `read_profile`."""
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
    if isinstance(config, dict) and "profiles" not in config:
        config = {"profiles": {DEFAULT_PROFILE: config}}  # as before there were profiles
    profiles = config.get("profiles") if isinstance(config, dict) else None
    if not isinstance(profiles, dict) or not all(_is_profile(each) for each in profiles.values()):
        raise InvalidInput(f"{path} is not what sprat login writes; remove it and log in again")
    return profiles


def _is_profile(said: object) -> bool:
    return isinstance(said, dict) and all(isinstance(value, str) for value in said.values())


def write_profile(name: str | None, profile: dict[str, str]) -> Path:
    """Keep a profile in the config file, readable by its owner only; returns the file's path."""
    path = config_path()
    profiles = read_profiles() | {name or DEFAULT_PROFILE: profile}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump({"profiles": profiles}, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
