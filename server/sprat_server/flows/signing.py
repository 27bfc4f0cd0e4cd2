"""Signatures of people: what waits for them, what they are given to sign, and what happens when enough have signed."""

from collections.abc import Sequence

from securesystemslib.signer import Signature
from sqlalchemy.orm import Session

from sprat_server.flows import direct, live
from sprat_server.observe.actors import Actor
from sprat_server.publish import drafts
from sprat_server.publish.drafts import Draft
from sprat_server.publish.image import open_repository
from sprat_server.publish.rotation import MODEL_PREFIX, NewKeys
from sprat_server.registry import service as registry
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict
from sprat_shared.trust.targets import role_of_model, update_path


def draft_release(session: Session, settings: Settings, name: str, number: int, by: Actor) -> Draft | None:
    """Return what must be signed so that devices can have a release; None where it was published just now.

    A pending release, or one that was pruned from the signed metadata. The draft stays the same until it is published
    or another version of the role is, so that several people sign the same bytes.

    Raises:
        NotFound: there is no such model or release.
        Conflict: signed metadata name it already, or its model's role has no keys yet.
    """
    model = registry.get_model(session, name)
    registry.get_release(session, model, number)
    image = open_repository(session, settings)
    path = update_path(name, number, None)
    if path in live.signed_paths(session, model):
        raise Conflict(f"{name}@{number} is signed already; there is nothing to do", code="signing.done")
    draft = drafts.of_role(session, role_of_model(name), number)
    if draft is not None:
        return draft
    draft = live.sign(session, image, model, reason=f"release {number}", release=number, by=str(by))
    if path in live.signed_paths(session, model):
        direct.enqueue(session, model)
        return None
    if draft is None:
        raise Conflict(
            f"nobody can sign {name}@{number}: the role {role_of_model(name)} has no keys yet; give it some with: "
            f"sprat keys rotate {role_of_model(name)} --key FILE",
            code="signing.no-keys",
        )
    return draft


def rotate(session: Session, settings: Settings, wanted: Sequence[NewKeys], by: Actor) -> list[str]:
    """Give roles other keys; return the roles of which new versions were published at once.

    Raises:
        InvalidInput: a role does not exist, or keys and threshold make no sense for it.
    """
    return _published(session, open_repository(session, settings).rotate(wanted, by=str(by)))


def add_signature(session: Session, settings: Settings, digest: str, signature: Signature, by: Actor) -> list[str]:
    """Add one signature to a draft; return the roles of which new versions were published with it.

    Raises:
        Conflict: the draft is not there any more, or has a signature by this key.
        InvalidInput: the key may not sign it, or the signature is not over its bytes.
    """
    return _published(session, open_repository(session, settings).sign(digest, signature, by=str(by)))


def _published(session: Session, roles: list[str]) -> list[str]:
    for role in roles:
        if role.startswith(MODEL_PREFIX):
            direct.enqueue(session, registry.get_model(session, role.removeprefix(MODEL_PREFIX)))
    return roles
