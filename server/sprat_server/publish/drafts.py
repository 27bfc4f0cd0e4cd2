"""Drafts of metadata: kept until enough of the keys that devices trust, or will trust, have signed them.

`ready` decides, without a database, which drafts are published together: the state after it must be one that a device
can walk to. A root that names other targets keys goes with targets that those keys signed, and never before them; a
delegation to other keys goes with metadata of the model that those keys signed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from securesystemslib.signer import Key, Signature
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Role, Root, Targets
from tuf.api.serialization.json import JSONSerializer

from sprat_server.publish.models import DraftMetadata, DraftSignature
from sprat_shared.errors import Conflict
from sprat_shared.ids import sha256_digest

Delegator = Root | Targets


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft with the signatures that it has."""

    row: DraftMetadata
    metadata: Metadata[Any]

    @property
    def role(self) -> str:
        """Its role."""
        return self.row.role


@dataclass(frozen=True, slots=True)
class Need:
    """What a draft must have: `threshold` signatures by `keys`, as metadata `by` say; `signed` are there."""

    by: str
    threshold: int
    keys: Mapping[str, Key]
    signed: frozenset[str]

    @property
    def missing(self) -> int:
        """How many more signatures are needed."""
        return max(0, self.threshold - len(self.signed))


def all_drafts(session: Session) -> list[Draft]:
    """Return every draft, the newest first."""
    rows = session.scalars(select(DraftMetadata).order_by(DraftMetadata.id.desc())).all()
    found = [Draft(row, Metadata[Any].from_bytes(row.body)) for row in rows]
    by_id = {draft.row.id: draft for draft in found}
    for one in session.scalars(select(DraftSignature).order_by(DraftSignature.created_at, DraftSignature.keyid)):
        by_id[one.draft_id].metadata.signatures[one.keyid] = Signature(one.keyid, one.signature)
    return found


def find(session: Session, digest: str) -> Draft:
    """Return the draft whose signed bytes have this digest.

    Raises:
        Conflict: there is none (any more).
    """
    found = [draft for draft in all_drafts(session) if draft.row.digest == digest]
    if not found:
        raise Conflict(
            f"nothing with the digest {digest[:23]} waits for signatures: it was published, withdrawn or replaced by "
            "something newer; export it again",
            code="signing.stale",
        )
    return found[0]


def of_role(session: Session, role: str, number: int | None = None) -> Draft | None:
    """Return the draft of a role, of one release where `number` is given."""
    for draft in all_drafts(session):
        if (draft.role, draft.row.number) == (role, number):
            return draft
    return None


