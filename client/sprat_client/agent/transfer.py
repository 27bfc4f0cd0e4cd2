"""The link to the server: one poll, ranged downloads that resume, signed metadata, reports.

Nothing here sleeps or tries again: a failure says how long to wait at least, and the loop decides when, so that polls,
trials and other models go on meanwhile. Bytes are capped while they are read and every request has a total deadline.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sprat_client.agent.auth import DeviceAuth
from sprat_client.agent.durable import Disk, finish_appends, make_folder, remove
from sprat_client.agent.identity import Identity
from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.store import file_sha256
from sprat_client.agent.version import VERSION
from sprat_shared.errors import (
    AccessDenied,
    DigestMismatch,
    InvalidInput,
    NotFound,
    SpratError,
    TryLater,
    Unauthenticated,
)
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolPending
from sprat_shared.protocol.poll import (
    HAVE_HEADER,
    INLINE_HEADER,
    MAX_BODY_BYTES,
    HeldMetadata,
    PollAnswer,
    format_have,
)
from sprat_shared.protocol.report import SIGNATURE_HEADER, format_signature

_MAX_METADATA_BYTES: Final = 8 << 20
_MAX_PROBLEM_BYTES: Final = 64 << 10
_SYNC_EVERY_BYTES: Final = 1 << 20
_LATER: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


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


@dataclass(slots=True)
class Backoff:
    """Waits after failures: drawn from [0, bound], the bound doubling (full jitter, so a fleet does not march in step).

    Attributes:
        settings: bounds.
        failures: in a row.
        draw: uniform numbers in [0, 1).
    """

    settings: LinkSettings
    failures: int = 0
    draw: Callable[[], float] = random.random

    def next_s(self, failure: BaseException) -> float:
        """Count a failure and return how long to wait, at least as long as the server asked."""
        bound = min(self.settings.backoff_max_s, self.settings.backoff_s * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return max(self.draw() * bound, getattr(failure, "wait_s", 0.0))

    def reset(self) -> None:
        """Forget the failures after a success."""
        self.failures = 0


@dataclass(frozen=True, slots=True)
class Blob:
    """A file to fetch: its digest, which is its address, its length in bytes, and where it goes."""

    sha256: bytes
    length: int
    file: Path

    @property
    def name(self) -> str:
        """Return the blob's address below `/blobs/`."""
        return f"sha256/{self.sha256.hex()}"


