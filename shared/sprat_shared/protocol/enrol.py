"""Enrolment: a device shows a token and the public half of the key it made; it gets an identity and a root of trust."""

import base64
import binascii
from dataclasses import dataclass
from uuid import UUID

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields, canonical_json

PUBLIC_KEY_BYTES = 32  # ed25519, RFC 8032


def _decode(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{where}: not base64") from None


def _uuid(text: str, where: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput(f"{where}: {text[:80]!r} is not a UUID") from None


def _root(fields: Fields, name: str) -> bytes:
    return _decode(fields.text(name, max_length=1_000_000), f"enrolment answer: field {name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """Sent once, authorised by an enrolment token.

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
        token: its bearer token; shown once, kept hashed on the server.
        image_root: signed bytes of the image repository's root metadata, one start of all trust,
        director_root: and of the director repository's, the other.
        poll_interval_s: how often to ask, seconds.
    """

    device: UUID
    token: str
    image_root: bytes
    director_root: bytes
    poll_interval_s: float

    def to_json(self) -> bytes:
        """Return the answer's body."""
        return canonical_json(
            {
                "device": str(self.device),
                "token": self.token,
                "image_root": base64.b64encode(self.image_root).decode(),
                "director_root": base64.b64encode(self.director_root).decode(),
                "poll_interval_s": self.poll_interval_s,
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
            device=_uuid(fields.text("device"), "enrolment answer: field 'device'"),
            token=fields.text("token"),
            image_root=_root(fields, "image_root"),
            director_root=_root(fields, "director_root"),
            poll_interval_s=fields.number("poll_interval_s"),
        )
