"""A bundle: what polls would have brought to one or more devices, in one file that somebody carries to them.

    12 bytes "sprat-bundle" | u8 version, 1 | u32 bytes of the head, little-endian | SHA-256 of the head | head
    head, numbers in LEB128:
        how many devices | each, by id: 16 bytes id | bytes of its metadata
        bytes of the metadata of the image repository
        how many payloads | each, by digest: 32 bytes SHA-256 | bytes
    metadata of the image repository, those of each device, payloads; the file ends with the last of them

Metadata are bodies of polls' answers (`protocol.poll`) that carry no payload: those of the image repository plain, for
all devices; those that the director signed for one device packed with the former as dictionary. A payload is there
once, however many devices need it.

A bundle holds no secret and is not believed: metadata are verified as a poll's are, payloads by their signed digests.
The head's digest and the sizes only tell a damaged file from a whole one before anything is taken from it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar
from uuid import UUID

from sprat_shared.errors import InvalidInput, LimitExceeded
from sprat_shared.protocol.poll import Part, PollAnswer
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY
from sprat_shared.trust.targets import IMAGE_REPOSITORY
from sprat_shared.wire.leb128 import pack_leb128, read_leb128

K = TypeVar("K")
CONTENT_TYPE: Final = "application/vnd.sprat.bundle"
MOST_DEVICES: Final = 10_000
MAX_METADATA_BYTES: Final = 8 << 20
"""Of one section, as it is read and as it is unpacked."""

_MAGIC: Final = b"sprat-bundle"
_VERSION: Final = 1
_MOST_PAYLOADS: Final = 100_000
_MAX_HEAD_BYTES: Final = 8 << 20
_DIGEST_BYTES: Final = 32
_ID_BYTES: Final = 16
PREFIX_BYTES: Final = len(_MAGIC) + 1 + 4 + _DIGEST_BYTES


def malformed(why: str) -> InvalidInput:
    """Return the error of a file that is no bundle, or not a whole one any more."""
    return InvalidInput(f"bundle: {why}; copy it again, or export it anew", code="bundle.damaged")


@dataclass(frozen=True, slots=True)
class Span:
    """Where something stands in the file: from byte `start`, so many bytes."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Head:
    """What is in a bundle, in the order in which it stands there.

    Attributes:
        image_bytes: of the image repository's metadata.
        devices: bytes of each device's metadata, by its id.
        payloads: bytes of each payload, by its SHA-256.
    """

    image_bytes: int
    devices: Mapping[UUID, int]
    payloads: Mapping[bytes, int]

    def to_bytes(self) -> bytes:
        """Return all that stands before the first section."""
        head = b"".join(
            [
                pack_leb128(len(self.devices)),
                *(device.bytes + pack_leb128(length) for device, length in self.devices.items()),
                pack_leb128(self.image_bytes),
                pack_leb128(len(self.payloads)),
                *(sha256 + pack_leb128(length) for sha256, length in self.payloads.items()),
            ]
        )
        return _MAGIC + bytes([_VERSION]) + len(head).to_bytes(4, "little") + hashlib.sha256(head).digest() + head

    @property
    def start(self) -> int:
        """Return where the first section begins."""
        return len(self.to_bytes())

    @property
    def whole_bytes(self) -> int:
        """Return the bytes of the whole file."""
        return self.start + self.image_bytes + sum(self.devices.values()) + sum(self.payloads.values())

    def image(self) -> Span:
        """Return where the metadata of the image repository stand."""
        return Span(self.start, self.image_bytes)

    def of_device(self, device: UUID) -> Span:
        """Return where a device's metadata stand; KeyError where there are none."""
        spans = _spans(self.start + self.image_bytes, self.devices)
        return spans[device]

    def of_payloads(self) -> dict[bytes, Span]:
        """Return where each payload stands."""
        return _spans(self.start + self.image_bytes + sum(self.devices.values()), self.payloads)


