"""The tables of webhooks and of what they were sent."""

from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, in_project, within
from sprat_shared.ids import new_id

PENDING: Final = "pending"
DELIVERED: Final = "delivered"
FAILED: Final = "failed"


class Webhook(ProjectOwned, Base):
    """An address that is sent the events of a project. Its secret is kept in clear: each delivery is signed with it."""

    __tablename__ = "webhook"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "name"),
        CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name="name_is_plain"),
        CheckConstraint("char_length(url) <= 2000", name="url_is_short"),
        CheckConstraint("octet_length(secret) = 32", name="secret_is_256_bits"),
        CheckConstraint("(old_secret IS NULL) = (old_secret_until IS NULL)", name="old_secrets_end"),
        CheckConstraint("least(delivered, failed, given_up) >= 0", name="attempts_count"),
        CheckConstraint("(disabled_at IS NULL) = (disabled_because IS NULL)", name="disabled_has_a_reason"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    url: Mapped[str]
    kinds: Mapped[list[str]]  # of events; empty: all
    secret: Mapped[bytes]
    old_secret: Mapped[bytes | None]  # signs too, until
    old_secret_until: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]  # since when no delivery succeeded; NULL: the newest did
    disabled_at: Mapped[datetime | None]
    disabled_because: Mapped[str | None]
    delivered: Mapped[int] = mapped_column(server_default="0")  # attempts that ended so, since it was made
    failed: Mapped[int] = mapped_column(server_default="0")
    given_up: Mapped[int] = mapped_column(server_default="0")
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Delivery(ProjectOwned, Base):
    """One event for one webhook, and how often that was tried. A trigger makes it, with the event."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        within("webhook", ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["project_id", "event_seq"], ["event.project_id", "event.seq"], ondelete="CASCADE", name="event_exists"
        ),
        Index(None, "project_id", "event_seq"),
        Index("ix_webhook_delivery_pending", "next_at", postgresql_where="state = 'pending'"),
        CheckConstraint("state IN ('pending', 'delivered', 'failed')", name="state_is_known"),
        CheckConstraint("(next_at IS NOT NULL) = (state = 'pending')", name="what_is_pending_has_a_time"),
        CheckConstraint("attempts >= 0", name="attempts_count"),
    )

    webhook_id: Mapped[UUID] = mapped_column(primary_key=True)
    event_seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(server_default=PENDING)
    attempts: Mapped[int] = mapped_column(server_default="0")
    status: Mapped[int | None]  # of the newest answer; NULL: there was none
    error: Mapped[str | None]  # why the newest attempt failed
    tried_at: Mapped[datetime | None]
    next_at: Mapped[datetime | None] = mapped_column(server_default=func.now())  # of the next attempt
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
