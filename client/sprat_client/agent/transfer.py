"""The link to the server: one poll, ranged downloads that resume, signed metadata, reports.

Nothing here sleeps or tries again: a failure says how long to wait at least, and the loop decides when, so that polls,
trials and other models go on meanwhile.
"""

import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sprat_client.agent.auth import DeviceAuth
from sprat_client.agent.durable import Disk, finish_appends, make_folder, remove
from sprat_client.agent.fetcher import Fetcher, LinkDown
from sprat_client.agent.identity import Identity
from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.store import file_sha256
from sprat_shared.errors import DigestMismatch
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolPending
from sprat_shared.protocol.poll import (
    DEFAULT_INLINE_BYTES,
    INLINE_HEADER,
    MAX_BODY_BYTES,
    HeldMetadata,
    PollAnswer,
    format_tag,
)
from sprat_shared.protocol.report import SIGNATURE_HEADER, format_signature
from sprat_shared.trust.signed_time import NONCE_HEADER

_MAX_METADATA_BYTES: Final = 8 << 20
_MAX_REPLY_BYTES: Final = 64 << 10
_SYNC_EVERY_BYTES: Final = 1 << 20
_SYNC_EVERY_S: Final = 10.0  # over a thin link a megabyte takes minutes: a power cut should not cost them


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
class RemoteFile:
    """A file to fetch.

    Attributes:
        path: what to ask the server for.
        length: of the whole file, bytes.
        file: where it goes.
        tag: entity tag of the content; None: a part that is here cannot be gone on with.
    """

    path: str
    length: int
    file: Path
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob to fetch: its digest, which is its address, its length in bytes, and where it goes."""

    sha256: bytes
    length: int
    file: Path

    @property
    def name(self) -> str:
        """Return the blob's address below `/blobs/`."""
        return f"sha256/{self.sha256.hex()}"

    @property
    def remote(self) -> RemoteFile:
        """Return it as a file of the server."""
        return RemoteFile(f"/blobs/{self.name}", self.length, self.file, f'"{self.sha256.hex()}"')


class NoNetwork(httpx.BaseTransport):
    """Sends nothing: the link is down, whatever is asked."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Refuse."""
        raise httpx.ConnectError("the agent was told to stay off the network", request=request)