def head_bytes(prefix: bytes) -> int:
    """Return how many bytes of head follow the first `PREFIX_BYTES` of a file.

    Raises:
        InvalidInput: it is no bundle, was cut, or is of a version that is not read here.
        LimitExceeded: the head would be longer than any is.
    """
    if prefix[: len(_MAGIC)] != _MAGIC[: len(prefix)] or not prefix:
        raise InvalidInput("this file is no bundle; `sprat bundle export` writes them", code="bundle.unknown")
    if len(prefix) < PREFIX_BYTES:
        raise malformed(f"it ends after {len(prefix)} bytes")
    if prefix[len(_MAGIC)] != _VERSION:
        raise InvalidInput(
            f"bundle of version {prefix[len(_MAGIC)]}; this sprat reads {_VERSION}: install a newer one",
            code="bundle.version",
        )
    length = int.from_bytes(prefix[len(_MAGIC) + 1 : len(_MAGIC) + 5], "little")
    if length > _MAX_HEAD_BYTES:
        raise LimitExceeded(f"bundle: it declares a head of {length} bytes, at most {_MAX_HEAD_BYTES} are read")
    return length


def read_head(prefix: bytes, head: bytes, *, file_bytes: int) -> Head:
    """Read what is in a bundle, and check that it is all there.

    Args:
        prefix: the first `PREFIX_BYTES` of the file.
        head: those that follow, as many as `head_bytes` says.
        file_bytes: of the whole file.

    Raises:
        InvalidInput: the head was changed or cut, or the file has not the bytes that it declares.
        LimitExceeded: it declares more than is read.
    """
    if len(head) != head_bytes(prefix) or hashlib.sha256(head).digest() != prefix[-_DIGEST_BYTES:]:
        raise malformed("its head was cut or changed")
    at = 0

    def number(most: int) -> int:
        nonlocal at
        try:
            value, at = read_leb128(head, at)
        except ValueError:
            raise malformed("its head does not end") from None
        if value > most:
            raise LimitExceeded(f"bundle: it declares {value}, where at most {most} is read")
        return value

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        if at > len(head):
            raise malformed("its head does not end")
        return head[at - count : at]

    devices = {UUID(bytes=take(_ID_BYTES)): number(MAX_METADATA_BYTES) for _ in range(number(MOST_DEVICES))}
    image_bytes = number(MAX_METADATA_BYTES)
    payloads = {take(_DIGEST_BYTES): number(1 << 42) for _ in range(number(_MOST_PAYLOADS))}
    found = Head(image_bytes, devices, payloads)
    if at != len(head) or found.to_bytes() != prefix + head:
        raise malformed("its head says something twice, or in another way than it is written")
    if found.whole_bytes != file_bytes:
        raise malformed(f"it has {file_bytes} bytes where it declares {found.whole_bytes}")
    return found


def pack_metadata(image: Sequence[Part], devices: Mapping[UUID, Sequence[Part]]) -> tuple[bytes, dict[UUID, bytes]]:
    """Return the sections of the metadata: the image repository's, and each device's, by its id."""
    dictionary = _joined(image)
    return PollAnswer(poll_interval_s=0, parts=tuple(image)).to_bytes(), {
        device: PollAnswer(poll_interval_s=0, parts=tuple(parts)).to_bytes(dictionary)
        for device, parts in sorted(devices.items())
    }


def unpack_metadata(image: bytes, device: bytes) -> dict[str, bytes]:
    """Return the metadata files by name, such as `image/4.snapshot.json`, of two sections.

    Raises:
        InvalidInput: a section was cut or changed, or holds what does not belong there.
        LimitExceeded: it unpacks to more than `MAX_METADATA_BYTES`.
    """
    try:
        common = PollAnswer.from_bytes(image, max_bytes=MAX_METADATA_BYTES).parts
        own = PollAnswer.from_bytes(device, _joined(common), max_bytes=MAX_METADATA_BYTES).parts
    except InvalidInput as bad:
        raise malformed(str(bad)) from bad
    for repository, parts in ((IMAGE_REPOSITORY, common), (DIRECTOR_REPOSITORY, own)):
        for part in parts:
            if part.kind != "metadata" or not part.name.startswith(f"{repository}/"):
                raise malformed(f"{part.name[:80]} stands among the metadata of the {repository} repository")
    return {part.name: part.data for part in (*common, *own)}


def _joined(parts: Sequence[Part]) -> bytes:
    return b"".join(part.data for part in parts)


def _spans(start: int, lengths: Mapping[K, int]) -> dict[K, Span]:
    spans = {}
    for key, length in lengths.items():
        spans[key] = Span(start, length)
        start += length
    return spans