def store(session: Session, role: str, signed: Any, *, number: int | None, reason: str, by: str) -> Draft:
    """Keep a draft in place of the one there was; the very same bytes are one draft, with the signatures it has.

    Expiries are whole days, so a draft for a release and one for what devices need may say the same.
    """
    metadata: Metadata[Any] = Metadata(signed)
    digest = sha256_digest(metadata.signed_bytes)
    replaced = delete(DraftMetadata).where(
        DraftMetadata.role == role, DraftMetadata.number.is_not_distinct_from(number), DraftMetadata.digest != digest
    )
    session.execute(replaced)
    same = next((draft for draft in all_drafts(session) if draft.row.digest == digest), None)
    if same is not None:
        if number is not None and same.row.number is None:
            same.row.number, same.row.reason, same.row.created_by = number, reason[:400], by
            session.flush()
        return same
    row = DraftMetadata(
        role=role,
        version=signed.version,
        number=number,
        body=metadata.to_bytes(JSONSerializer(compact=True)),
        digest=digest,
        reason=reason[:400],
        created_by=by,
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return Draft(row, metadata)


def add_signature(session: Session, draft: Draft, signature: Signature, by: str) -> None:
    """Keep a signature that the caller has verified."""
    session.add(
        DraftSignature(draft_id=draft.row.id, keyid=signature.keyid, signature=signature.signature, created_by=by)
    )
    session.flush()
    draft.metadata.signatures[signature.keyid] = signature


def drop_role(session: Session, role: str) -> None:
    """Drop all drafts of a role: another version of it was published."""
    session.execute(delete(DraftMetadata).where(DraftMetadata.role == role))


def drop(session: Session, draft: Draft) -> None:
    """Drop one draft."""
    session.execute(delete(DraftMetadata).where(DraftMetadata.id == draft.row.id))


def need(by: str, delegator: Delegator, role: str, metadata: Metadata[Any]) -> Need:
    """Return what `delegator` asks of the metadata of `role`."""
    result = delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
    return Need(by, result.threshold, {**result.signed, **result.unsigned}, frozenset(result.signed))


def needs(draft: Draft, root: Root, targets: Targets, drafts: Sequence[Draft]) -> list[Need]:
    """Return what a draft must have before it is published; nothing where no keys were given to its role yet.

    Args:
        draft: the draft.
        root: the published root,
        targets: and targets.
        drafts: all drafts: a role that is about to get other keys is signed by those.
    """
    if draft.role == "root":
        after = cast("Root", draft.metadata.signed)
        present, own = f"root {root.version}", f"root {after.version}"
        return [need(present, root, "root", draft.metadata), need(own, after, "root", draft.metadata)]
    parent: Delegator = root if draft.role == "targets" else targets
    next_parent = next((one.metadata.signed for one in drafts if one.role == parent.type), None)
    if next_parent is not None and _bound(draft, parent, next_parent):
        parent = next_parent
    if role_in(parent, draft.role) is None:
        return []
    return [need(f"{parent.type} {parent.version}", parent, draft.role, draft.metadata)]


def ready(
    root: Root, targets: Metadata[Targets], newest: Callable[[str], Metadata[Any] | None], drafts: Sequence[Draft]
) -> list[Draft]:
    """Return the drafts that can be published together now, in the order root, targets, models.

    Args:
        root: the published root,
        targets: and targets.
        newest: the published metadata of a model's role.
        drafts: all drafts, the newest first.
    """
    next_root = _only(drafts, "root")
    next_targets = _only(drafts, "targets")
    if next_root is not None:
        signed = next_root.metadata.signed
        payload, signatures = next_root.metadata.signed_bytes, next_root.metadata.signatures
        if not signed.get_root_verification_result(root, payload, signatures):
            next_root = None
    for new_root in (None,) if next_root is None else (next_root, None):
        root_after = root if new_root is None else new_root.metadata.signed
        for new_targets in (None,) if next_targets is None else (next_targets, None):
            if new_targets is not None and new_root is None and _waits(drafts, "root", root, new_targets):
                continue
            after = targets if new_targets is None else new_targets.metadata
            if not verified(root_after, "targets", after):
                continue
            models = _models(targets.signed, after.signed, newest, drafts)
            if models is not None:
                return [*(one for one in (new_root, new_targets) if one is not None), *models]
    return []


def verified(delegator: Delegator, role: str, metadata: Metadata[Any]) -> bool:
    """Tell whether `delegator` trusts these metadata as those of `role`."""
    if role_in(delegator, role) is None:
        return False
    return bool(delegator.get_verification_result(role, metadata.signed_bytes, metadata.signatures))


def role_in(delegator: Delegator, role: str) -> Role | None:
    """Return keys and threshold of a role; None where it is not delegated."""
    if isinstance(delegator, Root):
        return delegator.roles.get(role)
    delegations = delegator.delegations
    return None if delegations is None or delegations.roles is None else delegations.roles.get(role)


def changes(before: Delegator, after: Delegator, role: str) -> bool:
    """Tell whether a role has other keys or another threshold afterwards."""
    old, new = role_in(before, role), role_in(after, role)
    return new is not None and (old is None or (old.threshold, set(old.keyids)) != (new.threshold, set(new.keyids)))


def _bound(draft: Draft, before: Delegator, after: Delegator) -> bool:
    """Tell whether a draft is for the keys that its role is about to get; a release may still go out with the old."""
    if role_in(before, draft.role) is None:
        return True
    return draft.row.number is None and changes(before, after, draft.role)


def _waits(drafts: Sequence[Draft], parent: str, before: Delegator, draft: Draft) -> bool:
    above = _only(drafts, parent)
    return above is not None and _bound(draft, before, above.metadata.signed)


def _only(drafts: Sequence[Draft], role: str) -> Draft | None:
    return next((draft for draft in drafts if draft.role == role), None)


def _models(
    before: Targets, after: Targets, newest: Callable[[str], Metadata[Any] | None], drafts: Sequence[Draft]
) -> list[Draft] | None:
    """Return the drafts of models to publish under `after`; None where a model would be left that nobody can verify."""
    chosen = []
    waiting = dict.fromkeys(draft.role for draft in drafts if draft.role.startswith("m."))
    roles = after.delegations.roles if after.delegations is not None and after.delegations.roles is not None else {}
    for role in dict.fromkeys([*waiting, *(role for role in roles if changes(before, after, role))]):
        candidates = [
            draft
            for draft in drafts
            if draft.role == role
            and verified(after, role, draft.metadata)
            and not (after is before and _waits(drafts, "targets", before, draft))
        ]
        published = newest(role)
        if candidates:
            chosen.append(candidates[0])
        elif published is not None and changes(before, after, role) and not verified(after, role, published):
            return None
    return chosen