class Link:
    """The device API of one server.

    Args:
        server_url: without a slash at its end.
        auth: how the device shows who it is, or an enrolment token; None: nothing is shown.
        settings: timeouts.
        ca_file: certificates to trust instead of the system's.
        transport: the seam for tests.
        counted: told of every body byte that is read.
    """

    def __init__(
        self,
        server_url: str,
        auth: httpx.Auth | str | None,
        settings: LinkSettings,
        *,
        ca_file: str | None = None,
        transport: httpx.BaseTransport | None = None,
        counted: Callable[[int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._fetcher = Fetcher(
            server_url,
            settings,
            headers={"Authorization": f"Bearer {auth}"} if isinstance(auth, str) else {},
            auth=auth if isinstance(auth, httpx.Auth) else None,
            ca_file=ca_file,
            transport=transport,
            counted=counted,
        )

    @classmethod
    def of(
        cls,
        identity: Identity,
        key: Ed25519PrivateKey,
        settings: LinkSettings,
        *,
        transport: httpx.BaseTransport | None = None,
        counted: Callable[[int], None] | None = None,
    ) -> "Link":
        """Return the link of an enrolled device, which proves itself with its key."""
        auth = DeviceAuth(identity.server_url, identity.device, key)
        return cls(identity.server_url, auth, settings, ca_file=identity.ca_file, transport=transport, counted=counted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._fetcher.close()

    def enrol(self, body: bytes, signature: bytes) -> EnrolAnswer | EnrolPending:
        """Ask to join, with an enrolment token or an operator's word that may be yet to come.

        Raises:
            AccessDenied: the token is wrong, used up or expired, or an operator rejected the device.
            LinkDown: try again later.
        """
        headers = {SIGNATURE_HEADER: format_signature(signature), "Content-Type": "application/json"}
        with self._fetcher.ask("POST", "/device/v1/enrol", content=body, headers=headers) as response:
            answer = b"".join(self._fetcher.body(response, MAX_BODY_BYTES))
        if response.status_code == HTTPStatus.ACCEPTED:
            return EnrolPending.from_json(answer)
        return EnrolAnswer.from_json(answer)

    def poll(self, held: Sequence[tuple[HeldMetadata, bytes]], nonce: str | None = None) -> PollAnswer | None:
        """Ask what changed; None where nothing did since the metadata that are held.

        Args:
            held: trusted metadata: their versions are the entity tag, their bytes the dictionary of the answer.
            nonce: to be signed with the time.

        Raises:
            LinkDown: try again later.
            InvalidInput: the answer cannot be read.
        """
        headers = {}
        if held:
            headers["If-None-Match"] = format_tag([name for name, _ in held])
        if self._settings.inline_bytes != DEFAULT_INLINE_BYTES:
            headers[INLINE_HEADER] = str(self._settings.inline_bytes)
        if nonce is not None:
            headers[NONCE_HEADER] = nonce
        with self._fetcher.ask("GET", "/device/v1/poll", headers=headers) as response:
            if response.status_code == HTTPStatus.NOT_MODIFIED:
                return None
            body = b"".join(self._fetcher.body(response, MAX_BODY_BYTES))
        return PollAnswer.from_bytes(body, b"".join(data for _, data in held))

    def metadata(self, repository: str, name: str) -> Iterator[bytes]:
        """Yield a signed metadata file (`trust.workflow.MetadataSource`)."""
        with self._fetcher.ask("GET", f"/tuf/{repository}/{name}") as response:
            yield from self._fetcher.body(response, _MAX_METADATA_BYTES)

    def report(self, body: bytes, signature: bytes) -> None:
        """Deliver one report.

        Raises:
            ServerRefused: the server will never take it.
            LinkDown: try again later.
        """
        headers = {SIGNATURE_HEADER: format_signature(signature), "Content-Type": "application/json"}
        with self._fetcher.ask("POST", "/device/v1/reports", content=body, headers=headers) as response:
            for _ in self._fetcher.body(response, _MAX_REPLY_BYTES):
                pass

    def download(
        self,
        blob: Blob,
        disk: Disk,
        received: Callable[[int], None],
        allowed: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Fetch a blob into its file, going on where an earlier call, or an earlier process, stopped.

        At return the file is complete, has the digest, and is durable. Bytes that arrived before a failure stay. What
        a piece of it was is known by its digest alone, so it does not matter which server sent which piece.

        Args:
            blob: what to fetch.
            disk: where it is written.
            received: told of every piece that arrives, once it is written; what it raises ends the download.
            allowed: asked before each request: so many bytes may be read, at least one; None: any number.

        Raises:
            LinkDown: it was cut; call again later.
            NotFound: the server does not have it.
            DigestMismatch: it arrived whole with other bytes; the file is removed.
        """
        resumed = fetch_file(self._fetcher, blob.remote, disk, received, allowed)
        if (actual := file_sha256(blob.file)) != blob.sha256:
            remove(disk, blob.file)
            if resumed:  # a power cut may have torn what was there before: once more from the start
                raise LinkDown(f"blob {blob.name}: what was kept of it is damaged; fetching it again")
            raise DigestMismatch(subject=f"blob {blob.name}", expected=blob.sha256.hex(), actual=actual.hex())


def fetch_file(
    fetcher: Fetcher,
    remote: RemoteFile,
    disk: Disk,
    received: Callable[[int], None],
    allowed: Callable[[], int | None] = lambda: None,
) -> bool:
    """Fetch a file, going on where an earlier call stopped; return whether it did. Its digest is the caller's affair.

    At return the file has its length and is durable. Bytes that arrived before a failure stay.

    Raises:
        LinkDown: it was cut; call again later.
        NotFound: the server does not have it.
        InvalidInput: the server sends more.
    """
    make_folder(disk, remote.file.parent)
    have = remote.file.stat().st_size if disk.exists(remote.file) else 0
    if have > remote.length or (have and remote.tag is None):
        remove(disk, remote.file)
        have = 0
    resumed = have > 0
    while have < remote.length or not disk.exists(remote.file):
        start, have = _fetch_some(fetcher, remote, have, disk, received, most=allowed())
        resumed &= start > 0
    finish_appends(disk, remote.file)
    return resumed


def _fetch_some(
    fetcher: Fetcher, remote: RemoteFile, have: int, disk: Disk, received: Callable[[int], None], *, most: int | None
) -> tuple[int, int]:
    """Read what one request may bring; return where it began, and how many bytes of the file are here now."""
    end = remote.length if most is None else min(remote.length, have + max(1, most))
    headers = {}
    if remote.tag and (have or end < remote.length):
        last = str(end - 1) if end < remote.length else ""
        headers = {"Range": f"bytes={have}-{last}", "If-Range": remote.tag}
    try:
        with fetcher.ask("GET", remote.path, headers=headers) as response:
            partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
            if not partial:
                if have:
                    remove(disk, remote.file)
                have, end = 0, end - have if most else remote.length
            elif not (said := response.headers.get("Content-Range", "")).startswith(f"bytes {have}-"):
                raise LinkDown(  # noqa: TRY301 - the handler below lets it pass
                    f"{remote.path}: asked for the bytes from {have} on, got {said!r}"
                )
            start = have
            with closing(_written(fetcher.body(response, remote.length - have), remote.file, disk)) as pieces:
                for piece in pieces:
                    have += len(piece)
                    received(len(piece))
                    if have >= end and not partial and most:
                        break  # the server knows no ranges
    except LinkDown as bad:
        if bad.code == "link.range":  # it has no such part: what is here cannot be the beginning of it
            remove(disk, remote.file)
        raise
    if have < end:
        raise LinkDown(f"{remote.path}: the connection ended after {have} of {remote.length} bytes")
    return start, have


def _written(pieces: Iterator[bytes], file: Path, disk: Disk) -> Generator[bytes, None, None]:
    """Append pieces to a file as they come, and make them durable every so often, and at the end whatever it is."""
    disk.append(file, b"")  # an empty file is a file
    unsynced, synced_at = 0, time.monotonic()
    try:
        for piece in pieces:
            disk.append(file, piece)
            unsynced += len(piece)
            yield piece
            if unsynced >= _SYNC_EVERY_BYTES or time.monotonic() - synced_at >= _SYNC_EVERY_S:
                disk.sync(file)
                unsynced, synced_at = 0, time.monotonic()
    finally:
        if unsynced:
            disk.sync(file)
