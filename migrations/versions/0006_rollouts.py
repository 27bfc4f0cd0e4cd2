"""Rollouts: at most one at a time for a model, at most one open wave, exposure and return tied to assignments."""

import sqlalchemy as sa
from alembic import op

revision = "0006_rollouts"
down_revision = "0005_fleet"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "rollout",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("whole_fleet", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(ended_at IS NOT NULL) = (state IN ('halted', 'aborted', 'succeeded'))",
            name=op.f("ck_rollout_what_ended_has_an_end"),
        ),
        sa.CheckConstraint(
            "started_at IS NOT NULL OR state IN ('draft', 'aborted')", name=op.f("ck_rollout_what_runs_was_started")
        ),
        sa.CheckConstraint(
            "state IN ('draft', 'running', 'paused', 'halted', 'aborted', 'succeeded')",
            name=op.f("ck_rollout_state_is_known"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('halted', 'aborted') OR reason IS NOT NULL", name=op.f("ck_rollout_stopping_has_a_reason")
        ),
        sa.ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_rollout_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
    )
    op.create_index(
        "uq_rollout_one_at_a_time",
        "rollout",
        ["model_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('running', 'paused')"),
    )
    op.create_table(
        "rollout_wave",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("reach", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(ended_at IS NOT NULL) = (state IN ('succeeded', 'halted'))",
            name=op.f("ck_rollout_wave_what_ended_has_an_end"),
        ),
        sa.CheckConstraint(
            "(opened_at IS NULL) = (state = 'waiting')", name=op.f("ck_rollout_wave_waves_are_opened_before_they_end")
        ),
        sa.CheckConstraint("reach ~ '^[1-9][0-9]*%?$'", name=op.f("ck_rollout_wave_reach_is_count_or_percent")),
        sa.CheckConstraint(
            "state IN ('waiting', 'open', 'succeeded', 'halted')", name=op.f("ck_rollout_wave_state_is_known")
        ),
        sa.CheckConstraint("ordinal >= 1", name=op.f("ck_rollout_wave_ordinal_counts_from_one")),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_rollout_wave_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "ordinal", name=op.f("pk_rollout_wave")),
    )
    op.create_index(
        "uq_rollout_wave_one_open",
        "rollout_wave",
        ["rollout_id"],
        unique=True,
        postgresql_where=sa.text("state = 'open'"),
    )
    op.create_table(
        "rollout_device",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("previous", sa.BigInteger(), nullable=True),
        sa.Column("exposed_by", sa.BigInteger(), nullable=True),
        sa.Column("returned_by", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "state <> 'waiting' OR exposed_by IS NULL", name=op.f("ck_rollout_device_who_waits_is_not_exposed")
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'exposed', 'committed', 'failed', 'left')",
            name=op.f("ck_rollout_device_state_is_known"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('exposed', 'failed') OR exposed_by IS NOT NULL",
            name=op.f("ck_rollout_device_exposure_is_assigned"),
        ),
        sa.CheckConstraint(
            "exposed_by IS NULL OR ordinal IS NOT NULL", name=op.f("ck_rollout_device_exposure_needs_a_wave")
        ),
        sa.CheckConstraint("returned_by > exposed_by", name=op.f("ck_rollout_device_a_return_is_newer")),
        sa.CheckConstraint(
            "returned_by IS NULL OR exposed_by IS NOT NULL", name=op.f("ck_rollout_device_a_return_needs_an_exposure")
        ),
        sa.ForeignKeyConstraint(
            ["device_id", "exposed_by"], ["assignment.device_id", "assignment.counter"], name="exposure_exists"
        ),
        sa.ForeignKeyConstraint(
            ["device_id", "returned_by"], ["assignment.device_id", "assignment.counter"], name="return_exists"
        ),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_rollout_device_device_id")),
        sa.ForeignKeyConstraint(
            ["rollout_id", "ordinal"], ["rollout_wave.rollout_id", "rollout_wave.ordinal"], name="wave_exists"
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_rollout_device_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "device_id", name=op.f("pk_rollout_device")),
    )
    op.create_index("uq_rollout_device_exposure", "rollout_device", ["device_id", "exposed_by"], unique=True)
    op.create_index("uq_rollout_device_return", "rollout_device", ["device_id", "returned_by"], unique=True)


def downgrade() -> None:
    op.drop_table("rollout_device")
    op.drop_table("rollout_wave")
    op.drop_table("rollout")
