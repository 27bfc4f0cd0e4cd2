"""The page of every command: what `--help` says, from the commands themselves."""

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Iterator
from unittest.mock import patch

# name of the command, module whose `main` the console script calls, who uses it
COMMANDS = (
    ("sprat", "sprat_client.cli", "For operators, and `sprat delta` for anybody with two safetensors files."),
    ("sprat-agent", "sprat_client.agent", "For devices."),
    ("sprat-server", "sprat_server.cli", "For the machine that serves the fleet."),
)
COLUMNS = "100"

HEAD = """# Commands

<!-- Written by `make docs` out of the commands: do not edit. -->

Results go to standard output, progress and logs to standard error. `--json` prints one JSON object a line. Exit codes
are those of [errors.md](errors.md).
"""


def help_of(module: str, words: tuple[str, ...]) -> str:
    """What `words --help` prints. A command whose `--help` fails stops the page."""
    printed = io.StringIO()
    arguments = [*words, "--help"]
    plain = {**os.environ, "COLUMNS": COLUMNS, "NO_COLOR": "1", "TERM": "dumb"}
    with contextlib.redirect_stdout(printed), patch.object(sys, "argv", arguments), patch.dict(os.environ, plain):
        try:
            failed = importlib.import_module(module).main()
        except SystemExit as end:
            failed = end.code
    if failed:
        raise SystemExit(f"`{' '.join(arguments)}` failed with exit code {failed}")
    return "\n".join(line.rstrip() for line in printed.getvalue().strip().splitlines())


def commands_below(text: str) -> list[str]:
    """The names of the commands that a help text lists, click's `Commands:` or argparse's `COMMAND`, in its order."""
    for section, name in ((r"Commands:", r"  ([a-z][a-z-]*)"), (r"  COMMAND", r"    ([a-z][a-z-]*)")):
        listed = re.search(rf"^{section}\n((?:^ .*\n?)+)", text, flags=re.MULTILINE)
        if listed:
            return re.findall(rf"^{name}(?: |$)", listed[1], flags=re.MULTILINE)
    return []


def sections(module: str, words: tuple[str, ...]) -> Iterator[str]:
    """One section per command, groups before what is in them."""
    text = help_of(module, words)
    below = commands_below(text)
    yield f"{'#' * min(len(words) + 1, 4)} {' '.join(words)}\n\n```text\n{text}\n```\n"
    for name in below:
        yield from sections(module, (*words, name))


def commands_page() -> str:
    """Return `docs/cli.md`."""
    parts = [HEAD]
    for name, module, who in COMMANDS:
        first, *others = sections(module, (name,))
        title, _, body = first.partition("\n\n")
        parts.extend((f"{title}\n\n{who}\n\n{body}", *others))
    return "\n".join(parts)
