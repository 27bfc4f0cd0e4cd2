"""Threads that must not be in the way of whatever the process answers."""

import logging
import os
import threading
from typing import Final

_log = logging.getLogger(__name__)
_NICE: Final = 10


def give_way() -> None:
    """Let everything else of the process go before the calling thread, where the system lets a thread be nice."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    except (OSError, AttributeError):
        _log.debug("the system lets no thread be nice")
