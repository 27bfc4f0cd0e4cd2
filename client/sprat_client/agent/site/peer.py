"""Another member, as this device sees it under one plan: pooled connections, what it holds, whether it answers."""

import contextlib
import http.client
import json
import math
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import quote, urlencode

from sprat_client.agent.site.breaker import Breaker
from sprat_client.agent.site.failures import DeadlineOver, Unreachable, said_by
from sprat_client.agent.site.hedging import Latencies
from sprat_client.agent.site.peer_headers import DEADLINE, PLAN, REQUEST, TIMES, TRACE
from sprat_client.agent.site.site_meter import SiteMeter
from sprat_client.runtime.ports import Array
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.site_plan import Member, PlannedModule
from sprat_shared.tasks.types import Signature, TensorType

_IDLE_S: Final = 60.0  # its server closes after 75 s
_MOST_IDLE: Final = 8
_PIECE_BYTES: Final = 256 << 10
_SMALL_BYTES: Final = 1 << 20
_READY: Final = "/v2/health/ready"
SAFETENSORS: Final = "application/vnd.safetensors"


class Ask:
    """One request to a member, from the thread that sends it; `cancel` ends it from another one."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock, self.cancelled = threading.Lock(), ""

    def on(self, sock: socket.socket) -> None:
        """Say on which socket it is."""
        with self._lock:
            self._socket = sock
            if self.cancelled:
                _shut(sock)

    def cancel(self, why: str) -> None:
        """End it: whoever waits for the socket gets its end."""
        with self._lock:
            self.cancelled = self.cancelled or why
            if self._socket is not None:
                _shut(self._socket)

    def done(self) -> None:
        """Let go of the socket, which others may use now."""
        with self._lock:
            self._socket = None


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's: another thread is in the middle of it


@dataclass(frozen=True, slots=True)
class Told:
    """A member's answer.

    Attributes:
        outputs: by name.
        waited_s: in its queue, and
        ran_s: in its runtime; 0 where it did not say.
    """

    outputs: Mapping[str, Array]
    waited_s: float
    ran_s: float


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    until: float
    ask: Ask = field(default_factory=Ask)
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Answer:
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float  # from the request's first byte on
    pooled: bool  # over a connection that was there before


@dataclass(slots=True)
class _Pooled:
    connection: http.client.HTTPConnection
    since: float = field(default_factory=time.monotonic)


class _LayIdle(Exception):
    """A connection was closed by the other side while nobody used it."""


class Peer:
    """A member.

    Args:
        member: who, where, with which certificate.
        title: of the plan, and
        server_name: that its TLS is asked for.
        context: of this device's own side.
        most_bytes: of an answer.
        measured: takes what the way there takes.

    Attributes:
        breaker: whether it is asked.
        latencies: seconds of its answers, by model.
        signatures: what its modules take and give, by model, once it said so.
        beat_s: how long its last heartbeat took; None: it never answered.
    """

    def __init__(
        self,
        member: Member,
        *,
        title: str,
        server_name: str,
        context: ssl.SSLContext,
        most_bytes: int,
        measured: SiteMeter,
    ) -> None:
        self.member, self._title, self._server_name, self._context = member, title, server_name, context
        self._most_bytes, self._measured = most_bytes, measured
        self.breaker = Breaker()
        self.latencies: dict[str, Latencies] = {}
        self.signatures: dict[str, Signature] = {}
        self.beat_s: float | None = None
        self._moved: tuple[str, int] | None = None
        self._idle: deque[_Pooled] = deque()
        self._under_way: set[Ask] = set()
        self._lock, self._closed = threading.Lock(), False

    @property
    def said(self) -> str:
        """Return who it is, for messages."""
        moved = "" if self._moved is None else f", found at {':'.join(map(str, self._moved))}"
        return f"{self.member.name} ({self.member.address}{moved})"

    @property
    def moved(self) -> tuple[str, int] | None:
        """Return host and port at which it is asked in the place of the plan's; None: it is asked there."""
        return self._moved

    def latencies_of(self, model: str) -> Latencies:
        """Return the seconds of its answers for a model."""
        return self.latencies.setdefault(model, Latencies())

    def infer(
        self,
        module: PlannedModule,
        inputs: Mapping[str, Array],
        outputs: list[str],
        *,
        until: float,
        request: str,
        trace: str | None,
        ask: Ask,
    ) -> Told:
        """Let a module there answer.

        Args:
            module: which release of which model.
            inputs: by name.
            outputs: the names of those that are wanted.
            until: the deadline, on the monotonic clock.
            request: id, for logs on both sides.
            trace: the `traceparent` header; None: there is none.
            ask: by which the caller may end it.

        Raises:
            Unreachable: it does not answer.
            DeadlineOver: not in time.
            SpratError: what it says is wrong, by its name.
        """
        headers = {"Content-Type": SAFETENSORS, REQUEST: request, **({} if trace is None else {TRACE: trace})}
        wanted = urlencode([("output", name) for name in outputs])
        path = f"/v2/models/{quote(module.model)}/versions/{module.release}/infer?{wanted}"
        asked = _Request("POST", path, until, ask, encode_tensors(inputs), headers)
        with self._listed(ask), self._measured.exchange() as watched:
            got = self._exchange(asked)
            times = _times(got.headers.get(TIMES))
            if watched.alone and got.pooled and times is not None:
                took_s = got.seconds - sum(times)
                self._measured.link(self.member.device).exchanged(len(asked.body), len(got.body), took_s)
        try:
            answers = decode_tensors(got.body)
        except InvalidInput as bad:
            raise Unreachable(f"its answer cannot be read: {bad}") from None
        if missing := sorted(set(outputs) - answers.keys()):
            raise Unreachable(f"its answer lacks {missing[0]}")
        waited_s, ran_s = times or (0.0, 0.0)
        return Told(answers, waited_s, ran_s)

    def is_there(self, timeout_s: float) -> float:
        """Ask whether it is there; return the seconds that took.

        Raises:
            Unreachable, SpratError: it is not, or answers that it is not ready.
        """
        begun = time.monotonic()
        got = self._exchange(_Request("GET", _READY, begun + timeout_s))
        if got.pooled:
            self._measured.link(self.member.device).round_trip.add(got.seconds)
        return time.monotonic() - begun

    def try_at(self, where: tuple[str, int] | None, timeout_s: float) -> float:
        """Ask whether it is there at an address; where it is, all is asked there from now on, else nothing changes.

        Args:
            where: host and port; None: the plan's.
            timeout_s: for all of it.

        Raises:
            Unreachable, SpratError: it is not: who answers there shows another certificate, or nobody answers.
        """
        begun = time.monotonic()
        request = _Request("GET", _READY, begun + timeout_s)
        self._finished(self._connect(request.until, request.ask, where or self.member.host), request, pooled=False)
        self.ask_at(where)
        return time.monotonic() - begun

    def ask_at(self, where: tuple[str, int] | None) -> None:
        """Ask at an address from now on; None: the plan's. What is under way elsewhere goes on."""
        with self._lock:
            self._moved = where
            elsewhere = [one for one in self._idle if not self._is_here(one.connection)]
            self._idle = deque(one for one in self._idle if one not in elsewhere)
        for pooled in elsewhere:
            pooled.connection.close()

    def _is_here(self, connection: http.client.HTTPConnection) -> bool:
        return (connection.host, connection.port) == (self._moved or self.member.host)

    def describe(self, module: PlannedModule, timeout_s: float) -> Signature:
        """Ask what a module there takes and gives.

        Raises:
            Unreachable, SpratError: it does not say.
        """
        path = f"/v2/models/{quote(module.model)}/versions/{module.release}"
        got = self._exchange(_Request("GET", path, time.monotonic() + timeout_s))
        try:
            said: Any = json.loads(got.body)
            ports = [{one["name"]: TensorType.parse(one["type"]) for one in said[key]} for key in ("inputs", "outputs")]
        except (ValueError, TypeError, KeyError, InvalidInput) as bad:
            raise Unreachable(f"what it says of {module.model} cannot be read ({bad!r:.100})") from None
        return Signature(*ports)

    def close(self, why: str) -> None:
        """End all that is under way with it, for good."""
        self._closed = True
        self.drop(why)

    def drop(self, why: str) -> None:
        """End all that is under way with it: it is known to be away."""
        with self._lock:
            asks, idle = list(self._under_way), list(self._idle)
            self._idle.clear()
        for ask in asks:
            ask.cancel(why)
        for pooled in idle:
            pooled.connection.close()

    @contextlib.contextmanager
    def _listed(self, ask: Ask) -> Any:
        with self._lock:
            self._under_way.add(ask)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(ask)

    def _exchange(self, request: _Request) -> _Answer:
        """Send a request and return a good answer; over a new connection where an old one ended."""
        while True:
            pooled = self._pooled()
            where = self._moved or self.member.host
            connection = pooled or self._connect(request.until, request.ask, where)
            try:
                return self._finished(connection, request, pooled=pooled is not None)
            except _LayIdle:
                continue  # it was closed while it lay idle; what it is asked may be asked twice

    def _finished(self, connection: http.client.HTTPConnection, request: _Request, *, pooled: bool) -> _Answer:
        ask, begun = request.ask, time.monotonic()
        try:
            response, answer = self._over(connection, request)
        except (OSError, http.client.HTTPException) as bad:
            connection.close()
            if pooled and not ask.cancelled and not isinstance(bad, TimeoutError):
                raise _LayIdle from bad
            raise self._named(bad, ask, request.until) from bad
        except BaseException:
            connection.close()
            raise
        finally:
            ask.done()
        if ask.cancelled or response.will_close:
            connection.close()
        else:
            self._give_back(connection)
        if response.status != HTTPStatus.OK:
            raise said_by(response.status, answer)
        return _Answer(response.headers, answer, time.monotonic() - begun, pooled)

    def _over(
        self, connection: http.client.HTTPConnection, request: _Request
    ) -> tuple[http.client.HTTPResponse, bytes]:
        sock: socket.socket = connection.sock
        until = request.until
        request.ask.on(sock)
        left_ms = max(1, int(1000 * (until - time.monotonic())))
        sock.settimeout(_left(until))
        headers = {**request.headers, PLAN: self._title, DEADLINE: str(left_ms)}
        connection.request(request.method, request.path, request.body, headers)
        sock.settimeout(_left(until))
        response = connection.getresponse()
        most = self._most_bytes if response.status == HTTPStatus.OK else _SMALL_BYTES
        if response.length is None or response.length > most:
            raise Unreachable(f"its answer takes {response.length or 'any number of'} bytes; {most} may come")
        pieces = []
        while response.length:
            sock.settimeout(_left(until))
            if not (piece := response.read1(_PIECE_BYTES)):
                raise ConnectionResetError("its answer was cut")
            pieces.append(piece)
        response.read()
        return response, b"".join(pieces)

    def _connect(self, until: float, ask: Ask, where: tuple[str, int]) -> http.client.HTTPConnection:
        secure: ssl.SSLSocket | None = None
        try:
            plain = socket.create_connection(where, timeout=_left(until))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure = self._context.wrap_socket(plain, server_hostname=self._server_name, do_handshake_on_connect=False)
            ask.on(secure)
            secure.settimeout(_left(until))
            secure.do_handshake()
        except OSError as bad:
            ask.done()
            if secure is not None:
                secure.close()
            raise self._named(bad, ask, until) from bad
        if secure.getpeercert(binary_form=True) != self.member.certificate:
            ask.done()
            secure.close()
            raise Unreachable(f"who answers at {':'.join(map(str, where))} is another member")
        connection = http.client.HTTPConnection(*where)
        connection.sock = secure
        return connection

    def _named(self, bad: Exception, ask: Ask, until: float) -> Unreachable | DeadlineOver:
        if ask.cancelled:
            return Unreachable(ask.cancelled)
        if isinstance(bad, TimeoutError) and time.monotonic() >= until:
            return DeadlineOver("it does not answer in time")
        return Unreachable(f"it does not answer ({bad!r:.150})")

    def _pooled(self) -> http.client.HTTPConnection | None:
        with self._lock:
            while self._idle:
                pooled = self._idle.pop()
                if time.monotonic() - pooled.since < _IDLE_S:
                    return pooled.connection
                pooled.connection.close()
        return None

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < _MOST_IDLE and not self._closed and self._is_here(connection):
                self._idle.append(_Pooled(connection))
                return
        connection.close()


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline is over")
    return left


def _times(header: str | None) -> tuple[float, float] | None:
    """Return the seconds that a request waited there, and ran; None where they are not said."""
    try:
        waited_ms, ran_ms, _ = (header or "").split(",")
        times = float(waited_ms) / 1000, float(ran_ms) / 1000
    except ValueError:
        return None
    return times if all(0 <= one < math.inf for one in times) else None