class Link:
    """HTTP to one server. Connections are kept and used again.

    Args:
        server_url: without a slash at its end.
        auth: how the device shows who it is, or an enrolment token; None: nothing is shown.
        settings: timeouts.
        ca_file: certificates to trust instead of the system's.
        transport: the seam for tests.
    """

    def __init__(
        self,
        server_url: str,
        auth: httpx.Auth | str | None,
        settings: LinkSettings,
        *,
        ca_file: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        import ssl  # noqa: PLC0415  # only the context below needs it

        verify: ssl.SSLContext | bool = True
        if server_url.startswith("https") and ca_file is not None:
            verify = ssl.create_default_context(cafile=ca_file)
        elif server_url.startswith("http:"):
            verify = False  # there is nothing to verify, and loading the system's certificates takes 30 ms
        self._settings = settings
        self._etag: str | None = None
        self._unaccepted: str | None = None
        headers = {"User-Agent": f"sprat-agent/{VERSION}", "Accept-Encoding": "identity"}
        if isinstance(auth, str):
            headers["Authorization"] = f"Bearer {auth}"
        self._client = httpx.Client(
            base_url=server_url,
            headers=headers,
            auth=auth if isinstance(auth, httpx.Auth) else None,
            timeout=httpx.Timeout(settings.idle_timeout_s, connect=settings.connect_timeout_s),
            follow_redirects=False,
            trust_env=False,
            verify=verify,
            transport=transport,
        )

    @classmethod
    def of(
        cls,
        identity: Identity,
        key: Ed25519PrivateKey,
        settings: LinkSettings,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> "Link":
        """Return the link of an enrolled device, which proves itself with its key."""
        auth = DeviceAuth(identity.server_url, identity.device, key)
        return cls(identity.server_url, auth, settings, ca_file=identity.ca_file, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def enrol(self, body: bytes, signature: bytes) -> EnrolAnswer | EnrolPending:
        """Ask to join, with an enrolment token or an operator's word that may be yet to come.

        Raises:
            AccessDenied: the token is wrong, used up or expired, or an operator rejected the device.
            LinkDown: try again later.
        """
        headers = {SIGNATURE_HEADER: format_signature(signature), "Content-Type": "application/json"}
        with self._ask("POST", "/device/v1/enrol", content=body, headers=headers) as response:
            answer = b"".join(self._body(response, MAX_BODY_BYTES))
        if response.status_code == HTTPStatus.ACCEPTED:
            return EnrolPending.from_json(answer)
        return EnrolAnswer.from_json(answer)

    def poll(self, held: Sequence[tuple[HeldMetadata, bytes]]) -> PollAnswer | None:
        """Ask what is wished of this device; None where nothing changed since `accept_poll`.

        Args:
            held: trusted metadata, named to the server and used as the dictionary of its answer.

        Raises:
            LinkDown: try again later.
            InvalidInput: the answer cannot be read.
        """
        headers = {INLINE_HEADER: str(self._settings.inline_bytes)}
        if held:
            headers[HAVE_HEADER] = format_have([name for name, _ in held])
        if self._etag is not None:
            headers["If-None-Match"] = self._etag
        with self._ask("GET", "/device/v1/poll", headers=headers) as response:
            if response.status_code == HTTPStatus.NOT_MODIFIED:
                return None
            body = b"".join(self._body(response, MAX_BODY_BYTES))
            self._unaccepted = response.headers.get("ETag")
        return PollAnswer.from_bytes(body, b"".join(data for _, data in held))

    def accept_poll(self) -> None:
        """Say that the last answer was taken in whole: from now on only a newer one is of interest."""
        self._etag = self._unaccepted

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a signed metadata file (`trust.MetadataSource`)."""
        with self._ask("GET", f"/tuf/image/{name}") as response:
            yield from self._body(response, _MAX_METADATA_BYTES)

    def report(self, body: bytes, signature: bytes) -> None:
        """Deliver one report.

        Raises:
            ServerRefused: the server will never take it.
            LinkDown: try again later.
        """
        headers = {SIGNATURE_HEADER: format_signature(signature), "Content-Type": "application/json"}
        with self._ask("POST", "/device/v1/reports", content=body, headers=headers) as response:
            for _ in self._body(response, _MAX_PROBLEM_BYTES):
                pass

    def download(self, blob: Blob, disk: Disk, received: Callable[[int], None]) -> None:
        """Fetch a blob into its file, going on where an earlier call, or an earlier process, stopped.

        At return the file is complete, has the digest, and is durable. Bytes that arrived before a failure stay.

        Args:
            blob: what to fetch.
            disk: where it is written.
            received: told of every piece that arrives.

        Raises:
            LinkDown: it was cut; call again later.
            NotFound: the server does not have it.
            DigestMismatch: it arrived whole with other bytes; the file is removed.
        """
        make_folder(disk, blob.file.parent)
        have = blob.file.stat().st_size if disk.exists(blob.file) else 0
        if have > blob.length:
            remove(disk, blob.file)
            have = 0
        if have < blob.length:
            self._download_rest(blob, have, disk, received)
        finish_appends(disk, blob.file)
        if (actual := file_sha256(blob.file)) != blob.sha256:
            remove(disk, blob.file)
            if have:  # a power cut may have torn what was there before: once more from the start
                raise LinkDown(f"blob {blob.name}: what was kept of it is damaged; fetching it again")
            raise DigestMismatch(subject=f"blob {blob.name}", expected=blob.sha256.hex(), actual=actual.hex())

    def _download_rest(self, blob: Blob, have: int, disk: Disk, received: Callable[[int], None]) -> None:
        headers = {"Range": f"bytes={have}-", "If-Range": f'"{blob.sha256.hex()}"'} if have else {}
        with self._ask("GET", f"/blobs/{blob.name}", headers=headers) as response:
            if have and response.status_code != HTTPStatus.PARTIAL_CONTENT:
                remove(disk, blob.file)
                have = 0
            elif have and not (said := response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                raise LinkDown(f"blob {blob.name}: asked for the bytes from {have} on, got {said!r}")
            unsynced = 0
            try:
                for piece in self._body(response, blob.length - have):
                    disk.append(blob.file, piece)
                    have += len(piece)
                    unsynced += len(piece)
                    received(len(piece))
                    if unsynced >= _SYNC_EVERY_BYTES:
                        disk.sync(blob.file)
                        unsynced = 0
            finally:
                if unsynced:
                    disk.sync(blob.file)
        if have < blob.length:
            raise LinkDown(f"blob {blob.name}: the connection ended after {have} of {blob.length} bytes")

    def _ask(
        self, method: str, path: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> "_Answer":
        return _Answer(self._client, self._client.build_request(method, path, content=content, headers=headers))

    def _body(self, response: httpx.Response, max_bytes: int) -> Iterator[bytes]:
        """Yield the body, at most `max_bytes` of it, until the total deadline."""
        deadline = time.monotonic() + self._settings.total_timeout_s
        total = 0
        try:
            for piece in response.iter_raw():
                total += len(piece)
                if total > max_bytes:
                    raise InvalidInput(
                        f"{response.request.url.path}: the server sends more than {max_bytes} bytes",
                        code="link.too-long",
                    )
                if time.monotonic() > deadline:
                    raise LinkDown(f"{response.request.url.path}: not done in {self._settings.total_timeout_s:g} s")
                yield piece
        except httpx.HTTPError as bad:
            raise LinkDown(f"{response.request.url.path}: cut after {total} bytes ({type(bad).__name__})") from bad


class _Answer:
    """A response whose status was looked at, open as long as the `with` block."""

    def __init__(self, client: httpx.Client, request: httpx.Request) -> None:
        self._client, self._request = client, request

    def __enter__(self) -> httpx.Response:
        try:
            self._response = self._client.send(self._request, stream=True)
        except httpx.HTTPError as bad:
            raise LinkDown(f"{self._request.url}: no answer ({type(bad).__name__}: {bad})") from bad
        try:
            _check_status(self._response)
        except BaseException:
            self._response.close()
            raise
        return self._response

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()


def _check_status(response: httpx.Response) -> None:
    """Turn an error status into an error."""
    status = response.status_code
    if response.is_success or status == HTTPStatus.NOT_MODIFIED:
        return
    said = f"{response.request.method} {response.request.url.path}: {status} {_problem(response)}"
    if status in _LATER:
        raise LinkDown(said, wait_s=_retry_after_s(response.headers.get("Retry-After")), code="link.server-busy")
    if status == HTTPStatus.UNAUTHORIZED:
        raise Unauthenticated(said)
    if status == HTTPStatus.FORBIDDEN:
        raise AccessDenied(said)
    if status == HTTPStatus.NOT_FOUND:
        raise NotFound(said)
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
    if value.strip().isdigit():
        return min(3600.0, float(value))
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  # rare

    try:
        return min(3600.0, max(0.0, parsedate_to_datetime(value).timestamp() - time.time()))
    except (ValueError, TypeError):
        return 0.0
