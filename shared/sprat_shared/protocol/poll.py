"""The poll: 304, or one body with everything that changed: signed metadata, and payloads that fit.

What a device should run is not said here: it is in the metadata, signed by the director. The entity tag of a device's
state *is* the list of the metadata versions that it holds, so one header says both "answer only if something changed"
and "this I have":

    If-None-Match: "i4.17.17.5,pcb-defects=9;d1.31.8.8"
        i, d        image and director repository: versions of root, timestamp, snapshot, targets; 0 for none
        name=n      version of the image repository's role of the model `name`

Body, little-endian:
    u8 coding       0 zstd | 1 zstd with a raw-content dictionary
    zstd frame of:  u32 length of the head | head, JSON | the parts' bytes, one after the other
The frame carries its checksum: an answer that was packed with another dictionary is refused, never misread.
Payloads stand in blocks of their own within the frame: what does not compress is stored as it is there, and leaves the
statistics of the text before it alone (a tenth of an answer of a kilobyte).
The dictionary is the concatenation of the signed metadata files that the request's entity tag names, in its order: a
new version of a file that both sides hold costs little more than its signature and digests.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import zstandard

from sprat_shared.errors import InvalidInput, LimitExceeded
from sprat_shared.protocol.fields import Fields, canonical_json
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY
from sprat_shared.trust.targets import IMAGE_REPOSITORY, role_of_model

INLINE_HEADER: Final = "Sprat-Inline"
DEFAULT_INLINE_BYTES: Final = 64 << 10
"""So many payload bytes may be in an answer where the request does not say `Sprat-Inline`."""

CONTENT_TYPE: Final = "application/vnd.sprat.poll"
MAX_BODY_BYTES: Final = 64 << 20
TOP_ROLES: Final = ("root", "timestamp", "snapshot", "targets")
_MAX_MODELS: Final = 200
_VERSION: Final = r"(?:0|[1-9][0-9]{0,8})"
_TAG: Final = re.compile(
    rf'"i({_VERSION}(?:\.{_VERSION}){{3}})((?:,[a-z0-9-]{{1,63}}={_VERSION})*);d({_VERSION}(?:\.{_VERSION}){{3}})"'
)
_HEAD: Final = struct.Struct("<I")
_PLAIN, _DICTIONARY = 0, 1
_LEVEL: Final = 19


@dataclass(frozen=True, slots=True)
class HeldMetadata:
    """One signed metadata file that a device holds: repository, role and version."""

    repository: str
    role: str
    version: int

    def __str__(self) -> str:
        return f"{self.repository}/{self.role}={self.version}"


def format_tag(held: Sequence[HeldMetadata]) -> str:
    """Return the entity tag of a device that holds these files, quotes included; their order does not matter."""
    versions = {(item.repository, item.role): item.version for item in held}

    def top(repository: str) -> str:
        return ".".join(str(versions.get((repository, role), 0)) for role in TOP_ROLES)

    models = "".join(
        f",{role.removeprefix('m.')}={version}"
        for (repository, role), version in sorted(versions.items())
        if repository == IMAGE_REPOSITORY and role not in TOP_ROLES
    )
    return f'"i{top(IMAGE_REPOSITORY)}{models};d{top(DIRECTOR_REPOSITORY)}"'


def parse_tag(tag: str) -> list[HeldMetadata]:
    """Read an entity tag: the files that a device holds, in the order of the dictionary; those of version 0 left out.

    That order: the image repository's root, timestamp, snapshot, targets, models by name; the director's first four.

    Raises:
        InvalidInput: it has another form, names a model twice or out of order, or more than 200 of them.
    """
    match = _TAG.fullmatch(tag.strip())
    if match is None:
        raise InvalidInput(f'If-None-Match: {tag[:100]!r} is not of the form "i1.2.3.4,model=5;d1.2.3.4"')
    pairs = [item.split("=") for item in match[2].split(",")[1:]]
    names = [name for name, _ in pairs]
    if names != sorted(set(names)) or len(names) > _MAX_MODELS:
        raise InvalidInput(f"If-None-Match: {len(names)} models; at most {_MAX_MODELS} are read, each once, in order")
    held = _top(IMAGE_REPOSITORY, match[1])
    held += [HeldMetadata(IMAGE_REPOSITORY, role_of_model(name), int(version)) for name, version in pairs]
    return [item for item in (*held, *_top(DIRECTOR_REPOSITORY, match[3])) if item.version]


def _top(repository: str, versions: str) -> list[HeldMetadata]:
    return [HeldMetadata(repository, *pair) for pair in zip(TOP_ROLES, map(int, versions.split(".")), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes carried in the body.

    Attributes:
        kind: `metadata` for a signed file of a TUF repository, `blob` for the payload of a target.
        name: `image/4.snapshot.json`, `director/timestamp.json`, or the blob's digest.
        data: the bytes.
    """

    kind: Literal["metadata", "blob"]
    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PollAnswer:
    """One poll's answer, when something changed.

    Attributes:
        poll_interval_s: when to ask again, seconds.
        parts: metadata first, in the order in which a TUF client reads them, then payloads.
    """

    poll_interval_s: float
    parts: tuple[Part, ...]

    def to_bytes(self, dictionary: bytes = b"") -> bytes:
        """Return the body, compressed with `dictionary` where there is one."""
        head = canonical_json(
            {
                "poll_interval_s": self.poll_interval_s,
                "parts": [[part.kind, part.name, len(part.data)] for part in self.parts],
            }
        )
        blocks = [_HEAD.pack(len(head)) + head]
        for part in self.parts:
            if part.kind == "metadata":
                blocks[-1] += part.data
            else:
                blocks.append(part.data)
        coding = _DICTIONARY if dictionary else _PLAIN
        return bytes([coding]) + _pack(blocks, dictionary)

    @classmethod
    def from_bytes(cls, body: bytes, dictionary: bytes = b"", *, max_bytes: int = MAX_BODY_BYTES) -> "PollAnswer":
        """Read a body.

        Raises:
            InvalidInput: it is cut, corrupted, or was made with another dictionary.
            LimitExceeded: it unpacks to more than `max_bytes`.
        """
        plain = _unpack(body, dictionary, max_bytes)
        if len(plain) < _HEAD.size:
            raise InvalidInput(f"poll answer: {len(plain)} bytes have no room for a head")
        (length,) = _HEAD.unpack_from(plain)
        at = _HEAD.size + length
        fields = Fields.parse(plain[_HEAD.size : at], "poll answer")
        parts = []
        for entry in fields.list_of("parts"):
            match entry:
                case ["metadata" | "blob" as kind, str(name), int(size)] if 0 <= size <= len(plain) - at:
                    parts.append(Part(kind=kind, name=name, data=plain[at : at + size]))
                    at += size
                case _:
                    raise InvalidInput(f"poll answer: part {entry!r:.100} is not [kind, name, bytes that are there]")
        if at != len(plain):
            raise InvalidInput(f"poll answer: {len(plain) - at} bytes belong to no part")
        return cls(
            poll_interval_s=fields.number("poll_interval_s"),
            parts=tuple(parts),
        )


