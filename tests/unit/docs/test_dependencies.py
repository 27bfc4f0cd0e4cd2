"""docs/dependencies.md lists what pyproject.toml asks for, with the licences that are really installed."""

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
PAGE = (ROOT / "docs/dependencies.md").read_text()


def asked_for(requirements: list[str]) -> set[str]:
    """The names of the distributions in a list of requirements, without sprat's own extras."""
    names = {re.split(r"[\[<>=!~ ;]", requirement, maxsplit=1)[0] for requirement in requirements}
    return names - {"sprat"}


GROUPS = {"agent": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def section(group: str) -> str:
    """The part of the page that speaks of one group of dependencies."""
    found = re.search(rf"^## .*`{group}`.*\n((?:(?!## ).*\n?)*)", PAGE, flags=re.MULTILINE)
    assert found, f"docs/dependencies.md has no section for `{group}`"
    return found[1]


@pytest.mark.parametrize("group", GROUPS)
def test_the_page_lists_what_pyproject_asks_for_and_nothing_else(group: str) -> None:
    assert {row[0] for row in ROW.findall(section(group))} == asked_for(GROUPS[group])


@pytest.mark.parametrize("row", ROW.findall(PAGE), ids=lambda row: row[0])
def test_a_row_names_the_licence_that_the_installed_package_declares(row: tuple[str, ...]) -> None:
    name, _, _, licence, _ = row
    declared = metadata(name)
    told = " ".join(
        [
            declared.get("License-Expression") or "",
            (declared.get("License") or "")[:200],
            *(line for line in declared.get_all("Classifier") or [] if line.startswith("License")),
        ]
    )
    told = told.replace("Apache Software License", "Apache-2.0").replace("Redistribution and use", "BSD")
    told = told.replace("Python Software Foundation", "PSF")
    families = re.findall(r"MIT|BSD|Apache|LGPL|MPL|PSF|PostgreSQL", licence)
    assert families, f"{name}: the page names no licence that this test knows: {licence}"
    assert all(family in told for family in families if family != "PostgreSQL"), f"{name} says {told!r}"
