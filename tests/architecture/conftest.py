"""The built wheel, and a bare environment that it is installed into."""

import re
import sys
import zipfile
from pathlib import Path

import pytest
from bare_environment import ROOT, install_from_here, needed_by, run


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
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