def _dictionary(raw: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(raw, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if raw else None


def _pack(blocks: Sequence[bytes], dictionary: bytes) -> bytes:
    """Return one frame of it all, each of `blocks` in blocks of its own."""
    packer = zstandard.ZstdCompressor(level=_LEVEL, dict_data=_dictionary(dictionary), write_checksum=True)
    stream = packer.compressobj(size=sum(map(len, blocks)))
    packed = stream.compress(blocks[0])
    for block in blocks[1:]:
        packed += stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) + stream.compress(block)
    return packed + stream.flush()


def _unpack(body: bytes, dictionary: bytes, max_bytes: int) -> bytes:
    if not body or body[0] not in {_PLAIN, _DICTIONARY}:
        raise InvalidInput(f"poll answer: unknown coding {body[:1].hex() or 'of an empty body'}")
    if body[0] == _DICTIONARY and not dictionary:
        raise InvalidInput("poll answer: packed with a dictionary that is not held here; ask without If-None-Match")
    try:
        declared = zstandard.frame_content_size(body[1:])
        if declared > max_bytes:
            raise LimitExceeded(f"poll answer: declares {declared} bytes, at most {max_bytes} are read")
        unpacker = zstandard.ZstdDecompressor(dict_data=_dictionary(dictionary if body[0] == _DICTIONARY else b""))
        return unpacker.decompress(body[1:], max_output_size=max_bytes, allow_extra_data=False)
    except zstandard.ZstdError as bad:
        raise InvalidInput(f"poll answer: cut, corrupted, or of another dictionary ({bad})") from None
