"""How long things may take: a state, by its rule and the time spent in it; a step of it, before it counts as stuck."""

import logging
from typing import Final

from sprat_client.agent.progress import DeadlineMissed, Progress
from sprat_client.agent.settings import AgentSettings
from sprat_client.agent.states import RULES, Late, State, is_late

_log = logging.getLogger(__name__)
_KEEP_TIME_EVERY_S: Final = 900.0  # at most so much of a state's time is forgotten by a power cut
_ASKING: Final = frozenset({State.IDLE, State.FETCHING, State.VERIFYING, State.REBUILDING})  # they may ask the server


class Patience:
    """Judges one model's states by the time that they take.

    Args:
        model: its name.
        progress: the model's record.
        settings: of the agent.
    """

    def __init__(self, model: str, progress: Progress, settings: AgentSettings) -> None:
        self._model, self._progress, self._settings = model, progress, settings
        self._said: State | None = None

    def judge(self) -> DeadlineMissed | None:
        """Return why the present state must be given up, None where it goes on; keep the time that it took.

        A state that nobody can give up is said to be late, once.
        """
        record, spent_s = self._progress.record, self._progress.spent_s
        state = record.state
        if state is not self._said:
            self._said = None
        if record.work is not None and is_late(state, spent_s):
            late = f"{spent_s:.0f} s while {state}; {RULES[state].deadline_s:.0f} s are allowed"
            if RULES[state].late is Late.GIVE_UP:
                return DeadlineMissed(f"{late}: given up")
            if self._said is None:
                self._said = state
                said = {"model": self._model, "state": state, "code": DeadlineMissed.code, "detail": late}
                _log.error("late", extra=said)
        if record.work is not None and self._progress.unkept_s > _KEEP_TIME_EVERY_S:
            self._progress.keep_work(record.work)
        return None

    def step_limit_s(self) -> float:
        """Return how long one step of the present state may take: with what it waits for that has limits of its own."""
        settings, state = self._settings, self._progress.state
        own_s = 2 * settings.hook_timeout_s
        if state in _ASKING:
            own_s += settings.link.total_timeout_s
        if state is State.REBUILDING:
            own_s += settings.rebuild_timeout_s + settings.statistics.timeout_s
        return RULES[state].stuck_s + own_s
