"""The poll: 304, or one body with everything that changed: signed metadata, and payloads that fit.

What a device should run is not said here: it is in the metadata, signed by the director. The entity tag of a device's
state *is* the list of the metadata versions that it holds, so one header says both "answer only if something changed"
and "this I have":

    If-None-Match: "i4.17.17.5,pcb-defects=9;d1.31.8.8"
        i, d        image and director repository: versions of root, timestamp, snapshot, targets; 0 for none
        name=n      version of the image repository's role of the model `name`

Body, numbers in LEB128:
    u8 coding       0 zstd | 1 zstd with a raw-content dictionary
    zstd frame of:  u32 CRC-32 of head, files and payloads, little-endian | head | text | digits | payloads
    head            poll interval, ms | how many files of metadata | each of them | bytes of the text
                    | how many payloads | bytes of each
    a file          u8 kind | version, 0 for a timestamp | bytes
                    kind 0 to 3: root, timestamp, snapshot, targets of the image repository; 4 to 7: of the director;
                    8: u8 length of a name | name: the image repository's role of the model of this name
    text            the files, one after the other, without the digits of digests and signatures (`protocol.digits`)
The checksum is over the files as they are read: an answer that was packed with another dictionary, be it by a digit of
a digest, is refused, never misread.
Digits and payloads stand in blocks of their own within the frame: what does not compress is stored as it is there, and
leaves the statistics of the text before it alone (a tenth of an answer of a kilobyte). A payload's name is its digest,
which is computed and not sent.
The dictionary is the text of the signed metadata files that the request's entity tag names, in its order: a new version
of a file that both sides hold costs little more than its signature and digests.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import zstandard

from sprat_shared.errors import InvalidInput, LimitExceeded
from sprat_shared.ids import digest_text
from sprat_shared.protocol.digits import DigitRuns
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY
from sprat_shared.trust.targets import IMAGE_REPOSITORY, role_of_model
from sprat_shared.wire.leb128 import pack_leb128, read_leb128

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
_FILES: Final = tuple((name, role) for name in (IMAGE_REPOSITORY, DIRECTOR_REPOSITORY) for role in TOP_ROLES)
_MODEL_FILE: Final = len(_FILES)
_CHECKSUM_BYTES: Final = 4
_NAME: Final = re.compile(r"(image|director)/(?:([1-9][0-9]{0,8})\.)?([a-z0-9.-]{1,80})\.json")
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
        """Return the body, compressed with `dictionary` where there is one.

        Raises:
            InvalidInput: a file has another name than metadata have, or is no JSON.
        """
        runs = DigitRuns()
        known = runs.learn(dictionary)
        files = [part for part in self.parts if part.kind == "metadata"]
        payloads = [part.data for part in self.parts if part.kind == "blob"]
        whole = b"".join(part.data for part in files)
        text, digits = runs.take_out(whole)
        head = b"".join(
            [
                pack_leb128(round(self.poll_interval_s * 1000)),
                pack_leb128(len(files)),
                *(_pack_file(part.name, len(part.data)) for part in files),
                pack_leb128(len(text)),
                pack_leb128(len(payloads)),
                *(pack_leb128(len(payload)) for payload in payloads),
            ]
        )
        checksum = _checksum(head, whole, *payloads)
        coding = _DICTIONARY if dictionary else _PLAIN
        return bytes([coding]) + _pack([checksum + head + text, digits, *payloads], known)

    @classmethod
    def from_bytes(cls, body: bytes, dictionary: bytes = b"", *, max_bytes: int = MAX_BODY_BYTES) -> "PollAnswer":
        """Read a body.

        Raises:
            InvalidInput: it is cut, corrupted, or was made with another dictionary.
            LimitExceeded: it unpacks to more than `max_bytes`.
        """
        runs = DigitRuns()
        known = runs.learn(b"" if body[:1] == bytes([_PLAIN]) else dictionary)
        reader = _Reader(_unpack(body, known, max_bytes))
        checksum = reader.take(_CHECKSUM_BYTES)
        interval_s = reader.number() / 1000
        files = [reader.file() for _ in range(reader.number())]
        text_bytes = reader.number()
        payloads = [reader.number() for _ in range(reader.number())]
        head = reader.taken()[_CHECKSUM_BYTES:]
        length = sum(size for _, size in files)
        if length > max_bytes:
            raise LimitExceeded(f"poll answer: declares {length} bytes of metadata, at most {max_bytes} are read")
        text = reader.take(text_bytes)
        whole = runs.put_back(text, reader.take(DigitRuns.new_bytes(text)), length=length)
        parts, at = [], 0
        for name, size in files:
            parts.append(Part(kind="metadata", name=name, data=whole[at : at + size]))
            at += size
        for size in payloads:
            data = reader.take(size)
            parts.append(Part(kind="blob", name=digest_text(hashlib.sha256(data).digest()), data=data))
        reader.end()
        if checksum != _checksum(head, whole, *(part.data for part in parts[len(files) :])):
            raise InvalidInput("poll answer: the checksum is wrong; corrupted, or of another dictionary")
        return cls(poll_interval_s=interval_s, parts=tuple(parts))


def _checksum(*pieces: bytes) -> bytes:
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return crc.to_bytes(_CHECKSUM_BYTES, "little")


def _pack_file(name: str, length: int) -> bytes:
    match = _NAME.fullmatch(name)
    if match is None or (match[2] is None) != (match[3] == "timestamp"):
        raise InvalidInput(f"poll answer: {name!r} is no name of a metadata file")
    size, version = pack_leb128(length), pack_leb128(int(match[2] or 0))
    if (match[1], match[3]) in _FILES:
        return bytes([_FILES.index((match[1], match[3]))]) + version + size
    model = match[3].removeprefix("m.")
    if f"{match[1]}/{match[3]}" != f"{IMAGE_REPOSITORY}/{role_of_model(model)}":
        raise InvalidInput(f"poll answer: {name!r} is no name of a metadata file")
    return bytes([_MODEL_FILE, len(model)]) + model.encode() + version + size


class _Reader:
    """Reads what was unpacked from its start."""

    def __init__(self, plain: bytes) -> None:
        self._plain, self._at = plain, 0

    def number(self) -> int:
        try:
            value, self._at = read_leb128(self._plain, self._at)
        except ValueError:
            raise InvalidInput("poll answer: its head does not end") from None
        return value

    def take(self, length: int) -> bytes:
        taken = self._plain[self._at : self._at + length]
        if len(taken) != length:
            raise InvalidInput(f"poll answer: {length} bytes are declared, {len(taken)} are there")
        self._at += length
        return taken

    def file(self) -> tuple[str, int]:
        """Return a metadata file's name and its bytes."""
        (kind,) = self.take(1)
        if kind > _MODEL_FILE:
            raise InvalidInput(f"poll answer: there is no file of kind {kind}")
        if kind == _MODEL_FILE:
            repository, role = IMAGE_REPOSITORY, role_of_model(str(self.take(self.take(1)[0]), "latin-1"))
        else:
            repository, role = _FILES[kind]
        version, size = self.number(), self.number()
        return f"{repository}/{role}.json" if version == 0 else f"{repository}/{version}.{role}.json", size

    def taken(self) -> bytes:
        """Return everything that was read so far."""
        return self._plain[: self._at]

    def end(self) -> None:
        if self._at != len(self._plain):
            raise InvalidInput(f"poll answer: {len(self._plain) - self._at} bytes belong to no part")


def _dictionary(raw: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(raw, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if raw else None


def _pack(blocks: Sequence[bytes], dictionary: bytes) -> bytes:
    """Return one frame of it all, each of `blocks` in blocks of its own."""
    packer = zstandard.ZstdCompressor(level=_LEVEL, dict_data=_dictionary(dictionary))
    stream = packer.compressobj(size=sum(map(len, blocks)))
    packed = stream.compress(blocks[0])
    for block in filter(None, blocks[1:]):
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
        unpacker = zstandard.ZstdDecompressor(dict_data=_dictionary(dictionary))
        return unpacker.decompress(body[1:], max_output_size=max_bytes, allow_extra_data=False)
    except zstandard.ZstdError as bad:
        raise InvalidInput(f"poll answer: cut, corrupted, or of another dictionary ({bad})") from None
