"""`sprat`, the operators' command."""

import sys

_EXTRA = frozenset({"typer", "rich", "click", "shellingham"})
_EX_CONFIG = 78  # sysexits(3)


def main() -> None:
    """Run `sprat`; the entry point of the console script."""
    try:
        from sprat_client.cli.app import run  # noqa: PLC0415 - the extra may be missing, and then is named
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(  # noqa: T201 - there is nothing else to say it with
            f"sprat: the command line needs the extra 'cli' ({error.name} is missing): pip install 'sprat[cli]'",
            file=sys.stderr,
        )
        sys.exit(_EX_CONFIG)
    run()
