"""Moves of rollouts: approvals, starts at a time, retries, controls, what was acknowledged, superseded or undone."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018_rollout_moves"
down_revision = "0017_drift"

_ROLLOUT, _WAVE, _PART, _EVENT = "rollout", "rollout_wave", "rollout_device", "rollout_event"
_KNOWN_STATES = "state IN ('draft', 'running', 'paused', 'halted', 'aborted', 'superseded', 'succeeded', 'undone')"
_KNOWN_PARTS = "state IN ('waiting', 'exposed', 'committed', 'failed', 'excused', 'left', 'control')"
_KNOWN_FAILURES = "failure IN ('link', 'disk', 'busy', 'refused', 'rolled_back', 'silence', 'other')"


def _check(name: str, table: str, condition: str) -> None:
    """Replace a constraint."""
    op.drop_constraint(op.f(f"ck_{table}_{name}"), table)
    op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    for column in (
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("start_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("creator_id", sa.Text(), nullable=True),
        sa.Column("plan", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
    ):
        op.add_column(_ROLLOUT, column)
    op.alter_column(_ROLLOUT, "plan", server_default=None)
    op.create_index(op.f("ix_rollout_digest"), _ROLLOUT, ["digest"])
    op.create_index("uq_rollout_name", _ROLLOUT, ["name"], unique=True, postgresql_where=sa.text("state <> 'aborted'"))
    op.create_check_constraint(op.f("ck_rollout_name_is_plain"), _ROLLOUT, "name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'")
    _check("state_is_known", _ROLLOUT, _KNOWN_STATES)
    _check("what_ended_has_an_end", _ROLLOUT, "(ended_at IS NULL) = (state IN ('draft', 'running', 'paused'))")
    _check(
        "stopping_has_a_reason",
        _ROLLOUT,
        "state NOT IN ('halted', 'aborted', 'superseded', 'undone') OR reason IS NOT NULL",
    )
    op.drop_constraint(op.f("ck_rollout_wave_reach_is_count_or_percent"), _WAVE)
    op.create_check_constraint(
        op.f("ck_rollout_wave_reach_is_amount_or_filter"), _WAVE, "reach ~ '^([1-9][0-9]*%?|where:.+|[^=]+=.+)$'"
    )
    op.add_column(_PART, sa.Column("failure", sa.Text(), nullable=True))
    op.add_column(_PART, sa.Column("retries", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.alter_column(_PART, "retries", server_default=None)
    op.add_column(_PART, sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_rollout_device_retry_at", _PART, ["retry_at"], postgresql_where=sa.text("retry_at IS NOT NULL"))
    _check("state_is_known", _PART, _KNOWN_PARTS)
    _check("exposure_is_assigned", _PART, "state NOT IN ('exposed', 'failed', 'excused') OR exposed_by IS NOT NULL")
    for name, condition in (
        ("controls_are_not_reached", "state <> 'control' OR num_nonnulls(ordinal, exposed_by) = 0"),
        ("failure_is_known", _KNOWN_FAILURES),
        ("retries_count", "retries >= 0"),
        ("who_ended_is_not_asked_again", "retry_at IS NULL OR state = 'exposed'"),
    ):
        op.create_check_constraint(op.f(f"ck_rollout_device_{name}"), _PART, condition)
    op.alter_column(_EVENT, "device_id", nullable=True)
    _check("kind_is_known", _EVENT, "kind IN ('exposed', 'ended', 'acknowledged')")
    op.create_check_constraint(
        op.f("ck_rollout_event_devices_are_exposed_and_end"), _EVENT, "(device_id IS NULL) = (kind = 'acknowledged')"
    )
    op.create_table(
        "rollout_approval",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("actor_id", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_rollout_approval_rollout_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout_id", "actor_id", name=op.f("pk_rollout_approval")),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("rollout_approval")
    op.execute("DELETE FROM rollout_event WHERE kind = 'acknowledged'")
    op.drop_constraint(op.f("ck_rollout_event_devices_are_exposed_and_end"), _EVENT)
    _check("kind_is_known", _EVENT, "kind IN ('exposed', 'ended')")
    op.alter_column(_EVENT, "device_id", nullable=False)
    op.execute("UPDATE rollout_device SET state = 'failed' WHERE state = 'excused'")
    op.execute("UPDATE rollout_device SET state = 'waiting' WHERE state = 'control'")
    op.drop_column(_PART, "retry_at")
    op.drop_column(_PART, "retries")
    op.drop_column(_PART, "failure")
    op.drop_constraint(op.f("ck_rollout_device_controls_are_not_reached"), _PART)
    _check("exposure_is_assigned", _PART, "state NOT IN ('exposed', 'failed') OR exposed_by IS NOT NULL")
    _check("state_is_known", _PART, "state IN ('waiting', 'exposed', 'committed', 'failed', 'left')")
    op.drop_constraint(op.f("ck_rollout_wave_reach_is_amount_or_filter"), _WAVE)
    op.execute("UPDATE rollout_wave SET reach = '100%' WHERE reach LIKE '%=%' OR reach LIKE 'where:%'")
    op.create_check_constraint(op.f("ck_rollout_wave_reach_is_count_or_percent"), _WAVE, "reach ~ '^[1-9][0-9]*%?$'")
    op.execute("UPDATE rollout SET state = 'aborted' WHERE state IN ('superseded', 'undone')")
    _check("stopping_has_a_reason", _ROLLOUT, "state NOT IN ('halted', 'aborted') OR reason IS NOT NULL")
    _check(
        "what_ended_has_an_end",
        _ROLLOUT,
        "(ended_at IS NOT NULL) = (state IN ('halted', 'aborted', 'succeeded'))",
    )
    _check("state_is_known", _ROLLOUT, "state IN ('draft', 'running', 'paused', 'halted', 'aborted', 'succeeded')")
    for column in ("plan", "creator_id", "start_at", "digest", "name"):
        op.drop_column(_ROLLOUT, column)
