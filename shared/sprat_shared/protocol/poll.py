"""The poll: 304, or one body with everything that changed (metadata, desired state, payloads that fit).

Body, little-endian:
    u8 coding       0 zstd | 1 zstd with a raw-content dictionary
    zstd frame of:  u32 length of the head | head, JSON | the parts' bytes, one after the other
The frame carries its checksum: an answer that was packed with another dictionary is refused, never misread.
Payloads stand in blocks of their own within the frame: what does not compress is stored as it is there, and leaves the
statistics of the text before it alone (a tenth of an answer of a kilobyte).
The dictionary is the concatenation of the signed metadata files that the request's `Sprat-Have` names, in its
order: a new version of a file that both sides hold costs little more than its signature and digests.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import zstandard

from sprat_shared.errors import InvalidInput, LimitExceeded
from sprat_shared.protocol.fields import Fields, canonical_json

HAVE_HEADER: Final = "Sprat-Have"
INLINE_HEADER: Final = "Sprat-Inline"
CONTENT_TYPE: Final = "application/vnd.sprat.poll"
MAX_BODY_BYTES: Final = 64 << 20
_MAX_HAVE: Final = 200
_HAVE_ITEM: Final = re.compile(r"(image|director)/([a-z0-9.-]{1,80})=([0-9]{1,9})")
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


def format_have(held: Sequence[HeldMetadata]) -> str:
    """Return the value of the `Sprat-Have` header."""
    return ",".join(map(str, held))


def parse_have(header: str) -> list[HeldMetadata]:
    """Read the value of a `Sprat-Have` header.

    Raises:
        InvalidInput: an item has another form than `image/<role>=<version>`, or there are too many.
    """
    items = [item for item in header.split(",") if item]
    if len(items) > _MAX_HAVE:
        raise InvalidInput(f"{HAVE_HEADER}: {len(items)} items, at most {_MAX_HAVE} are read")
    held = []
    for item in items:
        match = _HAVE_ITEM.fullmatch(item.strip())
        if match is None:
            raise InvalidInput(f"{HAVE_HEADER}: {item[:100]!r} is not of the form image/<role>=<version>")
        held.append(HeldMetadata(match[1], match[2], int(match[3])))
    return held


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The release that a device should run of one model: the net wish, never a queue.

    Attributes:
        model: name of the model.
        release: number of the release.
        weights: its weights digest.
        assignment: counter of assignments of this device; a larger one replaces all smaller ones.
        graph: target path of the graph.
        path: target paths of the updates that lead there from what the server believes the device holds, in
            order; empty where it should hold the release in a slot already.
        full: target path of the full update, for a device that holds something else.
    """

    model: str
    release: int
    weights: str
    assignment: int
    graph: str
    path: tuple[str, ...]
    full: str

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "model": self.model,
            "release": self.release,
            "weights": self.weights,
            "assignment": self.assignment,
            "graph": self.graph,
            "path": list(self.path),
            "full": self.full,
        }

    @classmethod
    def of(cls, value: Any) -> "Desired":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields(value, "desired state")
        path = fields.list_of("path")
        if not all(isinstance(step, str) for step in path):
            raise InvalidInput("desired state: field 'path' must be a list of target paths")
        return cls(
            model=fields.model("model"),
            release=fields.integer("release", minimum=1),
            weights=fields.digest("weights"),
            assignment=fields.integer("assignment", minimum=1),
            graph=fields.text("graph"),
            path=tuple(path),
            full=fields.text("full"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes carried in the body.

    Attributes:
        kind: `metadata` for a signed file of a TUF repository, `blob` for the payload of a target.
        name: `image/4.snapshot.json`, or the blob's digest.
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
        desired: the release wished for each model.
        parts: metadata first, in the order in which a TUF client reads them, then payloads.
    """

    poll_interval_s: float
    desired: tuple[Desired, ...]
    parts: tuple[Part, ...]

    def to_bytes(self, dictionary: bytes = b"") -> bytes:
        """Return the body, compressed with `dictionary` where there is one."""
        head = canonical_json(
            {
                "poll_interval_s": self.poll_interval_s,
                "desired": [wish.as_json() for wish in self.desired],
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
            desired=tuple(Desired.of(wish) for wish in fields.list_of("desired")),
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
        raise InvalidInput("poll answer: it was packed with a dictionary that is not held here; ask without Sprat-Have")
    try:
        declared = zstandard.frame_content_size(body[1:])
        if declared > max_bytes:
            raise LimitExceeded(f"poll answer: declares {declared} bytes, at most {max_bytes} are read")
        unpacker = zstandard.ZstdDecompressor(dict_data=_dictionary(dictionary if body[0] == _DICTIONARY else b""))
        return unpacker.decompress(body[1:], max_output_size=max_bytes, allow_extra_data=False)
    except zstandard.ZstdError as bad:
        raise InvalidInput(f"poll answer: cut, corrupted, or of another dictionary ({bad})") from None
