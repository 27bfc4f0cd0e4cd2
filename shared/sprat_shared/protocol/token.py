"""How a device gets its short-lived bearer token: it signs an assertion with its key (private_key_jwt, RFC 7523, 2.2).

`POST /device/v1/token` takes a form (RFC 6749, section 4.4) with `grant_type`, `client_assertion_type` and
`client_assertion`: a JWT (EdDSA) with iss = sub = the device's id, aud, iat, exp at most 120 s later, and a jti that
counts once. An assertion outside its window is answered with the server's time, in the member `server_time` of the
problem: a device whose clock is wrong dates its next assertion by that.
"""

import math
from dataclasses import dataclass
from typing import Final

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.fields import Fields, canonical_json

TOKEN_PATH: Final = "/device/v1/token"  # noqa: S105 - where tokens come from
AUDIENCE: Final = "urn:sprat:device-token"
ALGORITHM: Final = "EdDSA"
GRANT_TYPE: Final = "client_credentials"
ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
MAX_ASSERTION_S: Final = 120
MAX_JTI_CHARACTERS: Final = 64
SERVER_TIME: Final = "server_time"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAnswer:
    """A bearer token (RFC 6749, section 5.1).

    Attributes:
        access_token: opaque; kept hashed on the server.
        expires_in: seconds until it ends.
    """

    access_token: str
    expires_in: float

    def to_json(self) -> bytes:
        """Return the answer's body."""
        said = {"access_token": self.access_token, "token_type": "Bearer", "expires_in": self.expires_in}
        return canonical_json(said)

    @classmethod
    def from_json(cls, body: bytes) -> "TokenAnswer":
        """Read an answer's body.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields.parse(body, "token answer")
        expires_in = fields.number("expires_in")
        if fields.text("token_type").lower() != "bearer" or not (math.isfinite(expires_in) and expires_in > 0):
            raise InvalidInput("token answer: not a bearer token with a time to live")
        return cls(access_token=fields.text("access_token", max_length=512), expires_in=expires_in)

    def __repr__(self) -> str:
        return f"TokenAnswer(expires_in={self.expires_in:g})"
