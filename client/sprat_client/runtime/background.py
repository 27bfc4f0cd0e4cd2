"""Work that must not be in the way of whatever the process answers."""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)
NICE: Final = 10  # of what gives way


def give_way() -> None:
    """Let everything else go before the calling thread, and those that it starts, where the system lets it be nice."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
    except (OSError, AttributeError):
        _log.debug("the system lets no thread be nice")


def giving_way(work: Callable[[], T]) -> T:
    """Do something long that must start no thread that answers; return, or raise, what it does.

    It runs in a thread of its own: a thread that was nice once may not be as others again.
    """
    done: Future[T] = Future()

    def run() -> None:
        give_way()
        try:
            done.set_result(work())
        except BaseException as bad:  # noqa: BLE001  # whoever waits gets it
            done.set_exception(bad)

    thread = threading.Thread(target=run, name="giving-way")
    thread.start()
    try:
        return done.result()
    finally:
        thread.join()
