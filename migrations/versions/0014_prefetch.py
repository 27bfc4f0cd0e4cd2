"""Releases that are fetched ahead of their rollout: assignments and reports that say so, and who is ready."""

import sqlalchemy as sa
from alembic import op

revision = "0014_prefetch"
down_revision = "0013_policies"

_REASON = "ck_assignment_reason_is_known"
_OUTCOME = "ck_report_outcome_is_known"
_RETURN = "ck_rollout_device_a_return_needs_an_exposure"
_PARTS = "rollout_device"


def _check(name: str, table: str, condition: str) -> None:
    """Replace a constraint."""
    op.drop_constraint(op.f(name), table)
    op.create_check_constraint(op.f(name), table, condition)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    _check(_REASON, "assignment", "reason IN ('rollout', 'return', 'enrolment', 'prefetch')")
    _check(_OUTCOME, "report", "outcome IN ('committed', 'refused', 'rolled_back', 'failed', 'returned', 'ready')")
    op.add_column(_PARTS, sa.Column("prefetch", sa.Text(), nullable=True))
    op.add_column(_PARTS, sa.Column("prefetched_by", sa.BigInteger(), nullable=True))
    op.create_foreign_key(
        "prefetch_exists", _PARTS, "assignment", ["device_id", "prefetched_by"], ["device_id", "counter"]
    )
    op.create_index("uq_rollout_device_prefetch", _PARTS, ["device_id", "prefetched_by"], unique=True)
    for name, condition in (
        ("prefetch_is_known", "prefetch IN ('asked', 'ready', 'failed')"),
        ("prefetch_is_assigned", "(prefetch IS NULL) = (prefetched_by IS NULL)"),
        ("an_exposure_is_newer", "exposed_by > prefetched_by"),
        ("a_return_is_newer_than_a_prefetch", "returned_by > prefetched_by"),
    ):
        op.create_check_constraint(op.f(f"ck_rollout_device_{name}"), _PARTS, condition)
    _check(_RETURN, _PARTS, "returned_by IS NULL OR num_nonnulls(exposed_by, prefetched_by) > 0")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    _check(_RETURN, _PARTS, "returned_by IS NULL OR exposed_by IS NOT NULL")
    op.drop_column(_PARTS, "prefetch")
    op.drop_column(_PARTS, "prefetched_by")
    _check(_OUTCOME, "report", "outcome IN ('committed', 'refused', 'rolled_back', 'failed', 'returned')")
    _check(_REASON, "assignment", "reason IN ('rollout', 'return', 'enrolment')")
