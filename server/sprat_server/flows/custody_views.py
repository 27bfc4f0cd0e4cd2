"""Roles and drafts as they are shown: which key signs what, until when, and what is missing."""

from datetime import UTC, datetime

from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Root, Targets

from sprat_server.publish import drafts, repository, rotation
from sprat_server.publish.keys import SERVER, holder_of
from sprat_server.publish.lives import renewal
from sprat_server.publish.schemas import CustodyView, DraftView, KeyView, RoleView


def custody(session: Session) -> CustodyView:
    """Return every role, the drafts that wait, and the time. Only reads; there is none before the first start."""
    newest, waiting = repository.newest_metadata(session), drafts.all_drafts(session)
    if "root" not in newest:
        return CustodyView(now=datetime.now(UTC), roles=[], waiting=[])
    root = Metadata[Root].from_bytes(newest["root"].body).signed
    targets = Metadata[Targets].from_bytes(newest["targets"].body).signed
    roles = []
    for name in (*rotation.TOP_LEVEL, *sorted(rotation.delegated(targets))):
        delegator = root if name in rotation.TOP_LEVEL else targets
        trusted, published = drafts.role_in(delegator, name), newest.get(name)
        if trusted is None or published is None:
            continue
        keys = [delegator.get_key(keyid) for keyid in trusted.keyids]
        roles.append(
            RoleView(
                role=name,
                version=published.version,
                expires_at=published.expires_at,
                renew_at=renewal(published.created_at, published.expires_at),
                threshold=trusted.threshold,
                keys=[KeyView.of(key) for key in keys],
                online=sum(holder_of(key) == SERVER for key in keys) >= trusted.threshold,
                waiting=sum(draft.role == name for draft in waiting),
            )
        )
    return CustodyView(
        now=datetime.now(UTC),
        roles=roles,
        waiting=[DraftView.of(draft, drafts.needs(draft, root, targets, waiting)) for draft in waiting],
    )
