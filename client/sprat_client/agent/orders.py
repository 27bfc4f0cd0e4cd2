"""What somebody on the device asks of the running agent, done by its one thread (`control` carries it there)."""

import contextlib
import logging
import queue
from collections.abc import Mapping
from typing import Any, Final

from sprat_client.agent.control import ControlSocket, Order
from sprat_client.agent.machine import ModelMachine
from sprat_client.agent.steps import Workshop
from sprat_shared.errors import InvalidInput, NotFound

_log = logging.getLogger(__name__)
_ON_SITE: Final = ("operator.rolled-back", "somebody on site went back to the release before: sprat-agent rollback")


class Orders:
    """Takes orders from any thread and does them when the agent's thread says so.

    Args:
        shop: what the agent works with.
        machines: of each model; the agent adds to it.
        wake: a queue on which the agent's thread waits. Its put may be called by a signal's handler too.

    Attributes:
        relocated: the server's address changed, and the agent did not turn to the new one yet.
        retried: what was refused may be taken now, and the agent did not look at it again yet.
    """

    def __init__(self, shop: Workshop, machines: Mapping[str, ModelMachine], wake: "queue.SimpleQueue[None]") -> None:
        self._shop, self._machines, self._wake = shop, machines, wake
        self._waiting: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._later: list[Order] = []
        self._control: ControlSocket | None = None
        self.relocated = self.retried = self.facts_changed = False

    def listen(self) -> None:
        """Hear orders from now on, where the file system knows sockets."""
        folder = self._shop.settings.folder
        try:
            self._control = ControlSocket(folder, self._take)
        except OSError as bad:
            _log.warning("orders cannot be given while it runs", extra={"folder": str(folder), "reason": str(bad)})

    def close(self) -> None:
        """Hear none any more."""
        if self._control is not None:
            self._control.close()

    def do(self) -> None:
        """Do what was asked for."""
        for order in self._taken():
            order.answer(self.obey)

    def do_within_download(self) -> bool:
        """Do what can be done between two chunks; return whether the download must end for the rest or the link."""
        for order in self._taken():
            if order.asked.get("do") == "rollback":  # it moves states under the download's feet
                self._later.append(order)
            else:
                order.answer(self.obey)
        return self.relocated or bool(self._later)

    def obey(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Do one thing; return what came of it.

        Raises:
            InvalidInput: nobody knows what it is.
            NotFound, Conflict: it cannot be done.
        """
        done: dict[str, Any]
        match asked:
            case {"do": "settings"}:
                settings = self._shop.settings
                return {
                    "holdouts": {model: str(path) for model, path in settings.holdouts.items()},
                    "hooks": None if settings.hooks is None else str(settings.hooks),
                }
            case {"do": "pause", "until": int() | float() as until}:
                self._shop.journal.pause(float(until))
                done = {"paused_until": float(until)}
            case {"do": "resume"}:
                self._shop.journal.pause(None)
                done = {"paused_until": None}
            case {"do": "rollback", "model": str(model)}:
                done = {"model": model, "release": self._roll_back(model)}
            case {"do": "retry", "model": str(model)}:
                done = {"model": model, "failures_forgotten": self._machine(model).intake.retry()}
                self.retried = True
            case {"do": "look"}:
                self.facts_changed, done = True, {}
            case {"do": "relocate"}:
                self.relocated, done = True, {}
            case _:
                raise InvalidInput(f"no such order: {asked.get('do')!r:.40}")
        self._shop.events.note("order", **asked)
        for machine in self._machines.values():
            machine.look_again()
        return done

    def _roll_back(self, model: str) -> int | None:
        return self._machine(model).roll_back(_ON_SITE)

    def _machine(self, model: str) -> ModelMachine:
        if model not in self._machines:
            raise NotFound(f"model {model!r} is not on this device; it has: {', '.join(self._machines) or 'none'}")
        return self._machines[model]

    def _take(self, order: Order) -> None:
        self._waiting.put(order)
        self._wake.put(None)

    def _taken(self) -> list[Order]:
        taken, self._later = self._later, []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._waiting.get_nowait())
        return taken
