"""A bundle on this device: read within bounds, and what of it is for this device (`sprat_shared.protocol.bundle`)."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.bundle import (
    PREFIX_BYTES,
    Span,
    head_bytes,
    malformed,
    read_head,
    unpack_metadata,
)
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY, is_bound_to

_CHUNK_BYTES: Final = 1 << 20


class BundleFile:
    """An open bundle. Use it as a context manager.

    Args:
        path: of the file.

    Raises:
        InvalidInput: it cannot be read, is no bundle, or was cut or changed.
        LimitExceeded: it declares more than is read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file: IO[bytes] = path.open("rb")
        except OSError as bad:
            raise InvalidInput(f"bundle {path}: {bad.strerror}", code="bundle.unreadable") from bad
        try:
            prefix = self._file.read(PREFIX_BYTES)
            self._head = read_head(prefix, self._file.read(head_bytes(prefix)), file_bytes=self._file.seek(0, 2))
        except OSError as bad:
            self._file.close()
            raise InvalidInput(f"bundle {path}: {bad.strerror}", code="bundle.unreadable") from bad
        except BaseException:
            self._file.close()
            raise
        self._payloads = self._head.of_payloads()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, bad: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def payloads(self) -> Mapping[bytes, int]:
        """The bytes of each payload, by its SHA-256."""
        return self._head.payloads

    def metadata(self, device: UUID) -> dict[str, bytes]:
        """Return the metadata files for a device, by name, as a poll would bring them. They are not verified yet.

        Those of the director must say that they are for this device, each of them: its versions are each device's own,
        and who took another's for them would refuse its own from then on.

        Raises:
            InvalidInput: they were cut or changed.
            InvalidInput: (`bundle.other-device`) the bundle holds none for this device, or another device's for them.
        """
        if device not in self._head.devices:
            named = ", ".join(str(one) for one in list(self._head.devices)[:3])
            more = f" and {len(self._head.devices) - 3} more" if len(self._head.devices) > 3 else ""  # noqa: PLR2004
            raise InvalidInput(
                f"this bundle is for {named}{more}, and this is device {device}", code="bundle.other-device"
            )
        image, own = (self._bytes(span) for span in (self._head.image(), self._head.of_device(device)))
        parts = unpack_metadata(image, own)
        for name, data in parts.items():
            common = not name.startswith(f"{DIRECTOR_REPOSITORY}/") or name.endswith(".root.json")
            if not common and not is_bound_to(device, _signed(data)):
                raise InvalidInput(
                    f"bundle: {name} is not signed for device {device}: somebody mixed devices up",
                    code="bundle.other-device",
                )
        return parts

    def check(self) -> None:
        """Read all payloads and compare them with their digests; InvalidInput where one was changed."""
        for sha256 in self._payloads:
            digest = hashlib.sha256()
            for piece in self.payload(sha256):
                digest.update(piece)
            if digest.digest() != sha256:
                raise malformed(f"payload {sha256.hex()[:12]} was changed")

    def payload(self, sha256: bytes) -> Iterator[bytes]:
        """Yield the bytes of a payload."""
        span = self._payloads[sha256]
        for start in range(0, span.length, _CHUNK_BYTES):
            yield self._bytes(Span(span.start + start, min(_CHUNK_BYTES, span.length - start)))

    def _bytes(self, span: Span) -> bytes:
        try:
            self._file.seek(span.start)
            data = self._file.read(span.length)
        except OSError as bad:
            raise InvalidInput(f"bundle: it cannot be read ({bad.strerror})", code="bundle.unreadable") from bad
        if len(data) != span.length:
            raise malformed("it was cut while it was read")
        return data


def _signed(data: bytes) -> Mapping[str, object]:
    try:
        signed = json.loads(data)["signed"]
    except (ValueError, KeyError, TypeError):
        return {}
    return signed if isinstance(signed, dict) else {}
