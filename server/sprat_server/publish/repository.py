"""Reading the signed metadata of the TUF repositories; `publish.image` writes those of the image repository."""

from collections.abc import Iterable

from sqlalchemy import Text, func, select, tuple_
from sqlalchemy.orm import Session

from sprat_server.publish.keys import KeysUnusable
from sprat_server.publish.models import SignedMetadata
from sprat_shared.trust.targets import IMAGE_REPOSITORY


def newest(session: Session, role: str) -> SignedMetadata | None:
    """Return the newest metadata of a role."""
    return session.scalar(
        select(SignedMetadata)
        .where(SignedMetadata.repository == IMAGE_REPOSITORY, SignedMetadata.role == role)
        .order_by(SignedMetadata.version.desc())
        .limit(1)
    )


def newest_versions(session: Session) -> dict[str, int]:
    """Return the newest version of each role."""
    rows = session.execute(
        select(SignedMetadata.role, func.max(SignedMetadata.version))
        .where(SignedMetadata.repository == IMAGE_REPOSITORY)
        .group_by(SignedMetadata.role)
    )
    return dict(rows.all())


def newest_metadata(session: Session) -> dict[str, SignedMetadata]:
    """Return the newest metadata of each role."""
    versions = newest_versions(session)
    rows = session.scalars(
        select(SignedMetadata).where(
            SignedMetadata.repository == IMAGE_REPOSITORY,
            tuple_(SignedMetadata.role, SignedMetadata.version).in_(versions.items()),
        )
    )
    return {row.role: row for row in rows}


def read_metadata(session: Session, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """Return the signed bytes of (role, version) pairs; those that do not exist are left out."""
    pairs = list(wanted)
    if not pairs:
        return {}
    rows = session.execute(
        select(SignedMetadata.role, SignedMetadata.version, SignedMetadata.body).where(
            SignedMetadata.repository == IMAGE_REPOSITORY,
            tuple_(SignedMetadata.role, SignedMetadata.version).in_(pairs),
        )
    )
    return {(role, version): body for role, version, body in rows}


def was_named(session: Session, keyid: str) -> bool:
    """Tell whether any version of root or targets names a key."""
    named = select(SignedMetadata.version).where(
        SignedMetadata.repository == IMAGE_REPOSITORY,
        SignedMetadata.role.in_(("root", "targets")),
        func.convert_from(SignedMetadata.body, "UTF8", type_=Text).contains(keyid),
    )
    return session.scalar(named.limit(1)) is not None


def root_bytes(session: Session) -> bytes:
    """Return the signed bytes of the newest root, the start of a device's trust.

    Raises:
        KeysUnusable: there is no repository yet.
    """
    row = newest(session, "root")
    if row is None:
        raise KeysUnusable("the image repository was not made yet; start the server once")
    return row.body
