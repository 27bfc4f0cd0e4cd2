"""HTTP that nobody can hold up or flood: bytes capped while they are read, a total deadline, a minimum rate.

Every read of an answer, of its head too, passes a `Pace`: at most 4 KiB at a time, none after the deadline, and a
server that only drips is given up. (A TLS handshake must be done within the timeout for connecting, as a whole.)
Connections are kept. Requests carry no header that HTTP can do without.

One exchange may be made while the body of another is being read, between two of its pieces, on a connection of its own.

What an error status means: `_MEANING` and the lines above it; nothing of 4xx that is not named there is asked again.
"""

import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httpcore
import httpx

from sprat_client.agent.settings import LinkSettings
from sprat_shared.errors import AccessDenied, InvalidInput, NotFound, SpratError, TryLater, Unauthenticated

_MAX_PROBLEM_BYTES: Final = 64 << 10
_READ_BYTES: Final = 4 << 10
_LONGEST_RETRY_AFTER_S: Final = 3600.0


class LinkDown(TryLater):
    """Link or server are not ready.

    Attributes:
        wait_s: the server asked to wait at least so long.
    """

    code = "link.down"

    def __init__(self, message: str, *, wait_s: float = 0.0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.wait_s = wait_s


class ServerRefused(SpratError):
    """The server answered 4xx: asking again the same way will not help."""

    code = "link.refused"


# Asked again later: on another connection (421), after a while (408, 423, 425, 429), or by another way: 407 and 511 are
# of a proxy or a portal between, as every redirection is, for sprat has none; 416 is a part here that fits no more. All
# of 5xx are the server's trouble, not the request's.
_LATER: Final = frozenset({407, 408, 416, 421, 423, 425, 429})
_BUSY: Final = "link.server-busy"
_LATER_CODES: Final[Mapping[int, str]] = {416: "link.range", 407: "link.portal", 511: "link.portal"} | dict.fromkeys(
    range(300, 400), "link.portal"
)
# Final: the caller stops, says so and reports it.
_MEANING: Final[Mapping[int, type[SpratError]]] = {
    401: Unauthenticated,
    403: AccessDenied,
    404: NotFound,
    410: NotFound,
}


@dataclass(slots=True)
class _Exchange:
    """One exchange's time: when it must be done, and the window in which its rate is judged."""

    deadline: float
    window_end: float
    began: float
    window_bytes: int = 0
    too_slow: str = ""


class Pace:
    """How fast the bytes of an exchange arrive. The innermost one counts; those around it stand still meanwhile.

    Args:
        settings: deadline and least rate.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._exchanges: list[_Exchange] = []
        self._idle = self._begun()

    def _begun(self) -> _Exchange:
        now = time.monotonic()
        return _Exchange(now + self._settings.total_timeout_s, now + self._settings.rate_window_s, now)

    @property
    def _now(self) -> _Exchange:
        return self._exchanges[-1] if self._exchanges else self._idle

    @property
    def too_slow(self) -> str:
        """Why the exchange is given up; empty: it is not."""
        return self._now.too_slow

    def begin(self) -> None:
        """Start the time of an exchange, within the present one if there is one."""
        self._exchanges.append(self._begun())

    def end(self) -> None:
        """End the innermost exchange; the time it took is none of those around it."""
        self._idle = self._exchanges.pop()
        took_s = time.monotonic() - self._idle.began
        for around in self._exchanges[-1:]:
            around.deadline += took_s
            around.window_end += took_s
            around.began += took_s

    def left_s(self, timeout_s: float | None) -> float:
        """Return how long the next read may take, at most `timeout_s`; nothing is left of an exchange given up."""
        now, exchange = time.monotonic(), self._now
        if now >= exchange.deadline:
            exchange.too_slow = f"not done in {self._settings.total_timeout_s:g} s"
        elif now >= exchange.window_end:
            least = self._settings.least_bytes_per_s * self._settings.rate_window_s
            if exchange.window_bytes < least:
                exchange.too_slow = f"only {exchange.window_bytes} bytes in {self._settings.rate_window_s:g} s"
            exchange.window_end, exchange.window_bytes = now + self._settings.rate_window_s, 0
        if exchange.too_slow:
            raise httpcore.ReadTimeout(exchange.too_slow)
        left_s = min(exchange.deadline, exchange.window_end) - now
        return left_s if timeout_s is None else min(timeout_s, left_s)

    def count(self, size: int) -> None:
        """Count bytes that arrived."""
        self._now.window_bytes += size


class _PacedStream(httpcore.NetworkStream):
    """A connection whose reads keep a pace."""

    def __init__(self, stream: httpcore.NetworkStream, pace: Pace) -> None:
        self._stream, self._pace = stream, pace

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        waited_until = None if timeout is None else time.monotonic() + timeout
        while True:
            left_s = self._pace.left_s(None if waited_until is None else waited_until - time.monotonic())
            try:
                data = self._stream.read(min(max_bytes, _READ_BYTES), left_s)
            except httpcore.ReadTimeout:
                if waited_until is not None and time.monotonic() >= waited_until:
                    raise
                continue  # a window of the pace ended, not the patience for a byte
            self._pace.count(len(data))
            return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _PacedStream(self._stream.start_tls(ssl_context, server_hostname, timeout), self._pace)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _PacedNetwork(httpcore.NetworkBackend):
    """Opens connections whose reads keep a pace."""

    def __init__(self, pace: Pace) -> None:
        self._network, self._pace = httpcore.SyncBackend(), pace

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        return _PacedStream(stream, self._pace)


class _PacedTransport(httpx.HTTPTransport):
    """httpx's transport over connections that keep a pace."""

    def __init__(self, pace: Pace, context: ssl.SSLContext | None) -> None:
        super().__init__(verify=context or False, trust_env=False)
        self._pool.close()
        self._pool = httpcore.ConnectionPool(ssl_context=context, network_backend=_PacedNetwork(pace))


class Fetcher:
    """HTTP to one server. Connections are kept and used again.

    Args:
        base_url: what paths are appended to, without a slash at its end.
        settings: timeouts, and what counts as a drip.
        headers: sent with every request.
        auth: shows who asks; what it sends and reads for that keeps the pace too.
        ca_file: certificates to trust instead of the system's.
        transport: the seam for tests.
        counted: told of every body byte that is read, whatever comes of it.
    """

    def __init__(
        self,
        base_url: str,
        settings: LinkSettings,
        *,
        headers: dict[str, str] | None = None,
        auth: httpx.Auth | None = None,
        ca_file: str | None = None,
        transport: httpx.BaseTransport | None = None,
        counted: Callable[[int], None] | None = None,
    ) -> None:
        self._counted = counted
        self._base_url, self._settings, self._headers = base_url, settings, headers or {}
        self._pace = Pace(settings)
        timeout = httpx.Timeout(settings.idle_timeout_s, connect=settings.connect_timeout_s)
        self._timeouts = {"timeout": timeout.as_dict()}
        secure = base_url.startswith("https")  # else loading the system's certificates would take 30 ms for nothing
        context = ssl.create_default_context(cafile=ca_file) if secure else None
        self._client = httpx.Client(
            auth=auth,
            transport=transport or _PacedTransport(self._pace, context),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def ask(
        self, method: str, path: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """Send a request; give the answer, whose status was looked at, open as long as the `with` block.

        Raises:
            LinkDown: there is no answer, or a busy server.
            AccessDenied, NotFound, ServerRefused: the server says no.
        """
        request = httpx.Request(
            method,
            self._base_url + path,
            content=content,
            headers={**self._headers, **(headers or {})},
            extensions=self._timeouts,
        )
        self._pace.begin()
        try:
            try:
                response = self._client.send(request, stream=True)
            except httpx.HTTPError as bad:
                raise self._down(f"{request.url}: no answer", bad) from bad
            try:
                _check_status(response)
                if response.status_code == HTTPStatus.NOT_MODIFIED:
                    response.read()  # its end must be seen for the connection to be kept
                yield response
            finally:
                response.close()
        finally:
            self._pace.end()

    def body(self, response: httpx.Response, max_bytes: int) -> Iterator[bytes]:
        """Yield the body, piece by piece, and never more than `max_bytes` of it.

        Raises:
            InvalidInput: the server sends more.
            LinkDown: it was cut, or is given up for its slowness.
        """
        path, total = response.request.url.path, 0
        try:
            for piece in response.iter_raw():
                total += len(piece)
                if self._counted is not None:
                    self._counted(len(piece))
                if total > max_bytes:
                    raise InvalidInput(f"{path}: the server sends more than {max_bytes} bytes", code="link.too-long")
                yield piece
        except httpx.HTTPError as bad:
            raise self._down(f"{path}: cut after {total} bytes", bad) from bad

    def _down(self, what: str, bad: httpx.HTTPError) -> LinkDown:
        if self._pace.too_slow:
            return LinkDown(f"{what}: given up, {self._pace.too_slow}", code="link.too-slow")
        return LinkDown(f"{what} ({type(bad).__name__}: {bad})")


def _check_status(response: httpx.Response) -> None:
    """Turn an error status into an error."""
    status = response.status_code
    if response.is_success or status == HTTPStatus.NOT_MODIFIED:
        return
    said = f"{response.request.method} {response.request.url.path}: {status} {_problem(response)}"
    if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.is_redirect:
        raise LinkDown(
            said, wait_s=_retry_after_s(response.headers.get("Retry-After")), code=_LATER_CODES.get(status, _BUSY)
        )
    if (meaning := _MEANING.get(status)) is not None:
        raise meaning(said)
    raise ServerRefused(said, code=f"link.status-{status}")


def _problem(response: httpx.Response) -> str:
    """Return the detail of a problem+json body, or nothing."""
    try:
        length = int(response.headers.get("Content-Length", "0"))
        if length > _MAX_PROBLEM_BYTES:
            return ""
        response.read()
        problem = response.json()
        return str(problem.get("detail") or problem.get("title") or "")[:300]
    except (ValueError, AttributeError, httpx.HTTPError):
        return ""


def _retry_after_s(value: str | None) -> float:
    """Read Retry-After (RFC 9110, section 10.2.3), seconds or a date, at most an hour."""
    if not value:
        return 0.0
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(_LONGEST_RETRY_AFTER_S, float(value[:10]))
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  # rare

    try:
        return min(_LONGEST_RETRY_AFTER_S, max(0.0, parsedate_to_datetime(value).timestamp() - time.time()))
    except (ValueError, TypeError, OverflowError):
        return 0.0
