"""The blob port: immutable bytes by their SHA-256, in a folder or in an S3-compatible store (through obstore).

A blob `sha256:<hex>` lies at `sha256/<first two hex>/<hex>`. What is put is hashed here, so a name can never
stand for other bytes. In a folder a blob is on the disk (fsync of the file and its folder) when a put returns.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

import obstore
from obstore.exceptions import BaseError as StoreError
from obstore.exceptions import NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from sprat_shared.errors import InvalidInput, NotFound, SpratError, TryLater
from sprat_shared.ids import digest_text, parse_digest

CHUNK_BYTES: Final = 1 << 20


class BlobUnknown(NotFound):
    """No blob of this digest is stored."""

    code = "blob.unknown"

    def __init__(self, digest: str) -> None:
        super().__init__(f"no blob {digest} is stored; upload it first")


class BlobTooLarge(InvalidInput):
    """What is uploaded has more bytes than the server takes."""

    code = "blob.too-large"


class BlobDamaged(SpratError):
    """What the store returned is not what was put."""

    code = "blob.damaged"


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob: `digest` is `sha256:<hex>`, `length` its bytes."""

    digest: str
    length: int


def blob_path(digest: str) -> str:
    """Return where the blob lies in the store: `sha256/<2>/<hex>`."""
    hex_ = parse_digest(digest).hex()
    return f"sha256/{hex_[:2]}/{hex_}"


