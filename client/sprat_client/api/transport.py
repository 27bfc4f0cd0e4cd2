"""One HTTP connection pool to one server: authentication, errors, cursor pages, streamed uploads and downloads."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final, Self
from uuid import uuid4

import httpx

from sprat_client.api.problems import error_of, unreachable
from sprat_shared.errors import DigestMismatch, InvalidInput, SpratError, TryLater

API: Final = "/api/v1"
_CHUNK_BYTES: Final = 1 << 20
_PAGE_ITEMS: Final = 100
_RECONNECT_S: Final = 1.0
_AGAIN_AFTER_S: Final = (0.3, 1.0, 3.0)
_KEYED: Final = frozenset({"POST", "PATCH"})  # others do no more the second time

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


class Transport:
    """Requests to one server with one operator's token.

    Args:
        server_url: `http(s)://host:port`, without a path.
        token: the operator's bearer token.
        project: the project to act in; None: the token's, or the default one.
        timeout_s: of one connect, one read, one write; not of a whole transfer.
        transport: httpx's seam, for tests.

    Raises:
        InvalidInput: the URL is not an http(s) URL with a host.
    """

    def __init__(
        self,
        server_url: str,
        token: str,
        *,
        project: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        try:
            url = httpx.URL(server_url)
        except httpx.InvalidURL as error:
            raise InvalidInput(f"{server_url!r} is not a URL ({error}); write http://host:port") from None
        if url.scheme not in {"http", "https"} or not url.host:
            raise InvalidInput(f"{server_url!r} is not a server's URL; write http://host:port or https://host")
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        if project is not None:
            headers["Sprat-Project"] = project
        self._client = httpx.Client(
            base_url=url,
            headers=headers,
            timeout=timeout_s,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON at `/api/v1` + `path`; query values that are None are left out."""
        return self._json("GET", path, params=_said(query))

    def post(self, path: str, body: Any = None) -> Any:
        """Send `body` as JSON to `/api/v1` + `path` and return the answer's JSON, or None where there is none.

        A call whose answer was lost on the way is sent again under the same `Idempotency-Key`: it is carried out once.
        """
        return self._json("POST", path, json={} if body is None else body)

    def put(self, path: str, body: Any, **query: Any) -> Any:
        """Put `body` as JSON to `/api/v1` + `path` and return the answer's JSON; query values as with `get`."""
        return self._json("PUT", path, json=body, params=_said(query))

    def patch(self, path: str, body: Any, **query: Any) -> Any:
        """Patch `/api/v1` + `path` with `body` as JSON and return the answer's JSON; sent once as by `post`."""
        return self._json("PATCH", path, json=body, params=_said(query))

    def delete(self, path: str, **query: Any) -> Any:
        """Delete `/api/v1` + `path` and return the answer's JSON, or None; query values as with `get`."""
        return self._json("DELETE", path, params=_said(query))

    def pages(self, path: str, *, limit: int | None = None, **query: Any) -> Iterator[Any]:
        """Iterate the items of a list, page after page, at most `limit` of them (None: all)."""
        cursor: str | None = None
        left = limit
        while left is None or left > 0:
            size = _PAGE_ITEMS if left is None else min(_PAGE_ITEMS, left)
            page = self.get(path, limit=size, cursor=cursor, **query)
            items = page["items"][:left]
            yield from items
            cursor = page.get("next")
            if cursor is None:
                return
            if left is not None:
                left -= len(items)

    def stream(self, path: str, *, last_id: str | None, **query: Any) -> Iterator[str]:
        """Iterate the data of Server-Sent Events, without end; a cut stream is asked for again after the last id.

        Args:
            path: below `/api/v1`.
            last_id: go on after this one; None: from now on.
            query: as with `get`.

        Raises:
            SpratError: the server refuses, or ends the stream with a reason.
        """
        while True:
            headers = {"Accept": "text/event-stream"} | ({} if last_id is None else {"Last-Event-ID": last_id})
            try:
                with self._client.stream(
                    "GET", API + path, params=_said(query), headers=headers, timeout=httpx.Timeout(30.0, read=60.0)
                ) as response:
                    if response.status_code >= HTTPStatus.BAD_REQUEST:
                        response.read()
                        raise error_of(response)
                    for event in _events(response.iter_lines()):
                        if event.get("event") == "error":
                            raise SpratError(f"the server ends the stream: {event['data']}", code="events.ended")
                        last_id = event.get("id", last_id)
                        if "data" in event:
                            yield event["data"]
            except httpx.TransportError as error:
                if last_id is None:
                    raise unreachable(self._client.base_url, error) from error
            time.sleep(_RECONNECT_S)

    def upload(self, path: str, source: Path, progress: Progress | None = None) -> Any:
        """Send a file's bytes to `/api/v1` + `path`, read in pieces of 1 MiB.

        Raises:
            InvalidInput: the file cannot be read.
        """
        try:
            total = source.stat().st_size
            file = source.open("rb")
        except OSError as error:
            raise InvalidInput(f"{source} cannot be read: {error.strerror}") from None

        def pieces() -> Iterator[bytes]:
            done = 0
            while piece := file.read(_CHUNK_BYTES):
                yield piece
                done += len(piece)
                if progress is not None:
                    progress(done, total)

        with file:
            return self._json(
                "POST",
                path,
                streamed=True,
                content=pieces(),
                headers={"Content-Type": "application/octet-stream", "Content-Length": str(total)},
            )

    def download(self, digest: str, to: Path, progress: Progress | None = None) -> int:
        """Write the blob of `digest` to `to`; returns its bytes. A broken transfer leaves no file behind.

        Raises:
            DigestMismatch: other bytes came than the digest names.
        """
        seen = hashlib.sha256()
        done = 0
        with self._saving(to, "GET", f"/blobs/sha256/{digest.removeprefix('sha256:')}") as (response, file):
            total = int(response.headers.get("Content-Length", 0))
            for piece in response.iter_bytes(_CHUNK_BYTES):
                file.write(piece)
                seen.update(piece)
                done += len(piece)
                if progress is not None:
                    progress(done, total)
            if (actual := f"sha256:{seen.hexdigest()}") != digest:
                raise DigestMismatch(subject=f"the download of {digest[:23]}…", expected=digest, actual=actual)
        return done

    def save(self, path: str, body: Any, to: Path) -> httpx.Headers:
        """Send `body` as JSON to `/api/v1` + `path`, write the answer's bytes to `to`, and return its headers.

        A broken transfer leaves no file behind.

        Raises:
            InvalidInput: the file cannot be written.
        """
        with self._saving(to, "POST", API + path, json=body) as (response, file):
            for piece in response.iter_bytes(_CHUNK_BYTES):
                file.write(piece)
        return response.headers

    @contextmanager
    def _saving(self, to: Path, method: str, path: str, **more: Any) -> Iterator[tuple[httpx.Response, BinaryIO]]:
        """Give an answer and a file to write it to, which becomes `to` if the block ends well, and else is removed."""
        partial = to.with_name(to.name + ".part")
        try:
            with partial.open("wb") as file, self._client.stream(method, path, **more) as response:
                if response.status_code >= HTTPStatus.BAD_REQUEST:
                    response.read()
                    raise error_of(response)
                yield response, file
            partial.replace(to)
        except httpx.HTTPError as error:
            raise unreachable(self._client.base_url, error) from error
        except OSError as error:
            raise InvalidInput(f"{to} cannot be written: {error.strerror}") from None
        finally:
            partial.unlink(missing_ok=True)

    def patient_get(self, path: str, *, patience_s: float) -> Any:
        """Like `get`, but a server that does not answer (a restart, a cut link) is asked again for `patience_s`."""
        deadline = time.monotonic() + patience_s
        pause_s = 0.2
        while True:
            try:
                return self.get(path)
            except TryLater:
                if time.monotonic() + pause_s >= deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)

    def _json(self, method: str, path: str, *, streamed: bool = False, **kwargs: Any) -> Any:
        try:
            response = self._sent(method, path, **kwargs) if streamed else self._sent_again(method, path, **kwargs)
        except httpx.HTTPError as error:
            raise unreachable(self._client.base_url, error) from error
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            raise error_of(response)
        if not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise SpratError(
                f"{response.url} answered {response.status_code} with something that is not JSON; is it a sprat-server?"
            ) from None

    def _sent(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return self._client.request(method, API + path, **kwargs)

    def _sent_again(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        """Send a call, and again, a few times, where it is not known what came of it; it is carried out once."""
        headers, left = {"Idempotency-Key": str(uuid4())} if method in _KEYED else {}, False
        for pause_s in _AGAIN_AFTER_S:
            try:
                response = self._sent(method, path, headers=headers, **kwargs)
                if not _is_still_running(response):
                    return response
            except httpx.TransportError as error:
                if isinstance(error, httpx.ConnectError) and not left:
                    raise  # nothing is there, and nothing was asked of it
                if isinstance(error, httpx.TimeoutException) and not headers:
                    raise  # whoever asks decides whether to wait as long again
            left = True
            time.sleep(pause_s)
        return self._sent(method, path, headers=headers, **kwargs)


def _is_still_running(response: httpx.Response) -> bool:
    return response.status_code == HTTPStatus.CONFLICT and error_of(response).code == "request.still-running"


def _events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Read Server-Sent Events: fields until an empty line; comments are left out. What has no data only says an id."""
    event: dict[str, str] = {}
    for line in lines:
        if not line:
            if event:
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            event[name] = value.removeprefix(" ")


def _said(query: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
