"""The page of every error that sprat raises on purpose: its public code, its exit code, what it means."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sprat_client
import sprat_server
import sprat_shared
from sprat_shared.errors import SpratError

PACKAGES = (sprat_shared, sprat_client, sprat_server)

HEAD = """# Errors

<!-- Written by `make docs` out of the code: do not edit. -->

Every error says what happened, to what, and what to do. Its **code** is public and stable: it stands in the `code`
field of the API's problem+json answers, in reports, in logs and in the output of `--json`. Commands end with the
**exit code** (0: done; 2: the command line was wrong; the others below follow sysexits(3) where it has one).
"""


@dataclass(frozen=True, order=True)
class Cause:
    """One public code: where it hangs in the tree of errors and what it means."""

    code: str
    exit_code: int
    error: str
    meaning: str


def import_everything() -> None:
    """Import every module of the packages, so that every class of error exists."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)


def tree(error: type[SpratError] = SpratError) -> Iterator[type[SpratError]]:
    """The class and everything below it that sprat defines, parents first."""
    yield error
    for child in sorted(error.__subclasses__(), key=lambda child: child.__name__):
        if child.__module__.partition(".")[0] in {package.__name__ for package in PACKAGES}:
            yield from tree(child)


def template(message: ast.expr) -> str:
    """The message as it stands in the code, with the names of what is filled in."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in message.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    return f"{{{ast.unparse(message)}}}"


def raised_with_own_code(known: dict[str, type[SpratError]]) -> Iterator[Cause]:
    """Where an error is made with a code of its own: `raise InvalidInput("...", code="dataset.nan")`."""
    for package in PACKAGES:
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(), filename=str(file))):
                if not isinstance(node, ast.Call):
                    continue
                error = known.get(ast.unparse(node.func).rpartition(".")[2])
                codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
                if error and node.args and codes and isinstance(codes[0], ast.Constant):
                    yield Cause(str(codes[0].value), error.exit_code, error.__name__, template(node.args[0]))


def causes() -> list[Cause]:
    """Every public code, once, sorted."""
    import_everything()
    known = {error.__name__: error for error in tree()}
    found: dict[str, Cause] = {}
    for error in known.values():
        meaning = (inspect.getdoc(error) or "").partition("\n\n")[0].replace("\n", " ")
        own = "code" in vars(error)
        if own:
            found[error.code] = Cause(error.code, error.exit_code, error.__name__, meaning)
    for cause in raised_with_own_code(known):
        found.setdefault(cause.code, cause)
    return sorted(found.values())


def errors_page() -> str:
    """Return `docs/errors.md`."""
    rows = [
        f"| `{cause.code}` | {cause.exit_code} | `{cause.error}` | {cause.meaning.replace('|', chr(92) + '|')} |"
        for cause in causes()
    ]
    return "\n".join([HEAD, "| code | exit | error | meaning |", "|---|---|---|---|", *rows, ""])
