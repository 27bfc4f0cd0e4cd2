"""Expand: since when a rollout's gate has neither opened nor halted with nobody left to hear."""

import sqlalchemy as sa
from alembic import op

revision = "0025_held_rollouts"
down_revision = "0024_shared_releases"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("SET LOCAL statement_timeout = '5s'")
    op.add_column("rollout", sa.Column("held_since", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f("ck_rollout_only_what_runs_is_held"), "rollout", "held_since IS NULL OR state = 'running'"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_constraint(op.f("ck_rollout_only_what_runs_is_held"), "rollout")
    op.drop_column("rollout", "held_since")
