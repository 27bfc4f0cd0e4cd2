"""Expand: assignments say that a device went down a level of what it shares, by its own report."""

from alembic import op

revision = "0026_steps_down"
down_revision = "0025_held_rollouts"

_REASON = "ck_assignment_reason_is_known"
_KNOWN = "reason IN ('rollout', 'return', 'enrolment', 'prefetch'{more})"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("SET LOCAL statement_timeout = '5s'")
    op.drop_constraint(op.f(_REASON), "assignment")
    op.create_check_constraint(op.f(_REASON), "assignment", _KNOWN.format(more=", 'step-down'"))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_constraint(op.f(_REASON), "assignment")
    op.create_check_constraint(op.f(_REASON), "assignment", _KNOWN.format(more=""))
