"""The commands. What each needs is imported when it runs: a worker loads its libraries after their threads are set."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from sprat_server.settings import Settings, load_settings
from sprat_shared import errors

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sprat_server.db.session import Database

_EPILOG = (
    "Settings are environment variables, SPRAT_DATABASE_URL and so on; options win over them."
    "\n\n\b\nExit codes:\n  0  stopped as asked, or done\n  1  failed for another reason\n"
    "  2  the command line is not understood\n"
    + "\n".join(
        f" {kind.exit_code}  {(kind.__doc__ or '').splitlines()[0].rstrip('.')}"
        for kind in sorted(errors.SpratError.__subclasses__(), key=lambda kind: kind.exit_code)
        if kind.__module__ == errors.__name__ and kind is not errors.UpdateRejected
    )
    + "\n 78  The machine or its configuration is not fit: keys, PostgreSQL"
    "\n\n\b\nResults go to stdout, logs and errors to stderr."
    "\n\nExample: sprat-server up --data-dir ./data"
)

app = typer.Typer(
    name="sprat-server",
    help="Run the server of sprat: all of it on one machine (up), or its parts alone.",
    epilog=_EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
database_app = typer.Typer(
    help="The database: its schema, and tokens and keys for whoever holds it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(database_app, name="db")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of text.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of keys, blobs and the private PostgreSQL.  [env: SPRAT_DATA_DIR]", show_default=False),
]
Host = Annotated[
    str | None,
    typer.Option(help="Address to listen on; 127.0.0.1 unless given.  [env: SPRAT_HOST]", show_default=False),
]
Port = Annotated[
    int | None,
    typer.Option(
        help="Port to listen on; 8470 unless given, 0 takes a free one.  [env: SPRAT_PORT]",
        min=0,
        max=65535,
        show_default=False,
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Speak plain HTTP on an address that is not loopback: only behind a proxy that ends TLS."
        "  [env: SPRAT_INSECURE]",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        help="Certificate and chain (PEM) to serve HTTPS with; needs --tls-key.  [env: SPRAT_TLS_CERT]",
        show_default=False,
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(help="The certificate's private key (PEM).  [env: SPRAT_TLS_KEY]", show_default=False),
]


def _say_version(wanted: bool) -> None:  # noqa: FBT001 - the shape of typer's callbacks
    if wanted:
        typer.echo(f"sprat-server {version('sprat')}")
        raise typer.Exit


@app.callback()
def root(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Run the server of sprat: all of it on one machine (up), or its parts alone."""


@app.command()
def up(
    *,
    data_dir: DataDir = None,
    host: Host = None,
    port: Port = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    as_json: JsonFlag = False,
) -> None:
    """Start everything on this machine: a private PostgreSQL, migrations, the API and one worker.

    Prints the URL, and the first admin token when it is made, which is once in the life of the data folder. With
    SPRAT_DATABASE_URL set, that database is used and no PostgreSQL is started. SIGTERM or Ctrl-C stops all parts.

    Example: sprat-server up --data-dir ./data --port 8470
    """
    settings = _settings(
        "up", data_dir=data_dir, host=host, port=port, insecure=insecure or None, tls_cert=tls_cert, tls_key=tls_key
    )
    from sprat_server.cli import supervisor  # noqa: PLC0415 - see the top

    def say(url: str, admin_token: str | None) -> None:
        if as_json:
            _print_json(url=url, admin_token=admin_token, data_dir=str(settings.data_dir))
            return
        typer.echo(f"sprat-server is up at {url}, its data in {settings.data_dir}")
        if admin_token is not None:
            typer.echo(f"first admin token, shown this once: {admin_token}")
            typer.echo(f"next: sprat login --server {url}")

    supervisor.run_up(settings, say)


@app.command()
def serve(
    *,
    host: Host = None,
    port: Port = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    insecure: Insecure = False,
    as_json: JsonFlag = False,
) -> None:
    """Serve the API alone, on the database and blobs that SPRAT_DATABASE_URL and SPRAT_BLOB_URL name.

    Example: SPRAT_DATABASE_URL=postgresql://sprat@db/sprat sprat-server serve --port 8470
    """
    settings = _settings("api", host=host, port=port, insecure=insecure or None, tls_cert=tls_cert, tls_key=tls_key)
    from sprat_server.cli import supervisor  # noqa: PLC0415 - see the top

    def say(url: str, _admin_token: str | None) -> None:
        if as_json:
            _print_json(url=url)
        else:
            typer.echo(f"sprat-server serves {url}")

    supervisor.run_serve(settings, say)


@app.command()
def worker(
    *,
    parent_fd: Annotated[int | None, typer.Option(hidden=True, help="Ends with the process that holds this.")] = None,
) -> None:
    """Carry out jobs (registration, retraining, releases) one after the other, for SPRAT_DATABASE_URL.

    Any number of workers may run. One that is told to stop, or dies, leaves its job to the others.

    Example: SPRAT_RECIPE_PACKAGES=my_models SPRAT_DATABASE_URL=postgresql://sprat@db/sprat sprat-server worker
    """
    settings = _settings("worker")
    from sprat_server.worker import run_worker  # noqa: PLC0415 - see the top

    run_worker(settings, parent_fd=parent_fd)


