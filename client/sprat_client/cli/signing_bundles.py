"""Signing bundles: what waits for signatures, in a file for a machine that has the key and no network; pure but for it.

JSON: {"sprat-bundle": 1, "drafts": [as the API shows them], "signatures": [{"digest", "keyid", "signature"}]}. Nothing
in it is secret, and nothing in it is believed: the digest is computed from the payload, a signature is verified.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature, Signer
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization import DeserializationError

from sprat_client.cli.private_keys import holder_of, named
from sprat_shared.errors import Conflict, InvalidInput
from sprat_shared.ids import sha256_digest

if TYPE_CHECKING:
    from sprat_client.api import DraftView

_FORMAT: Final = 1
_MAX_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class ToSign:
    """One draft as it is signed.

    Attributes:
        view: as the server shows it.
        metadata: what `view` carries, parsed.
        keys: the keys that may sign, by id.
    """

    view: "DraftView"
    metadata: Metadata[Any]
    keys: Mapping[str, Key]

    @classmethod
    def of(cls, view: "DraftView") -> "ToSign":
        """Read a draft.

        Raises:
            InvalidInput: its payload is not what its digest, role and version say.
        """
        try:
            metadata = Metadata[Any].from_bytes(base64.b64decode(view["payload"], validate=True))
            keys = {keyid: Key.from_dict(keyid, dict(said)) for keyid, said in view["public_keys"].items()}
            stated = (view["digest"], view["version"])
        except (binascii.Error, DeserializationError, KeyError, ValueError, TypeError, AttributeError) as bad:
            raise InvalidInput(f"a draft cannot be read ({bad!r:.200}); export it again") from None
        if stated != (sha256_digest(metadata.signed_bytes), metadata.signed.version):
            raise InvalidInput(
                f"the payload of {view['role']} {view['version']} is not what its digest says: changed on its way"
            )
        if not _is_of(view["role"], metadata.signed):
            raise InvalidInput(
                f"what is called {view['role']} {view['version']} speaks for another role; do not sign it"
            )
        return cls(view, metadata, keys)

    @property
    def name(self) -> str:
        """Role and version, and the release that it publishes."""
        release = f" ({self.view['role'].removeprefix('m.')}@{self.view['release']})" if self.view["release"] else ""
        return f"{self.view['role']} {self.view['version']}{release}"

    def sign(self, signer: Signer) -> Signature:
        """Return a signature, verified with the public half that the metadata name.

        Raises:
            InvalidInput: the key may not sign this, or is another than it seems.
        """
        signature = signer.sign(self.metadata.signed_bytes)
        self.verify(signature)
        return signature

    def verify(self, signature: Signature) -> None:
        """Return if a key that may sign has signed these bytes.

        Raises:
            InvalidInput: another key, or other bytes.
        """
        key = self.keys.get(signature.keyid)
        if key is None:
            raise InvalidInput(
                f"key {signature.keyid[:12]} may not sign {self.name}; those that may: {named(self.keys)}",
                code="signing.key",
            )
        try:
            key.verify_signature(signature, self.metadata.signed_bytes)
        except UnverifiedSignatureError:
            raise InvalidInput(
                f"the signature by key {signature.keyid[:12]} ({holder_of(key)}) is not over {self.name}",
                code="signing.signature",
            ) from None

    def described(self) -> list[str]:
        """Return what a person must know before signing, a line each."""
        signed = self.metadata.signed
        lines = [f"{self.name}: {self.view['reason']}; expires {signed.expires:%Y-%m-%d}"]
        if isinstance(signed, Root):
            for role, one in signed.roles.items():
                keys = {keyid: signed.keys[keyid] for keyid in one.keyids}
                lines.append(f"  {role}: {one.threshold} of {named(keys)}")
        if isinstance(signed, Targets):
            roles = {} if signed.delegations is None else signed.delegations.roles or {}
            for role_name, delegated in roles.items():
                keys = {keyid: signed.get_key(keyid) for keyid in delegated.keyids}
                lines.append(
                    f"  {role_name} for {', '.join(delegated.paths or [])}: {delegated.threshold} of {named(keys)}"
                )
            for path, file in sorted(signed.targets.items()):
                lines.append(f"  {path}: {file.length} bytes, sha256 {file.hashes.get('sha256', '-')}")
        return lines


@dataclass(frozen=True, slots=True)
class Bundle:
    """Drafts, and signatures by (digest, key id)."""

    drafts: tuple[ToSign, ...]
    signatures: Mapping[tuple[str, str], str]

    def with_signature(self, draft: ToSign, signature: Signature) -> "Bundle":
        """Return it with one signature more.

        Raises:
            Conflict: it has one by this key.
        """
        digest, keyid = draft.view["digest"], signature.keyid
        if (digest, keyid) in self.signatures or any(keyid in need["signed"] for need in draft.view["needs"]):
            raise Conflict(
                f"{draft.name} has a signature by key {keyid[:12]} already; another key must sign", code="signing.twice"
            )
        return Bundle(self.drafts, {**self.signatures, (digest, keyid): signature.signature})


def write_bundle(path: Path, drafts: Sequence["DraftView"], signatures: Mapping[tuple[str, str], str]) -> None:
    """Write a bundle in place of what was there.

    Raises:
        InvalidInput: the file cannot be written.
    """
    said = {
        "sprat-bundle": _FORMAT,
        "drafts": list(drafts),
        "signatures": [
            {"digest": digest, "keyid": keyid, "signature": signature}
            for (digest, keyid), signature in signatures.items()
        ],
    }
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None


def read_bundle(path: Path) -> Bundle:
    """Read a bundle; every signature in it was verified when this returns.

    Raises:
        InvalidInput: it is none, was changed on the way, or holds a signature that does not count.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InvalidInput(f"{path} has more than {_MAX_BYTES} bytes; it is no bundle")
        said: Any = json.loads(path.read_text(encoding="utf-8"))
        if said["sprat-bundle"] != _FORMAT:
            raise InvalidInput(f"{path} is a bundle of format {said['sprat-bundle']}; this sprat reads {_FORMAT}")
        drafts = tuple(ToSign.of(view) for view in said["drafts"])
        signatures = {(one["digest"], one["keyid"]): str(one["signature"]) for one in said["signatures"]}
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as bad:
        raise InvalidInput(f"{path} is not a bundle as `sprat keys export` writes it ({bad!r:.100})") from None
    by_digest = {draft.view["digest"]: draft for draft in drafts}
    for (digest, keyid), signature in signatures.items():
        if digest not in by_digest:
            raise InvalidInput(f"{path} holds a signature over {digest[:23]}, which is not in it")
        by_digest[digest].verify(Signature(keyid, signature))
    return Bundle(drafts, signatures)


def _is_of(role: str, signed: Any) -> bool:
    """Tell whether metadata are of the kind of a role: a signature would count for any role that the key signs."""
    if role == "root":
        return isinstance(signed, Root)
    if not isinstance(signed, Targets):
        return False
    if role == "targets":
        return not signed.targets
    return signed.delegations is None and all(path.startswith(f"{role.removeprefix('m.')}/") for path in signed.targets)
