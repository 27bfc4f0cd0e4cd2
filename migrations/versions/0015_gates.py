"""Gates: what they heard, in commit order, and where they are; who decides in a rollout."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015_gates"
down_revision = "0014_prefetch"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("rollout", sa.Column("gates", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False))
    op.alter_column("rollout", "gates", server_default=None)
    op.add_column("rollout", sa.Column("rule", sa.Text(), nullable=True))
    op.create_check_constraint(op.f("ck_rollout_rule_is_known"), "rollout", "rule IN ('first_failure', 'evidence')")
    op.execute("UPDATE rollout SET rule = 'first_failure' WHERE started_at IS NOT NULL")
    op.create_table(
        "rollout_event",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("event", sa.JSON(), nullable=False),
        sa.Column("e_value", sa.Double(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("position >= 1", name=op.f("ck_rollout_event_position_counts_from_one")),
        sa.CheckConstraint("kind IN ('exposed', 'ended')", name=op.f("ck_rollout_event_kind_is_known")),
        sa.ForeignKeyConstraint(
            ["rollout_id", "device_id"],
            ["rollout_device.rollout_id", "rollout_device.device_id"],
            name="device_takes_part",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("rollout_id", "position", name=op.f("pk_rollout_event")),
    )
    op.create_index("uq_rollout_event_once", "rollout_event", ["rollout_id", "device_id", "kind"], unique=True)
    op.create_table(
        "rollout_gate",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_rollout_gate_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "scope", name=op.f("pk_rollout_gate")),
    )
    op.execute(
        "CREATE TRIGGER rollout_event_refuse_change BEFORE UPDATE ON rollout_event FOR EACH ROW "
        "EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("rollout_gate")
    op.drop_table("rollout_event")
    op.drop_column("rollout", "rule")
    op.drop_column("rollout", "gates")
