"""The page of every error that sprat raises on purpose: public code, exit code, HTTP status, what it means."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sprat_client
import sprat_server
import sprat_shared
from sprat_server.api import problems
from sprat_shared.errors import SpratError

PACKAGES = (sprat_shared, sprat_client, sprat_server)

HEAD = """# Errors

<!-- Written by `make docs` out of the code: do not edit. -->

Every error says what happened, to what, and what to do. Its **code** is public and stable: it stands in the `code`
field of the API's problem+json answers, in reports, in logs and in the output of `--json`. Commands end with the
**exit code** (0: done; 2: the command line was wrong; the others below follow sysexits(3) where it has one).
Where a meaning is a message, {braces} stand for what is filled in.
"""

API_HEAD = """
## Of the API alone

Answers that have no class of their own behind them.
"""

REPORT_HEAD = """
## In reports alone

Why a release was taken back from its trial or later, or refused in the shadow. No command and no route ends with these.
"""

# Codes that only the API's handlers in problems.py give.
API_CODES = {
    "database.away": (503, "the database does not answer; try again soon"),
    "request.invalid": (422, "the request is not what the route takes; `errors` names each field"),
    "request.method": (405, "the route exists, the method does not"),
    "request.no-such-route": (404, "there is no such route"),
    "request.too-large": (413, "the body is larger than the server takes"),
    "server.bug": (500, "the server made a mistake; its log says more under the request's id"),
}


@dataclass(frozen=True, order=True)
class Cause:
    """One public code: where it hangs in the tree of errors and what it means."""

    code: str
    error: type[SpratError]
    meaning: str
    package: str  # sprat_client's never leave the machine they happen on

    @property
    def row(self) -> str:
        """The line of the table."""
        raised = self.error.__new__(self.error)  # what a class takes to be made is its own affair
        raised.code = self.code
        status = "" if self.package == sprat_client.__name__ else int(problems.status_of(raised))
        meaning = self.meaning.replace("|", "\\|")
        code = f'<a id="{self.code}"></a>`{self.code}`'
        return f"| {code} | {self.error.exit_code} | {status} | {self.error.__name__} | {meaning} |"


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


def calls(package_path: str) -> Iterator[tuple[ast.Call, dict[str, str]]]:
    """Every call in the source of a package, and the texts that its file names, file by file in a stable order."""
    for file in sorted(Path(package_path).rglob("*.py")):
        parsed = ast.parse(file.read_text())
        named = {
            node.target.id: node.value.value
            for node in parsed.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        }
        yield from ((node, named) for node in ast.walk(parsed) if isinstance(node, ast.Call))


def raised_with_own_code(known: dict[str, type[SpratError]]) -> Iterator[Cause]:
    """Where an error is made with a code of its own: `raise InvalidInput("...", code="dataset.nan")`."""
    for package in PACKAGES:
        for call, constants in calls(package.__path__[0]):
            error = known.get(ast.unparse(call.func).rpartition(".")[2])
            codes = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            code = constants.get(codes[0].id) if codes and isinstance(codes[0], ast.Name) else None
            if codes and isinstance(codes[0], ast.Constant):
                code = str(codes[0].value)
            if error and call.args and code:
                yield Cause(code, error, template(call.args[0]), package.__name__)


def causes() -> list[Cause]:
    """Every public code of the tree, once, sorted."""
    import_everything()
    known = {error.__name__: error for error in tree()}
    found: dict[str, Cause] = {}
    for error in known.values():
        if "code" in vars(error):
            meaning = (inspect.getdoc(error) or "").partition("\n\n")[0].replace("\n", " ")
            found[error.code] = Cause(error.code, error, meaning, error.__module__.partition(".")[0])
    for cause in raised_with_own_code(known):
        found.setdefault(cause.code, cause)
    return sorted(found.values(), key=lambda cause: cause.code)


def verdicts() -> Iterator[str]:
    """The rows of what shadow and trial can show: `Unhealthy("trial.slow", "...")`, `_go_back("...", "...")`."""
    found = {}
    for call, _ in calls(sprat_client.__path__[0]):
        named = call.args[0] if len(call.args) > 1 else None
        if ast.unparse(call.func).rpartition(".")[2] in {"Unhealthy", "_go_back"} and isinstance(named, ast.Constant):
            found[str(named.value)] = template(call.args[1])
    for code, meaning in sorted(found.items()):
        yield f'| <a id="{code}"></a>`{code}` | {meaning} |'


def codes_of_the_api() -> set[str]:
    """The codes that stand in problems.py as plain text, outside what it logs."""
    source = ast.parse(Path(inspect.getfile(problems)).read_text())
    logged = {
        id(part)
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_log.")
        for part in ast.walk(node)
    }
    return {
        node.value
        for node in ast.walk(source)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in logged
        and re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)*", node.value)
    }


def errors_page() -> str:
    """Return `docs/errors.md`.

    Raises:
        SystemExit: problems.py gives a code that is described neither by the tree nor here.
    """
    found = causes()
    if strays := codes_of_the_api() - {cause.code for cause in found} - set(API_CODES):
        raise SystemExit(f"docs/errors_page.py: describe {', '.join(sorted(strays))} in API_CODES")
    table = ["| code | exit | HTTP | error | meaning |", "|---|---|---|---|---|", *(cause.row for cause in found)]
    own = {code: told for code, told in sorted(API_CODES.items()) if code not in {cause.code for cause in found}}
    api = ["| code | HTTP | meaning |", "|---|---|---|"]
    api += [f'| <a id="{code}"></a>`{code}` | {status} | {meaning} |' for code, (status, meaning) in own.items()]
    reports = ["| code | meaning |", "|---|---|", *verdicts()]
    return "\n".join([HEAD, *table, REPORT_HEAD, *reports, API_HEAD, *api, ""])
