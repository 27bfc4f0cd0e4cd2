"""Each import contract of pyproject.toml, broken once on purpose in a copy of the tree and seen red."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("server", "client", "shared")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

# contract: the file that gets one more line, that line, and what the linter must then name
BREAKS: dict[str, tuple[str, str, str]] = {
    "sides": (
        "client/sprat_client/runtime/__init__.py",
        "import sprat_server.settings",
        "sprat_client.runtime -> sprat_server.settings",
    ),
    "server": (
        "server/sprat_server/registry/service.py",
        "import sprat_server.fleet.service",
        "sprat_server.registry.service -> sprat_server.fleet.service",
    ),
    "client": (
        "client/sprat_client/agent/__init__.py",
        "import sprat_client.cli",
        "sprat_client.agent -> sprat_client.cli",
    ),
    "commands-know-no-agent": (
        "client/sprat_client/cli/output.py",
        "import sprat_client.agent.settings",
        "sprat_client.cli.output -> sprat_client.agent.settings",
    ),
    "shared": (
        "shared/sprat_shared/wire/__init__.py",
        "import sprat_shared.trust",
        "sprat_shared.wire -> sprat_shared.trust",
    ),
    "app-is-light": (
        "server/sprat_server/registry/models.py",
        "def lazily() -> None:\n    import torch",
        "sprat_server.registry.models -> torch",
    ),
    "agent-is-light": (
        "client/sprat_client/agent/__init__.py",
        "def lazily() -> None:\n    import rich",
        "sprat_client.agent -> rich",
    ),
    "decisions-are-pure": (
        "client/sprat_client/agent/states.py",
        "import time",
        "sprat_client.agent.states -> time",
    ),
    "the-fleet-s-decisions-are-pure": (
        "server/sprat_server/fleet/filters.py",
        "import sqlalchemy",
        "sprat_server.fleet.filters -> sqlalchemy",
    ),
    "shared-is-pure": (
        "shared/sprat_shared/wire/__init__.py",
        "import socket",
        "sprat_shared.wire -> socket",
    ),
    "apply-is-light": (
        "shared/sprat_shared/wire/__init__.py",
        "import onnxruntime",
        "sprat_shared.wire -> onnxruntime",
    ),
}


def copy_tree(folder: Path) -> Path:
    """Copy the packages and the configuration into an empty folder; return it."""
    for source in SOURCES:
        shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(tree: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    """Check the contracts (all when none is named) of the packages in `tree`, and of no other copy."""
    path = os.pathsep.join(str(tree / source) for source in SOURCES)
    linter = Path(sys.executable).with_name("lint-imports")
    named = [argument for contract in contracts for argument in ("--contract", contract)]
    return subprocess.run(
        [linter, "--no-logo", "--no-cache", *named],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_contract_holds_in_the_tree_as_it_is(tmp_path: Path) -> None:
    done = lint(copy_tree(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken" in done.stdout


def test_every_contract_has_a_break_below() -> None:
    assert {contract["id"] for contract in CONTRACTS} == set(BREAKS)


@pytest.mark.parametrize("contract", BREAKS)
def test_a_contract_that_is_broken_on_purpose_turns_red_and_names_the_import(contract: str, tmp_path: Path) -> None:
    file, line, named = BREAKS[contract]
    tree = copy_tree(tmp_path)
    with (tree / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint(tree, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 kept, 1 broken" in done.stdout
    assert named in done.stdout


def test_a_package_outside_the_layers_turns_red(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path)
    stray = tree / "server/sprat_server/stray"
    stray.mkdir()
    (stray / "__init__.py").write_text('"""Belongs to no layer."""\n')
    done = lint(tree, "server")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "stray" in done.stdout
