"""The tables of operator tokens, of the audit log, and of answers that are given again."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    FetchedValue,
    ForeignKey,
    Index,
    PrimaryKeyConstraint,
    Text,
    func,
    literal_column,
)
from sqlalchemy.orm import Mapped, column_property, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, in_project
from sprat_shared.ids import new_id


class OperatorToken(ProjectOwned, Base):
    """What an operator shows, for one project or the whole server.

    Only the SHA-256 of its secret is kept; a revoked token stays for the record.
    """

    __tablename__ = "operator_token"
    __table_args__ = (
        in_project(),
        CheckConstraint("scope IN ('viewer', 'operator', 'releaser', 'admin')", name="scope_is_known"),
        CheckConstraint("octet_length(secret_sha256) = 32", name="secret_is_a_sha256"),
        CheckConstraint("expires_at IS NULL OR expires_at > created_at", name="tokens_expire_after_they_begin"),
        Index(
            "uq_operator_token_live_name",
            "project_id",
            "name",
            unique=True,
            postgresql_where="revoked_at IS NULL",
            postgresql_nulls_not_distinct=True,
        ),
        Index("ix_operator_token_project_id_id", "project_id", "id"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    project_id: Mapped[UUID | None] = mapped_column(  # type: ignore[assignment] # of the mixin: never NULL
        nullable=True
    )  # NULL: of the whole server
    name: Mapped[str]
    scope: Mapped[str]
    secret_sha256: Mapped[bytes]
    created_by: Mapped[UUID | None] = mapped_column(ForeignKey("operator_token.id"))  # None: made by the server
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to the minute


class AuditRecord(ProjectOwned, Base):
    """One line of the audit log of a project, or (the project `SERVER`) of what was done to the server itself.

    `seq`, `at`, `previous` and `digest` are set by a trigger of the database; others refuse every UPDATE, DELETE and
    TRUNCATE (migration 0001).
    """

    __tablename__ = "audit"
    __table_args__ = (
        PrimaryKeyConstraint("project_id", "seq"),
        CheckConstraint("octet_length(previous) = 32 AND octet_length(digest) = 32", name="links_are_sha256"),
    )

    seq: Mapped[int] = mapped_column(server_default=FetchedValue())
    at: Mapped[datetime] = mapped_column(server_default=FetchedValue())
    actor: Mapped[str]  # kind:name, as str(Actor)
    actor_id: Mapped[str]
    action: Mapped[str]  # thing.verb, e.g. rollout.start
    subject: Mapped[str]  # what it was done to, e.g. rollout:<id>
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    request_id: Mapped[str | None]
    address: Mapped[str | None]  # from where; None: this server itself
    previous: Mapped[bytes] = mapped_column(server_default=FetchedValue())
    digest: Mapped[bytes] = mapped_column(server_default=FetchedValue())  # sha256(previous + sealed)

    sealed: Mapped[str] = column_property(literal_column("audit_text(audit)", Text), deferred=True)
    """The record as the one text that its digest covers (function of migration 0012)."""


class KeptAnswer(ProjectOwned, Base):
    """What came of a call under an `Idempotency-Key`, for whoever sends it again within a day."""

    __tablename__ = "kept_answer"
    __table_args__ = (
        in_project(),
        PrimaryKeyConstraint("project_id", "key_sha256"),
        CheckConstraint(
            "octet_length(key_sha256) = 32 AND octet_length(request_sha256) = 32", name="digests_are_sha256"
        ),
        Index("ix_kept_answer_at", "at"),
    )

    key_sha256: Mapped[bytes]  # of project, caller and key
    request_sha256: Mapped[bytes]  # of method, URL and body
    answer: Mapped[bytes]  # encrypted: a key derived from the caller's opens it
    at: Mapped[datetime] = mapped_column(server_default=func.now())
