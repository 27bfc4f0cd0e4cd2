"""Jobs, and the queue of procrastinate 3.10 below them."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002_jobs"
down_revision = "0001_access"

# procrastinate's own schema as of that version: a later one that needs more comes with a migration of ours.
_QUEUE_SCHEMA = Path(__file__).parent.parent / "sql" / "procrastinate-3.10.0.sql"

_DROP_QUEUE = """
DO $$
DECLARE
  item record;
BEGIN
  DROP TABLE procrastinate_events, procrastinate_periodic_defers, procrastinate_jobs, procrastinate_workers CASCADE;
  FOR item IN SELECT oid::regprocedure AS name FROM pg_proc
    WHERE proname LIKE 'procrastinate\\_%' AND pronamespace = current_schema()::regnamespace
  LOOP
    EXECUTE 'DROP FUNCTION ' || item.name || ' CASCADE';
  END LOOP;
  DROP TYPE procrastinate_job_to_defer_v1, procrastinate_job_event_type, procrastinate_job_status;
END
$$
"""


def upgrade() -> None:
    # Many statements at once, so past SQLAlchemy, which would prepare them as one.
    psycopg_connection: Any = op.get_bind().connection.dbapi_connection
    psycopg_connection.execute(_QUEUE_SCHEMA.read_text(encoding="utf-8"))
    op.create_table(
        "job",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("args", sa.dialects.postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("queue_id", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("setbacks", sa.BigInteger(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("progress_step", sa.Text(), nullable=False),
        sa.Column("progress_fraction", sa.Float(), nullable=False),
        sa.Column("progress_message", sa.Text(), nullable=False),
        sa.Column("result", sa.dialects.postgresql.JSONB(), nullable=True),
        sa.Column("error", sa.dialects.postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_job"),
        sa.UniqueConstraint("queue_id", name="uq_job_queue_id"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name=op.f("ck_job_state_is_known")
        ),
        sa.CheckConstraint(
            "(ended_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled'))",
            name=op.f("ck_job_ended_jobs_have_an_end"),
        ),
        sa.CheckConstraint(
            "state <> 'running' OR started_at IS NOT NULL", name=op.f("ck_job_running_jobs_were_started")
        ),
        sa.CheckConstraint(
            "(result IS NOT NULL) = (state = 'succeeded')", name=op.f("ck_job_only_success_has_a_result")
        ),
        sa.CheckConstraint("(error IS NOT NULL) = (state = 'failed')", name=op.f("ck_job_only_failure_has_an_error")),
        sa.CheckConstraint(
            "error IS NULL OR (error ? 'code' AND error ? 'message')", name=op.f("ck_job_errors_have_code_and_message")
        ),
        sa.CheckConstraint("progress_fraction BETWEEN 0 AND 1", name=op.f("ck_job_progress_is_a_fraction")),
        sa.CheckConstraint("attempt >= 0", name=op.f("ck_job_attempts_are_counted_from_zero")),
        sa.CheckConstraint("setbacks >= 0", name=op.f("ck_job_setbacks_are_counted_from_zero")),
    )
    op.create_index("ix_job_created_at", "job", ["created_at"])
    op.create_index("ix_job_running", "job", ["state"], postgresql_where=sa.text("state IN ('queued', 'running')"))


def downgrade() -> None:
    op.drop_table("job")
    op.execute(_DROP_QUEUE)
