"""Answers that are given again to whoever sends a call again under its Idempotency-Key."""

import sqlalchemy as sa
from alembic import op

revision = "0023_kept_answers"
down_revision = "0022_counted_deliveries"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "kept_answer",
        sa.Column("key_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint(
            "octet_length(key_sha256) = 32 AND octet_length(request_sha256) = 32",
            name=op.f("ck_kept_answer_digests_are_sha256"),
        ),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_kept_answer_project_id")),
        sa.PrimaryKeyConstraint("project_id", "key_sha256", name=op.f("pk_kept_answer")),
    )
    op.create_index("ix_kept_answer_at", "kept_answer", ["at"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("kept_answer")
