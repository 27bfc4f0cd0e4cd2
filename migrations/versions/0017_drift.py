"""Drift: what devices said last of how models do there, what is watched, and what was done about it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017_drift"
down_revision = "0016_targeting"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "device_drift",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("release", sa.BigInteger(), nullable=True),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("correct", sa.BigInteger(), nullable=False),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("input_drift", sa.Double(), nullable=True),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "samples >= 0 AND correct BETWEEN 0 AND samples", name=op.f("ck_device_drift_counts_make_sense")
        ),
        sa.CheckConstraint("input_drift BETWEEN 0 AND 1", name=op.f("ck_device_drift_drift_is_a_share")),
        sa.CheckConstraint(
            "(said_at IS NULL) = (release IS NULL)", name=op.f("ck_device_drift_samples_are_of_a_release")
        ),
        sa.CheckConstraint(
            "(moved_at IS NULL) = (input_drift IS NULL)", name=op.f("ck_device_drift_a_move_has_a_time")
        ),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_drift_device_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_device_drift_model_id")),
        sa.PrimaryKeyConstraint("device_id", "model_id", name=op.f("pk_device_drift")),
    )
    op.create_table(
        "drift_policy",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("policy", postgresql.JSONB(), nullable=False),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(stopped_at IS NULL) = (stop_reason IS NULL)", name=op.f("ck_drift_policy_stopping_has_a_reason")
        ),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_drift_policy_model_id")),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_drift_policy")),
    )
    op.create_table(
        "drift_event",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("finding", postgresql.JSONB(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("release", sa.BigInteger(), nullable=True),
        sa.Column("rollout_id", sa.Uuid(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.CheckConstraint("action IN ('notify', 'retrain')", name=op.f("ck_drift_event_action_is_known")),
        sa.CheckConstraint(
            "(action = 'retrain') = (job_id IS NOT NULL)", name=op.f("ck_drift_event_a_retrain_has_a_job")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_drift_event_job_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_drift_event_model_id")),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"], name=op.f("fk_drift_event_rollout_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_drift_event")),
    )
    op.create_index(op.f("ix_drift_event_model_id_at"), "drift_event", ["model_id", "at"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("drift_event")
    op.drop_table("drift_policy")
    op.drop_table("device_drift")
