"""`sprat-server up` as a process: embedded PostgreSQL, API and one worker on a free loopback port."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from demo.processes import ROOT, Program, environment, program

_READY_S: Final = 120.0


class Server:
    """A server on a data folder; a context manager that ends all its processes.

    Args:
        folder: holds `server/` (its data), `server.log` and `server.out`.
        recipe_packages: packages that recipes may come from.
        paths: folders to import them from.
        port: 0: any free one.
        more: further settings, such as {"SPRAT_POLL_INTERVAL_S": "1"}.
    """

    def __init__(
        self,
        folder: Path,
        *,
        recipe_packages: str = "",
        paths: tuple[Path, ...] = (),
        port: int = 0,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.data = folder / "server"
        path = ":".join(filter(None, (*map(str, paths), str(ROOT / "examples"), os.environ.get("PYTHONPATH"))))
        env = environment(PYTHONPATH=path, SPRAT_RECIPE_PACKAGES=recipe_packages, **(more or {}))
        words = ["up", "--data-dir", str(self.data), "--port", str(port), "--json"]
        self.process = Program("sprat-server", [program("sprat-server"), *words], log=folder / "server.log", env=env)
        self.url = ""
        self.admin_token = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def start(self) -> None:
        """Start it, and wait until it says where it listens. The admin token is told at the first start only."""
        self.process.start()

        def look() -> Mapping[str, str] | None:
            line, newline, _ = self.process.out.read_text(encoding="utf-8").partition("\n")
            said: Mapping[str, str] | None = json.loads(line) if newline else None
            return said

        said = self.process.until(look, "listening", _READY_S)
        self.url = said["url"]
        self.admin_token = said.get("admin_token") or self.admin_token
