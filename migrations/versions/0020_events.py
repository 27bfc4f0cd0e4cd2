"""Events, numbered in the order of commits in each project; webhooks, and what they were sent: an outbox."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020_events"
down_revision = "0019_projects"

# One writer of a project at a time, until its transaction ends: whoever has read up to a number has missed nothing.
_NUMBER = """
CREATE FUNCTION event_number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('sprat.event'), hashtext(NEW.project_id::text));
  NEW.seq := coalesce((SELECT max(seq) FROM event WHERE project_id = NEW.project_id), 0) + 1;
  RETURN NEW;
END
$$
"""

_FAN_OUT = """
CREATE FUNCTION event_fan_out() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO webhook_delivery (project_id, webhook_id, event_seq)
    SELECT NEW.project_id, id, NEW.seq FROM webhook
      WHERE project_id = NEW.project_id AND disabled_at IS NULL AND CASE WHEN NEW.kind = 'webhook.test'
        THEN NEW.subject = 'webhook:' || id ELSE jsonb_array_length(kinds) = 0 OR kinds ? NEW.kind END;
  PERFORM pg_notify('sprat_events', NEW.project_id::text);
  RETURN NULL;
END
$$
"""

_QUEUE = """
CREATE FUNCTION webhook_delivery_queue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM procrastinate_defer_jobs_v1(ARRAY[ROW('sprat-webhooks', 'sprat.deliver', 0, NULL, NULL,
    jsonb_build_object('webhook_id', NEW.webhook_id, 'seq', NEW.event_seq), NULL)::procrastinate_job_to_defer_v1]);
  RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "event",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("char_length(kind) BETWEEN 1 AND 60", name=op.f("ck_event_kind_is_short")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_event_project_id")),
        sa.PrimaryKeyConstraint("project_id", "seq", name=op.f("pk_event")),
    )
    op.create_index("uq_event_project_id_id", "event", ["project_id", "id"], unique=True)
    op.create_table(
        "webhook",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("kinds", postgresql.JSONB(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("old_secret", sa.LargeBinary(), nullable=True),
        sa.Column("old_secret_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_because", sa.Text(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name=op.f("ck_webhook_name_is_plain")),
        sa.CheckConstraint("char_length(url) <= 2000", name=op.f("ck_webhook_url_is_short")),
        sa.CheckConstraint("octet_length(secret) = 32", name=op.f("ck_webhook_secret_is_256_bits")),
        sa.CheckConstraint(
            "(old_secret IS NULL) = (old_secret_until IS NULL)", name=op.f("ck_webhook_old_secrets_end")
        ),
        sa.CheckConstraint(
            "(disabled_at IS NULL) = (disabled_because IS NULL)", name=op.f("ck_webhook_disabled_has_a_reason")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_webhook_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_webhook_project_id_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_webhook_project_id_name")),
    )
    op.create_table(
        "webhook_delivery",
        sa.Column("webhook_id", sa.Uuid(), nullable=False),
        sa.Column("event_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'failed')", name=op.f("ck_webhook_delivery_state_is_known")
        ),
        sa.CheckConstraint(
            "(next_at IS NOT NULL) = (state = 'pending')", name=op.f("ck_webhook_delivery_what_is_pending_has_a_time")
        ),
        sa.CheckConstraint("attempts >= 0", name=op.f("ck_webhook_delivery_attempts_count")),
        sa.ForeignKeyConstraint(
            ["project_id", "webhook_id"],
            ["webhook.project_id", "webhook.id"],
            name=op.f("fk_webhook_delivery_project_id_webhook_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "event_seq"], ["event.project_id", "event.seq"], name="event_exists", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("webhook_id", "event_seq", name=op.f("pk_webhook_delivery")),
    )
    op.create_index(op.f("ix_webhook_delivery_project_id_event_seq"), "webhook_delivery", ["project_id", "event_seq"])
    op.create_index(
        "ix_webhook_delivery_pending", "webhook_delivery", ["next_at"], postgresql_where=sa.text("state = 'pending'")
    )
    op.execute(_NUMBER)
    op.execute(_FAN_OUT)
    op.execute(_QUEUE)
    for table, name, when, function in (
        ("event", "event_number", "BEFORE INSERT", "event_number"),
        ("event", "event_keep", "BEFORE UPDATE", "refuse_change"),
        ("event", "event_fan_out", "AFTER INSERT", "event_fan_out"),
        ("webhook_delivery", "webhook_delivery_queue", "AFTER INSERT", "webhook_delivery_queue"),
    ):
        op.execute(f"CREATE TRIGGER {name} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("webhook_delivery")
    op.drop_table("webhook")
    op.drop_table("event")
    op.execute("DROP FUNCTION event_number()")
    op.execute("DROP FUNCTION event_fan_out()")
    op.execute("DROP FUNCTION webhook_delivery_queue()")
