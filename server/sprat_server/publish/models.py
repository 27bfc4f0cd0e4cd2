"""Metadata files of the TUF repositories: signed ones, never changed (migrations 4 and 10), and drafts that wait."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, PrimaryKeyConstraint, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, in_project, within
from sprat_shared.ids import new_id


class SignedMetadata(ProjectOwned, Base):
    """One version of one role's metadata, as the very bytes that were signed."""

    __tablename__ = "signed_metadata"
    __table_args__ = (
        in_project(),
        PrimaryKeyConstraint("project_id", "repository", "role", "version"),
        CheckConstraint("repository IN ('image', 'director')", name="repository_is_known"),
        CheckConstraint("role ~ '^[a-z0-9.-]{1,80}$'", name="role_is_plain"),
        CheckConstraint("version >= 1", name="version_is_positive"),
        CheckConstraint("octet_length(body) > 0", name="body_is_not_empty"),
        CheckConstraint("expires_at > created_at", name="expires_after_it_was_made"),
    )

    repository: Mapped[str]
    role: Mapped[str]
    version: Mapped[int]
    body: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class DirectorMetadata(ProjectOwned, Base):
    """One version of one role of the director's metadata for one device; its root is a row of `signed_metadata`.

    The newest stays; older ones serve as dictionaries and are forgotten once the device has newer ones.
    """

    __tablename__ = "director_metadata"
    __table_args__ = (
        within("device"),
        CheckConstraint("role IN ('timestamp', 'snapshot', 'targets')", name="role_is_a_devices"),
        CheckConstraint("version >= 1", name="version_is_positive"),
        CheckConstraint("octet_length(body) > 0", name="body_is_not_empty"),
        CheckConstraint("expires_at > created_at", name="expires_after_it_was_made"),
    )

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[bytes]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class DraftMetadata(ProjectOwned, Base):
    """The next version of a role's metadata in the image repository, which waits for signatures.

    A role of a model has one draft for each pending release (`number`), and at most one without; of drafts of one role
    the first whose threshold is met is published, and the others are dropped.
    """

    __tablename__ = "draft_metadata"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "role", "number", postgresql_nulls_not_distinct=True),
        UniqueConstraint("project_id", "digest"),
        CheckConstraint("role ~ '^(root|targets|m[.][a-z0-9-]{1,63})$'", name="role_is_signed_by_people"),
        CheckConstraint("version >= 1", name="version_is_positive"),
        CheckConstraint("number IS NULL OR role LIKE 'm.%'", name="only_models_have_releases"),
        CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name="digest_is_sha256"),
        CheckConstraint("char_length(reason) BETWEEN 1 AND 400", name="reason_is_short"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    role: Mapped[str]
    version: Mapped[int]
    number: Mapped[int | None]  # of the release that it publishes
    body: Mapped[bytes]  # metadata without signatures
    digest: Mapped[str]  # of the bytes that are signed
    reason: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DraftSignature(ProjectOwned, Base):
    """One signature over a draft, verified before it was stored."""

    __tablename__ = "draft_signature"
    __table_args__ = (
        within("draft_metadata", "draft_id", ondelete="CASCADE"),
        CheckConstraint("char_length(keyid) BETWEEN 1 AND 128", name="keyid_is_short"),
        CheckConstraint("signature ~ '^[0-9a-f]+$'", name="signature_is_hex"),
    )

    draft_id: Mapped[UUID] = mapped_column(primary_key=True)
    keyid: Mapped[str] = mapped_column(primary_key=True)
    signature: Mapped[str]
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
