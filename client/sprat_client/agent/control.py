"""Orders to a running agent, from its own folder: a socket there that only its owner and root may open.

One connection is one order: a line of JSON there, a line of JSON back. `{"do": "pause", "until": 1764547200}` is
answered by `{"done": {...}}` once it took effect, or by `{"error": {"code": ..., "detail": ..., "kind": ...}}`. The
agent's one thread obeys, between two turns or two chunks of a download.
"""

import json
import logging
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.lock import is_locked
from sprat_shared.errors import Conflict, InvalidInput, NotFound, SpratError, TryLater

_log = logging.getLogger(__name__)
SOCKET_FILE: Final = "control.sock"
_MAX_BYTES: Final = 64 << 10
_SEND_TIMEOUT_S: Final = 5.0
_PATIENCE_S: Final = 30.0  # a rebuild keeps the agent's thread busy
_KINDS: Final[Mapping[str, type[SpratError]]] = {
    "conflict": Conflict,
    "missing": NotFound,
    "invalid": InvalidInput,
    "failed": SpratError,
}


@dataclass(slots=True)
class Order:
    """One order.

    Attributes:
        asked: what to do, and with what.
    """

    asked: Mapping[str, Any]
    _reply: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)

    def answer(self, obey: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
        """Do it, and say what came of it."""
        try:
            self._reply.put({"done": obey(self.asked)})
        except (SpratError, OSError) as bad:
            kind = next(kind for kind, base in _KINDS.items() if isinstance(bad, base) or kind == "failed")
            code = bad.code if isinstance(bad, SpratError) else "disk.failed"
            self._reply.put({"error": {"code": code, "detail": str(bad), "kind": kind}})

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the answer; None where there is none in time."""
        try:
            return self._reply.get(timeout=timeout_s)
        except queue.Empty:
            return None


class ControlSocket:
    """Listens for orders, in a thread that only carries them.

    Args:
        folder: the agent's, which it has locked: a socket that is there is a dead agent's.
        take: is handed each order, in that thread.
    """

    def __init__(self, folder: Path, take: Callable[[Order], None]) -> None:
        self._folder, self._take = folder, take
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _address(folder) as address:
                Path(address).unlink(missing_ok=True)
                self._socket.bind(address)
                Path(address).chmod(0o600)
            self._socket.listen(4)
        except OSError:
            self._socket.close()
            raise
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._socket.close()
        (self._folder / SOCKET_FILE).unlink(missing_ok=True)

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                try:
                    self._serve(connection)
                except (OSError, ValueError, InvalidInput) as bad:
                    _log.warning("an order was not heard", extra={"reason": str(bad)})

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(_SEND_TIMEOUT_S)
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in {0, os.geteuid()}:
            raise PermissionError(f"user {uid} may not give orders")
        asked = _read_line(connection)
        if not isinstance(asked, dict) or not isinstance(asked.get("do"), str):
            raise InvalidInput('an order is {"do": "..."}')
        order = Order(asked)
        self._take(order)
        reply = order.wait(_PATIENCE_S) or {"later": True}
        connection.sendall(json.dumps(reply).encode() + b"\n")


def give_order(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Let the agent that runs on a folder do something; return its answer, None where no agent runs.

    Raises:
        TryLater: it has the order and is busy, or cannot be reached.
        SpratError: it cannot do it.
    """
    if not is_locked(folder / "run.lock"):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE_S + _SEND_TIMEOUT_S)
        try:
            with _address(folder) as address:
                connection.connect(address)
            connection.sendall(json.dumps(asked).encode() + b"\n")
            reply = _read_line(connection)
        except (OSError, ValueError) as bad:
            raise TryLater(
                f"{folder / SOCKET_FILE}: an agent runs and does not hear ({bad}); try again, or stop it first",
                code="agent.deaf",
            ) from bad
    if "error" in reply:
        said = reply["error"]
        raise _KINDS.get(said["kind"], SpratError)(said["detail"], code=said["code"])
    if "done" not in reply:
        raise TryLater("the agent is busy; it has the order and obeys as soon as it can", code="agent.busy")
    done: dict[str, Any] = reply["done"]
    return done


def _read_line(connection: socket.socket) -> Any:
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(4096)
        if not piece or len(data) > _MAX_BYTES:
            raise ValueError("an order is one line of JSON")
        data += piece
    return json.loads(data)


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """Give a short name of the socket: an address holds 107 bytes, and folders are longer."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_FILE}"
    finally:
        os.close(descriptor)
