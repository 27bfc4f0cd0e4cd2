"""The `sprat` command, run as one types it, its JSON read back."""

import json
import signal
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from demo.processes import ProcessFailed, environment, program


class Shell:
    """Runs `sprat …` against one server.

    Args:
        server_url: of the server.
        token: of an operator.
        show: called with the words of each command before it runs.
        progress: let the command's progress (stderr) reach the terminal.
    """

    def __init__(
        self,
        server_url: str,
        token: str,
        *,
        show: Callable[[Sequence[str]], None] | None = None,
        progress: bool = False,
    ) -> None:
        self._env = environment(SPRAT_SERVER=server_url, SPRAT_TOKEN=token, SPRAT_CONFIG="/nonexistent")
        self._show, self._progress = show, progress

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `sprat words` and return how it ended."""
        if self._show is not None:
            self._show(["sprat", *words])
        stderr = None if self._progress else subprocess.PIPE
        return subprocess.run(
            [program("sprat"), *words], env=self._env, stdout=subprocess.PIPE, stderr=stderr, text=True, check=False
        )

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start `sprat words` and do not wait for it; Ctrl-C ends it even where whoever runs us ignores that."""
        pipe, heed = subprocess.PIPE, partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        command = [program("sprat"), *words]
        return subprocess.Popen(command, env=self._env, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed)  # noqa: PLW1509 - one call of signal(2), and no thread of ours holds a lock that it takes

    def all(self, *words: str, codes: Sequence[int] = (0,)) -> list[Any]:
        """Run `sprat words --json` and return its JSON lines.

        Raises:
            ProcessFailed: it ended with another exit code than `codes`.
        """
        ended = self.run(*words, "--json")
        if ended.returncode not in codes:
            why = (ended.stderr or "see above").strip()
            raise ProcessFailed(f"sprat {' '.join(words)} ended with exit code {ended.returncode}: {why}")
        return [json.loads(line) for line in ended.stdout.splitlines()]

    def one(self, *words: str, codes: Sequence[int] = (0,)) -> Any:
        """Like `all`, for commands that print one result."""
        lines = self.all(*words, codes=codes)
        if len(lines) != 1:
            raise ProcessFailed(f"sprat {' '.join(words)} printed {len(lines)} results, one was expected")
        return lines[0]
