"""The signed metadata files of the TUF repositories. Rows never change, versions only rise (migrations 0004, 0010)."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, func
from sqlalchemy.orm import Mapped, mapped_column

from sprat_server.db.base import Base


class SignedMetadata(Base):
    """One version of one role's metadata, as the very bytes that were signed."""

    __tablename__ = "signed_metadata"
    __table_args__ = (
        CheckConstraint("repository IN ('image', 'director')", name="repository_is_known"),
        CheckConstraint("role ~ '^[a-z0-9.-]{1,80}$'", name="role_is_plain"),
        CheckConstraint("version >= 1", name="version_is_positive"),
        CheckConstraint("octet_length(body) > 0", name="body_is_not_empty"),
        CheckConstraint("expires_at > created_at", name="expires_after_it_was_made"),
    )

    repository: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class DirectorMetadata(Base):
    """One version of one role of the director's metadata for one device; its root is a row of `signed_metadata`.

    The newest stays; older ones serve as dictionaries and are forgotten once the device has newer ones.
    """

    __tablename__ = "director_metadata"
    __table_args__ = (
        CheckConstraint("role IN ('timestamp', 'snapshot', 'targets')", name="role_is_a_devices"),
        CheckConstraint("version >= 1", name="version_is_positive"),
        CheckConstraint("octet_length(body) > 0", name="body_is_not_empty"),
        CheckConstraint("expires_at > created_at", name="expires_after_it_was_made"),
    )

    device_id: Mapped[UUID] = mapped_column(ForeignKey("device.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[bytes]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
