"""What the API shows of roles, keys and what waits for signatures."""

import base64
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field
from securesystemslib.signer import Key

from sprat_server.publish.drafts import Draft, Need
from sprat_server.publish.keys import holder_of
from sprat_shared.errors import InvalidInput

_HEX = r"^[0-9a-f]+$"
_MAX_KEYS = 20


class KeyView(BaseModel):
    """A public key: its id, who holds the private half (`server`, or the name that was given with it)."""

    keyid: str
    holder: str
    scheme: str

    @classmethod
    def of(cls, key: Key) -> Self:
        """Show this key."""
        return cls(keyid=key.keyid, holder=holder_of(key), scheme=key.scheme)


class RoleView(BaseModel):
    """One role: its newest published version, and who must sign the next one, from when on (half of its life)."""

    role: str
    version: int
    expires_at: datetime
    renew_at: datetime
    threshold: int
    keys: list[KeyView]
    online: bool
    waiting: int


class NeedView(BaseModel):
    """What a draft must have: `threshold` signatures by `keys`, as the metadata `by` say; `signed` are there."""

    by: str
    threshold: int
    missing: int
    keys: list[KeyView]
    signed: list[str]

    @classmethod
    def of(cls, need: Need) -> Self:
        """Show this need."""
        return cls(
            by=need.by,
            threshold=need.threshold,
            missing=need.missing,
            keys=[KeyView.of(key) for key in need.keys.values()],
            signed=sorted(need.signed),
        )


class DraftView(BaseModel):
    """The next version of a role, which waits for signatures; `release` is what it publishes.

    `payload` is the metadata in base64, without signatures; its `signed` part in canonical JSON is what is signed, and
    `digest` is of those bytes. `public_keys` are those that may sign, as TUF writes them, by key id.
    """

    digest: str
    role: str
    version: int
    release: int | None
    reason: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    needs: list[NeedView]
    payload: str
    public_keys: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, draft: Draft, needs: Sequence[Need]) -> Self:
        """Show this draft."""
        row = draft.row
        return cls(
            digest=row.digest,
            role=row.role,
            version=row.version,
            release=row.number,
            reason=row.reason,
            created_by=row.created_by,
            created_at=row.created_at,
            expires_at=draft.metadata.signed.expires,
            needs=[NeedView.of(need) for need in needs],
            payload=base64.b64encode(row.body).decode(),
            public_keys={keyid: key.to_dict() for need in needs for keyid, key in need.keys.items()},
        )


class CustodyView(BaseModel):
    """Every role, what waits for signatures, and the server's clock."""

    now: datetime
    roles: list[RoleView]
    waiting: list[DraftView]


class Signed(BaseModel):
    """What came of a signature or a rotation: the roles that were published, and what waits still."""

    published: list[str]
    waiting: list[DraftView]


class NewSignature(BaseModel):
    """One signature over a draft, in hex."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "keyid": "4e777de0d275f9d28588dd9a1606cc748e548f9e22b6795b7cb3f63f98035fcb",
                    "signature": "5c" * 64,
                }
            ]
        },
    )

    keyid: Annotated[str, Field(min_length=1, max_length=128)]
    signature: Annotated[str, Field(min_length=2, max_length=20_000, pattern=_HEX)]


class KeyValue(BaseModel):
    """The value of a public key: hex, or PEM."""

    public: Annotated[str, Field(min_length=1, max_length=20_000)]


class TufKey(BaseModel):
    """A public key as TUF writes it (specification, section 4.2), and who holds the private half."""

    keytype: Annotated[str, Field(min_length=1, max_length=64)]
    scheme: Annotated[str, Field(min_length=1, max_length=64)]
    keyval: KeyValue
    holder: Annotated[str, Field(alias="x-sprat-holder", pattern=r"^[A-Za-z0-9 ._@+-]{1,80}$")]


class PublicKey(BaseModel):
    """The public half of a key, and its id."""

    model_config = ConfigDict(extra="forbid")

    keyid: Annotated[str, Field(min_length=1, max_length=128, pattern=_HEX)]
    key: TufKey

    def parsed(self) -> Key:
        """Return the key.

        Raises:
            InvalidInput: it is none.
        """
        try:
            return Key.from_dict(self.keyid, self.key.model_dump(by_alias=True))
        except (KeyError, ValueError, TypeError, AttributeError) as bad:
            raise InvalidInput(f"key {self.keyid[:12]} is not a public key as TUF writes it ({bad})") from None


class NewKeysOfRole(BaseModel):
    """Keys for one role: root, targets, snapshot, timestamp, auto, or m.<model>.

    Without keys the server makes one (snapshot, timestamp, auto, or a top-level role whose key it holds now), or takes
    its own for a model that it may sign for.
    """

    model_config = ConfigDict(extra="forbid")

    role: Annotated[str, Field(min_length=1, max_length=80)]
    keys: Annotated[list[PublicKey] | None, Field(min_length=1, max_length=_MAX_KEYS)] = None
    threshold: Annotated[int, Field(ge=1, le=_MAX_KEYS)] = 1


class Rotation(BaseModel):
    """Keys for one or several roles, which take effect together."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"roles": [{"role": "timestamp"}, {"role": "snapshot"}]}]}
    )

    roles: Annotated[list[NewKeysOfRole], Field(min_length=1, max_length=200)]