@database_app.command()
def upgrade(*, data_dir: DataDir = None, as_json: JsonFlag = False) -> None:
    """Bring the database to the schema of this sprat.

    Without SPRAT_DATABASE_URL it is the private PostgreSQL of the data folder. Gives up rather than wait long for a
    lock; run it again then.

    Example: SPRAT_DATABASE_URL=postgresql://sprat@db/sprat sprat-server db upgrade
    """
    settings = _settings("db", data_dir=data_dir)
    from sprat_server.db import migrate  # noqa: PLC0415 - see the top

    with _database(settings) as database:
        before, after = migrate.upgrade(database.engine)
    if as_json:
        _print_json(before=before, after=after)
    elif before == after:
        typer.echo(f"the database is at {after} already")
    else:
        typer.echo(f"the database is at {after}, it was at {before or 'no schema'}")


@database_app.command()
def token(
    *,
    name: Annotated[str, typer.Option(help="What to call the token.")],
    scope: Annotated[
        Literal["viewer", "operator", "releaser", "admin"], typer.Option(help="What it allows.")
    ] = "admin",
    project: Annotated[
        str | None, typer.Option(help="Of this project; of the whole server unless given.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an operator's token straight in the database, for the first start of `serve` or after a lost token.

    Example: sprat-server db token --name me --scope admin
    """
    settings = _settings("db", data_dir=data_dir)
    from sprat_server.access import audit, tokens  # noqa: PLC0415 - see the top
    from sprat_server.db.migrate import require_newest  # noqa: PLC0415 - see the top
    from sprat_server.observe.actors import SYSTEM  # noqa: PLC0415 - see the top

    with _database(settings) as database:
        require_newest(database.engine)
        with _in_project(database, project) as session:
            made, text = tokens.create(
                session,
                name=name,
                scope=tokens.Scope.of(scope),
                expires_s=None,
                by=None,
                whole_server=project is None,
            )
            after = {"name": name, "scope": scope}
            audit.record(session, SYSTEM, "token.create", f"token:{made.id}", None, after, of_server=project is None)
    if as_json:
        _print_json(name=name, scope=scope, token=text)
    else:
        typer.echo(text)


@database_app.command()
def rotate_director(
    *,
    root: Annotated[bool, typer.Option("--root", help="Replace the root key instead.")] = False,
    project: Annotated[str, typer.Option(help="Of this project; each has keys of its own.")] = "default",
    data_dir: DataDir = None,
    as_json: JsonFlag = False,
) -> None:
    """Replace the director's online key, or its root key; needs the director's root key in the keys folder.

    Devices follow with their next poll, and forget what whoever took the old key signed. Every server needs the new
    key's file in its keys folder; one without it answers polls with an error.

    Example: sprat-server db rotate-director --data-dir ./data
    """
    settings = _settings("db", data_dir=data_dir)
    from sprat_server.access import audit  # noqa: PLC0415 - see the top
    from sprat_server.db.migrate import require_newest  # noqa: PLC0415 - see the top
    from sprat_server.observe.actors import SYSTEM  # noqa: PLC0415 - see the top
    from sprat_server.publish import director_root  # noqa: PLC0415 - see the top

    with _database(settings) as database:
        require_newest(database.engine)
        with _in_project(database, project) as session:
            rotate = director_root.rotate_root_key if root else director_root.rotate_online_key
            old, new = rotate(session, settings)
            audit.record(session, SYSTEM, "director.rotate", "director", {"key": old.name}, {"key": new.name})
    old.unlink(missing_ok=True)
    if as_json:
        _print_json(old=str(old), new=str(new))
    else:
        what = "the director's root is signed with" if root else "the director signs with"
        typer.echo(f"{what} {new} now; {old} is of no use any more and was removed")


def run() -> NoReturn:
    """Run the command of `sys.argv` and end the process with its exit code."""
    try:
        app(prog_name="sprat-server")
    except errors.SpratError as error:
        if "--json" in sys.argv:
            typer.echo(json.dumps({"error": {"code": error.code, "detail": str(error)}}), err=True)
        else:
            typer.echo(f"sprat-server: {error} [{error.code}]", err=True)
        sys.exit(error.exit_code)
    sys.exit(0)


def _settings(process: str, **options: Any) -> Settings:
    """Read the settings and have this process log as they say."""
    settings = load_settings(**options)
    from sprat_server.observe import logs  # noqa: PLC0415 - see the top

    logs.configure(log_format=settings.log_format, log_level=settings.log_level, process=process)
    return settings


@contextmanager
def _database(settings: Settings) -> "Iterator[Database]":
    """Open the database that the settings name; the private one is started for the while, unless it runs."""
    from sprat_server.db.embedded import EmbeddedPostgres, running_url  # noqa: PLC0415 - see the top
    from sprat_server.db.session import Database  # noqa: PLC0415 - see the top

    url = settings.database_url or running_url(settings.data_dir)
    if url is not None:
        database = Database(url)
        try:
            yield database
        finally:
            database.close()
        return
    with EmbeddedPostgres(settings.data_dir, user=settings.postgres_user) as server:
        database = Database(server.url)
        try:
            yield database
        finally:
            database.close()


@contextmanager
def _in_project(database: "Database", name: str | None) -> "Iterator[Session]":
    """Open a transaction in the project of this name; None: on the server itself."""
    from sprat_server.access import projects  # noqa: PLC0415 - see the top
    from sprat_server.db.projects import SERVER, enter  # noqa: PLC0415 - see the top

    with database.transaction(SERVER) as session:
        if name is not None:
            enter(session, projects.find(session, name).id)
        yield session


def _print_json(**result: Any) -> None:
    typer.echo(json.dumps(result))
