"""Python environments of the benchmark's own, for peers that are never a dependency of sprat."""

import os
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class Unavailable(Exception):
    """A peer that cannot run here; its row is left out, and the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An environment in the folder of the benchmarks' cache, about a gigabyte.

    Attributes:
        name: of what it is for.
        packages: requirements, for pip.
        check: code that fails where they do not work.
    """

    name: str
    packages: tuple[str, ...]
    check: str
    _PREFIX: ClassVar[str] = "SPRAT_BENCH_"

    @property
    def variable(self) -> str:
        """Name of the environment variable that hands its Python to the measuring processes."""
        return self._PREFIX + self.name.upper()

    @property
    def python(self) -> Path:
        """Its Python.

        Raises:
            Unavailable: nobody made it.
        """
        path = os.environ.get(self.variable)
        if path is None:
            raise Unavailable(f"{self.name}: its environment was not made")
        return Path(path)

    def make(self, cache: Path) -> None:
        """Make it below `cache` where it is not there yet, and hand it to this process and its children.

        Raises:
            Unavailable: it cannot be made; the message has pip's last lines.
        """
        folder = cache / f"{self.name}-env"
        python, ready = folder / "bin" / "python", folder / ".ready"
        if not ready.exists():
            if not python.exists():
                venv.create(folder, with_pip=True)
            install = [str(python), "-m", "pip", "install", "--quiet", *self.packages]
            for command in (install, [str(python), "-c", self.check]):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    why = " / ".join(done.stderr.splitlines()[-3:])
                    raise Unavailable(f"{self.name} cannot be installed: {why}")
            ready.touch()
        os.environ[self.variable] = str(python)
