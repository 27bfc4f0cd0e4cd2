"""Enrolment: a device shows a token, or waits in the queue, with the public half of the key it made and signs with.

It gets an identity and a root of trust, and no secret: from then on it proves that it holds the key (`token`).
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields, canonical_json

PUBLIC_KEY_BYTES = 32  # ed25519, RFC 8032
PLAYED: Final = {"simulated": "true"}
"""Attribute of a device that is only played (`sprat simulate fleet`): what it says is no evidence of anything."""


def _decode(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{where}: not base64") from None


def _root(fields: Fields, name: str) -> bytes:
    return _decode(fields.text(name, max_length=1_000_000), f"enrolment answer: field {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """Signed with the key that it names (`report.SIGNATURE_HEADER`); authorised by a token or by an operator's word.

    Sent again it is answered again: a device that waits asks so, and so does one whose answer was lost.

    Attributes:
        name: what people call the device; unique in the fleet.
        public_key: raw ed25519 public key, 32 bytes; the private half never leaves the device.
        agent: version of the agent.
        protocol: newest device protocol that the agent speaks.
        profile: device profile, the class of devices that it is of; None: none. Lower case, as a model's name.
        attributes: free facts about the device (machine, memory), text to text.
    """

    name: str
    public_key: bytes
    agent: str
    protocol: int = 1
    profile: str | None = None
    attributes: dict[str, str]

    def to_json(self) -> bytes:
        """Return the request body."""
        said = {
            "name": self.name,
            "public_key": base64.b64encode(self.public_key).decode(),
            "agent": self.agent,
            "protocol": self.protocol,
            "attributes": self.attributes,
        }
        return canonical_json(said if self.profile is None else said | {"profile": self.profile})

    @classmethod
    def from_json(cls, body: bytes) -> "EnrolRequest":
        """Read a request body.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields.parse(body, "enrolment request")
        key = _decode(fields.text("public_key", max_length=100), "enrolment request: field 'public_key'")
        if len(key) != PUBLIC_KEY_BYTES:
            raise InvalidInput(f"enrolment request: an ed25519 public key has {PUBLIC_KEY_BYTES} bytes, got {len(key)}")
        name = fields.text("name", max_length=100)
        if not name.strip() or not name.isprintable():
            raise InvalidInput("enrolment request: field 'name' must be 1 to 100 printable characters")
        return cls(
            name=name,
            public_key=key,
            agent=fields.text("agent", max_length=100),
            protocol=fields.integer("protocol", minimum=1, maximum=1000),
            profile=fields.model("profile") if fields.has("profile") else None,
            attributes={str(k)[:100]: str(v)[:400] for k, v in fields.mapping("attributes").items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolAnswer:
    """What a device keeps from its enrolment.

    Attributes:
        device: its id.
        image_root: signed bytes of the image repository's root metadata, one start of all trust,
        director_root: and of the director repository's, the other.
        poll_interval_s: how often to ask, seconds.
        report_sequence: of the newest report taken from this device, 0 for a new one; the next has a larger one.
    """

    device: UUID
    image_root: bytes
    director_root: bytes
    poll_interval_s: float
    report_sequence: int = 0

    def to_json(self) -> bytes:
        """Return the answer's body."""
        return canonical_json(
            {
                "device": str(self.device),
                "image_root": base64.b64encode(self.image_root).decode(),
                "director_root": base64.b64encode(self.director_root).decode(),
                "poll_interval_s": self.poll_interval_s,
                "report_sequence": self.report_sequence,
            }
        )

    @classmethod
    def from_json(cls, body: bytes) -> "EnrolAnswer":
        """Read an answer's body.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields.parse(body, "enrolment answer")
        return cls(
            device=fields.uuid("device"),
            image_root=_root(fields, "image_root"),
            director_root=_root(fields, "director_root"),
            poll_interval_s=fields.number("poll_interval_s"),
            report_sequence=fields.integer("report_sequence"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolPending:
    """Status 202: the device waits for an operator's word.

    Attributes:
        fingerprint: of the key, as the operator sees it.
        ask_again_s: ask again after so long, seconds.
    """

    fingerprint: str
    ask_again_s: float

    def to_json(self) -> bytes:
        """Return the answer's body."""
        return canonical_json({"fingerprint": self.fingerprint, "ask_again_s": self.ask_again_s})

    @classmethod
    def from_json(cls, body: bytes) -> "EnrolPending":
        """Read an answer's body.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields.parse(body, "enrolment answer")
        return cls(fingerprint=fields.text("fingerprint", max_length=100), ask_again_s=fields.number("ask_again_s"))


def fingerprint(public_key: bytes) -> str:
    """Return what people compare of a raw public key, in the form that ssh-keygen shows: `SHA256:<43 characters>`."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public_key).digest()).decode().rstrip("=")
