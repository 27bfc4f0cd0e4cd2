"""`sprat-server`, the command that runs the server and its parts."""

import sys

_EXTRA = frozenset({"typer", "rich", "fastapi", "sqlalchemy", "alembic", "psycopg", "procrastinate", "obstore",
                    "pydantic", "pydantic_settings", "structlog", "prometheus_client"})  # fmt: skip
_EX_CONFIG = 78  # sysexits(3)


def main() -> None:
    """Run `sprat-server`; the entry point of the console script."""
    try:
        from sprat_server.cli.app import run  # noqa: PLC0415 - the extra may be missing, and then is named
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(  # noqa: T201 - there is nothing else to say it with
            f"sprat-server: this needs the extra 'server' ({error.name} is missing): pip install 'sprat[server]'",
            file=sys.stderr,
        )
        sys.exit(_EX_CONFIG)
    run()
