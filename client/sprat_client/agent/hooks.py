"""Hooks: executables of the device's owner, run on entering and on leaving a state.

`<state>` runs once the state is durable and before its work, `<state>.after` once the next one is durable, with what
ended the state in SPRAT_EVENT. A hook may slow the agent down, up to its timeout; it cannot stop an update. What it
prints goes to the agent's stderr.
"""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

from sprat_client.agent.states import Event, State

_log = logging.getLogger(__name__)


class Hooks:
    """The executables in one folder, named like states (`trial`, `rolling_back`, `trial.after`).

    Args:
        folder: None: no hooks.
        timeout_s: before a hook and what it started is killed.
    """

    def __init__(self, folder: Path | None, timeout_s: float) -> None:
        self._folder, self._timeout_s = folder, timeout_s

    def entered(self, state: State, model: str, release: int | None) -> None:
        """Run the hook before the work of `state`, if there is one, and wait for it."""
        self._run(state.value, state, model, release, {})

    def left(self, state: State, event: Event, model: str, release: int | None) -> None:
        """Run the hook after `state`, likewise; `event` ended it."""
        self._run(f"{state.value}.after", state, model, release, {"SPRAT_EVENT": event.value})

    def _run(self, name: str, state: State, model: str, release: int | None, more: dict[str, str]) -> None:
        if self._folder is None:
            return
        hook = self._folder / name
        if not os.access(hook, os.X_OK):
            return
        said = {
            "SPRAT_STATE": state.value,
            "SPRAT_MODEL": model,
            "SPRAT_RELEASE": "" if release is None else str(release),
            **more,
        }
        try:
            process = subprocess.Popen(  # noqa: S603  # the owner of the device put it there
                [hook], env={**os.environ, **said}, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
            )
        except OSError as bad:
            _log.warning("hook cannot be started", extra={"hook": hook.name, "reason": str(bad)})
            return
        try:
            status = process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _log.warning("hook killed", extra={"hook": hook.name, "timeout_s": self._timeout_s})
            return
        if status:
            _log.warning("hook failed", extra={"hook": hook.name, "status": status})
