"""Targeting: labels of devices, and saved groups with their members."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016_targeting"
down_revision = "0015_gates"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("device", sa.Column("labels", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False))
    op.alter_column("device", "labels", server_default=None)
    op.create_check_constraint(op.f("ck_device_labels_are_an_object"), "device", "jsonb_typeof(labels) = 'object'")
    op.create_table(
        "saved_group",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("expression", sa.Text(), nullable=False),
        sa.Column("moves", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("edited_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name=op.f("ck_saved_group_name_is_plain")),
        sa.CheckConstraint(
            "char_length(expression) BETWEEN 1 AND 2000", name=op.f("ck_saved_group_expression_is_short")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_group")),
        sa.UniqueConstraint("name", name=op.f("uq_saved_group_name")),
    )
    op.create_table(
        "saved_group_member",
        sa.Column("group_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_saved_group_member_device_id")),
        sa.ForeignKeyConstraint(
            ["group_id"], ["saved_group.id"], name=op.f("fk_saved_group_member_group_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "device_id", name=op.f("pk_saved_group_member")),
    )
    op.create_index(op.f("ix_saved_group_member_device_id"), "saved_group_member", ["device_id"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("saved_group_member")
    op.drop_table("saved_group")
    op.drop_column("device", "labels")