class Upload:
    """Bytes on their way into the store: written piece by piece to a temporary file, hashed, capped.

    Use as a context manager; what was not finished leaves nothing behind.
    """

    def __init__(self, blobs: "Blobs", *, max_bytes: int | None) -> None:
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._hash = hashlib.sha256()
        self._length = 0
        self._file: IO[bytes] = tempfile.NamedTemporaryFile(prefix="sprat-upload-", dir=blobs.spool_dir)  # noqa: SIM115 - closed by __exit__

    def write(self, data: bytes | memoryview) -> None:
        """Take the next piece.

        Raises:
            BlobTooLarge: with it the upload would exceed its cap; nothing of the piece is kept.
        """
        if self._max_bytes is not None and self._length + len(data) > self._max_bytes:
            raise BlobTooLarge(f"the upload has more than {self._max_bytes} bytes, the most this server takes")
        try:
            self._file.write(data)
        except OSError as e:
            raise TryLater(f"the upload cannot be written down: {e.strerror}", code="blob.store-failed") from e
        self._hash.update(data)
        self._length += len(data)

    def finish(self) -> Blob:
        """Put what was written into the store and return its digest and length."""
        self._file.flush()
        blob = Blob(digest_text(self._hash.digest()), self._length)
        self._blobs.keep(blob, Path(self._file.name))
        return blob

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Blobs:
    """Content-addressed blobs in one store. Thread-safe; make one per process with `Blobs.open`."""

    def __init__(self, store: ObjectStore, *, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder
        self.spool_dir: Path | None = None
        """Where uploads wait until they are complete; in a folder store beside the blobs, on the same disk."""
        if folder is not None:
            self.spool_dir = folder / "incoming"
            self.spool_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    @classmethod
    def open(cls, url: str) -> Self:
        """Open the store at `url`: a folder's path, file:///…, or s3://bucket/prefix (AWS_* variables apply).

        Raises:
            InvalidInput: the URL cannot be used; the message says why.
        """
        if "://" in url and not url.startswith("file://"):
            if not url.startswith("s3://"):
                raise InvalidInput(f"SPRAT_BLOB_URL {url!r}: write a folder, file:///…, or s3://bucket/prefix")
            try:
                return cls(from_url(url))
            except (StoreError, ValueError) as e:
                raise InvalidInput(f"SPRAT_BLOB_URL {url!r} cannot be opened: {e}") from e
        folder = Path(url.removeprefix("file://")).absolute()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(LocalStore(prefix=folder), folder=folder)
        except (OSError, StoreError) as e:
            raise InvalidInput(f"the blob folder {folder} cannot be opened: {e}") from e

    def upload(self, *, max_bytes: int | None = None) -> Upload:
        """Begin an upload; see `Upload`."""
        return Upload(self, max_bytes=max_bytes)

    def put_bytes(self, data: bytes | memoryview) -> Blob:
        """Store `data` and return its digest and length."""
        return self.put_stream([data])

    def put_stream(self, pieces: Iterable[bytes | memoryview], *, max_bytes: int | None = None) -> Blob:
        """Store the concatenation of `pieces`.

        Raises:
            BlobTooLarge: it has more than `max_bytes` bytes.
        """
        with self.upload(max_bytes=max_bytes) as upload:
            for piece in pieces:
                upload.write(piece)
            return upload.finish()

    def put_file(self, path: Path) -> Blob:
        """Store the bytes of the file at `path`, which must not change meanwhile."""
        with path.open("rb") as file:
            blob = Blob(digest_text(hashlib.file_digest(file, "sha256").digest()), path.stat().st_size)
        self.keep(blob, path)
        return blob

    def keep(self, blob: Blob, path: Path) -> None:
        """Store the file at `path`, whose digest and length are `blob`'s. Storing what is stored costs nothing."""
        name = blob_path(blob.digest)
        try:
            if self.length(blob.digest) == blob.length:
                return
        except BlobUnknown:
            pass
        with self._translated(blob.digest):
            obstore.put(self._store, name, path)
        if self._folder is not None:
            _sync(self._folder / name)

    def length(self, digest: str) -> int:
        """Return the bytes of the blob.

        Raises:
            BlobUnknown: it is not stored.
        """
        with self._translated(digest):
            return int(obstore.head(self._store, blob_path(digest))["size"])

    def exists(self, digest: str) -> bool:
        """Say whether the blob is stored."""
        try:
            self.length(digest)
        except BlobUnknown:
            return False
        return True

    def read(self, digest: str, *, max_bytes: int) -> bytes:
        """Return the whole blob, its digest checked.

        Raises:
            BlobUnknown: it is not stored.
            BlobTooLarge: it has more than `max_bytes` bytes.
            BlobDamaged: the stored bytes have another digest.
        """
        length = self.length(digest)
        if length > max_bytes:
            raise BlobTooLarge(f"blob {digest} has {length} bytes, more than the {max_bytes} allowed here")
        with self._translated(digest):
            data = bytes(obstore.get(self._store, blob_path(digest)).bytes())
        _check(digest, hashlib.sha256(data).digest())
        return data

    def stream(self, digest: str, start: int = 0, end: int | None = None) -> Iterator[memoryview]:
        """Yield bytes `start` to `end` (exclusive; None: to the last) of the blob in pieces of about 1 MiB.

        The digest is not checked: whoever receives a whole blob does that.

        Raises:
            BlobUnknown: it is not stored.
        """
        stop = self.length(digest) if end is None else end
        if start >= stop:
            return
        with self._translated(digest):
            answer = obstore.get(self._store, blob_path(digest), options={"range": (start, stop)})
            for piece in answer.stream(min_chunk_size=CHUNK_BYTES):
                yield memoryview(piece)

    def fetch(self, digest: str, to: Path) -> None:
        """Write the blob to the new file `to`, its digest checked.

        Raises:
            BlobUnknown: it is not stored.
            BlobDamaged: the stored bytes have another digest; `to` is removed.
        """
        hash_ = hashlib.sha256()
        with to.open("xb") as file:
            try:
                for piece in self.stream(digest):
                    hash_.update(piece)
                    file.write(piece)
                _check(digest, hash_.digest())
            except BaseException:
                to.unlink()
                raise

    @contextmanager
    def local(self, digest: str) -> Iterator[Path]:
        """Give a path under which the blob can be read or mapped: the stored file itself, or a temporary copy.

        The file must not be written to.

        Raises:
            BlobUnknown: it is not stored.
            BlobDamaged: the stored bytes have another digest.
        """
        if self._folder is not None:
            self.length(digest)
            path = self._folder / blob_path(digest)
            with path.open("rb") as file:
                _check(digest, hashlib.file_digest(file, "sha256").digest())
            yield path
            return
        with tempfile.TemporaryDirectory(prefix="sprat-blob-") as folder:
            path = Path(folder) / "blob"
            self.fetch(digest, path)
            yield path

    @contextmanager
    def _translated(self, digest: str) -> Iterator[None]:
        try:
            yield
        except (NotFoundError, FileNotFoundError):
            raise BlobUnknown(digest) from None
        except (StoreError, OSError) as e:
            raise TryLater(f"the blob store failed over {digest}: {e}", code="blob.store-failed") from e


def _check(digest: str, actual: bytes) -> None:
    if parse_digest(digest) != actual:
        raise BlobDamaged(
            f"blob {digest} came back from the store as {digest_text(actual)}; restore it from a backup or delete it"
        )


def _sync(path: Path) -> None:
    """Bring the file, its name and the names of the two folders above it onto the disk."""
    for item in (path, path.parent, path.parent.parent, path.parent.parent.parent):
        fd = os.open(item, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
