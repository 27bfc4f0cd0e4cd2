"""Expand: jobs remember the span of the request that asked for them."""

import sqlalchemy as sa
from alembic import op

revision = "0021_traced_jobs"
down_revision = "0020_events"

_SHAPE = "traceparent ~ '^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("SET LOCAL statement_timeout = '5s'")
    op.add_column("job", sa.Column("traceparent", sa.Text(), nullable=True))
    op.create_check_constraint(op.f("ck_job_traceparent_is_of_the_first_version"), "job", _SHAPE)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_constraint(op.f("ck_job_traceparent_is_of_the_first_version"), "job")
    op.drop_column("job", "traceparent")
