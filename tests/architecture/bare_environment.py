"""Makes an environment with the wheel, its base dependencies and nothing else; needs no network."""

import os
import shutil
import subprocess
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


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
