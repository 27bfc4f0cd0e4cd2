"""Packages that only bring data or a pretrained network: pip fetches them into the benchmarks' cache folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from sizes.cases.case import CaseUnavailable

FOLDER: Final = Path(__file__).resolve().parents[3] / ".bench" / "packages"


def fetched(requirement: str, *, source: bool = False) -> Path:
    """Return the archive of a package alone, fetched the first time; it is not installed.

    Args:
        requirement: `name==version`.
        source: the source archive (.tar.gz) rather than the wheel.

    Raises:
        CaseUnavailable: pip cannot fetch it; the message has pip's last lines.
    """
    folder = FOLDER / requirement.replace("==", "-")
    if not folder.exists():
        beside = folder.with_name(f"{folder.name}.{os.getpid()}")
        kind = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind, "--dest", str(beside)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(beside, ignore_errors=True)
            why = " / ".join(done.stderr.splitlines()[-3:])
            raise CaseUnavailable(f"pip cannot fetch {requirement} into {folder}: {why}")
        if not folder.exists():
            beside.rename(folder)
    return next(folder.iterdir())
