"""Devices prove who they are, for tokens that end; a queue to join by; keys replaced; from where, in the audit."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012_access_more"
down_revision = "0011_custody"

_DEVICE = """
CREATE OR REPLACE FUNCTION device_keeps_what_it_is() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.id, NEW.enrolled_at) IS DISTINCT FROM (OLD.id, OLD.enrolled_at)
      OR (NEW.public_key, NEW.enrolment_token_id) IS DISTINCT FROM (OLD.public_key, OLD.enrolment_token_id)
      AND NOT (NEW.public_key <> OLD.public_key AND EXISTS (SELECT FROM replacement
        WHERE enrolment_token_id = NEW.enrolment_token_id AND device_id = OLD.id)) THEN
    RAISE EXCEPTION 'the identity of device % cannot change', OLD.id USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.public_key <> OLD.public_key THEN
    INSERT INTO retired_key (public_key, device_id) VALUES (OLD.public_key, OLD.id);
  END IF;
  IF NEW.assignment_counter < OLD.assignment_counter OR NEW.report_sequence < OLD.report_sequence THEN
    RAISE EXCEPTION 'the counters of device % cannot fall', OLD.id USING ERRCODE = 'check_violation';
  END IF;
  IF OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NULL THEN
    RAISE EXCEPTION 'device % was revoked and stays so', OLD.id USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

_DEVICE_BEFORE = """
CREATE OR REPLACE FUNCTION device_keeps_what_it_is() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.id, NEW.public_key, NEW.enrolled_at, NEW.enrolment_token_id)
      IS DISTINCT FROM (OLD.id, OLD.public_key, OLD.enrolled_at, OLD.enrolment_token_id) THEN
    RAISE EXCEPTION 'the identity of device % cannot change', OLD.id USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.assignment_counter < OLD.assignment_counter OR NEW.report_sequence < OLD.report_sequence THEN
    RAISE EXCEPTION 'the counters of device % cannot fall', OLD.id USING ERRCODE = 'check_violation';
  END IF;
  IF OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NULL THEN
    RAISE EXCEPTION 'device % was revoked and stays so', OLD.id USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

_RETIRED = """
CREATE FUNCTION device_key_is_not_retired() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM retired_key WHERE public_key = NEW.public_key) THEN
    RAISE EXCEPTION 'the key of device % was retired', NEW.id USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

# The text that a record's digest covers is given out too, so that others can recompute the chain. Without an address
# it is the text of before: chains that exist stay whole.
_TEXT = """
CREATE FUNCTION audit_text(r audit) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN r.address IS NULL THEN
    jsonb_build_array('sprat-audit-1', r.seq, extract(epoch FROM r.at)::text, r.actor, r.actor_id, r.action, r.subject,
      r.before, r.after, r.request_id)::text
  ELSE
    jsonb_build_array('sprat-audit-2', r.seq, extract(epoch FROM r.at)::text, r.actor, r.actor_id, r.action, r.subject,
      r.before, r.after, r.request_id, r.address)::text
  END
$$
"""

_DIGEST = """
CREATE OR REPLACE FUNCTION audit_digest(r audit) RETURNS bytea LANGUAGE sql STABLE AS $$
  SELECT sha256(r.previous || convert_to(audit_text(r), 'UTF8'))
$$
"""

_DIGEST_BEFORE = """
CREATE OR REPLACE FUNCTION audit_digest(r audit) RETURNS bytea LANGUAGE sql STABLE AS $$
  SELECT sha256(r.previous || convert_to(jsonb_build_array(
    'sprat-audit-1', r.seq, extract(epoch FROM r.at)::text, r.actor, r.actor_id, r.action, r.subject,
    r.before, r.after, r.request_id)::text, 'UTF8'))
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.alter_column("device", "token_hash", nullable=True)
    op.alter_column("device", "enrolment_token_id", nullable=True)
    op.execute("UPDATE device SET token_hash = NULL")  # tokens without an end are worth nothing any more
    op.add_column("device", sa.Column("token_expires_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f("ck_device_tokens_expire"), "device", "(token_hash IS NULL) = (token_expires_at IS NULL)"
    )
    op.create_table(
        "replacement",
        sa.Column("enrolment_token_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["enrolment_token_id"], ["enrolment_token.id"], name=op.f("fk_replacement_enrolment_token_id")
        ),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_replacement_device_id")),
        sa.PrimaryKeyConstraint("enrolment_token_id", name=op.f("pk_replacement")),
    )
    op.create_table(
        "retired_key",
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("octet_length(public_key) = 32", name=op.f("ck_retired_key_key_is_ed25519")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_retired_key_device_id")),
        sa.PrimaryKeyConstraint("public_key", name=op.f("pk_retired_key")),
    )
    op.create_table(
        "spent_assertion",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("jti", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("char_length(jti) BETWEEN 1 AND 64", name=op.f("ck_spent_assertion_jti_is_short")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_spent_assertion_device_id")),
        sa.PrimaryKeyConstraint("device_id", "jti", name=op.f("pk_spent_assertion")),
    )
    op.create_index(op.f("ix_spent_assertion_expires_at"), "spent_assertion", ["expires_at"])
    op.create_table(
        "enrolment_request",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("attributes", postgresql.JSONB(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rejected_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("octet_length(public_key) = 32", name=op.f("ck_enrolment_request_key_is_ed25519")),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 100", name=op.f("ck_enrolment_request_name_is_short")),
        sa.CheckConstraint("expires_at > created_at", name=op.f("ck_enrolment_request_expires_after_it_was_made")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolment_request")),
        sa.UniqueConstraint("public_key", name=op.f("uq_enrolment_request_public_key")),
    )
    op.create_index(op.f("ix_enrolment_request_expires_at"), "enrolment_request", ["expires_at"])
    op.execute(_DEVICE)
    op.execute(_RETIRED)
    for table, name, when, function in (
        ("replacement", "replacement_refuse_change", "BEFORE UPDATE OR DELETE", "refuse_change"),
        ("retired_key", "retired_key_refuse_change", "BEFORE UPDATE OR DELETE", "refuse_change"),
        ("device", "device_key_is_not_retired", "BEFORE INSERT OR UPDATE OF public_key", "device_key_is_not_retired"),
    ):
        op.execute(f"CREATE TRIGGER {name} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()")
    op.add_column("audit", sa.Column("address", sa.Text(), nullable=True))
    op.execute(_TEXT)
    op.execute(_DIGEST)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute(_DIGEST_BEFORE)
    op.execute("DROP FUNCTION audit_text(audit)")
    op.drop_column("audit", "address")
    op.execute(_DEVICE_BEFORE)
    op.execute("DROP TRIGGER device_key_is_not_retired ON device")
    op.execute("DROP FUNCTION device_key_is_not_retired()")
    op.drop_table("enrolment_request")
    op.drop_table("spent_assertion")
    op.drop_table("retired_key")
    op.drop_table("replacement")
    op.drop_constraint(op.f("ck_device_tokens_expire"), "device")
    op.drop_column("device", "token_expires_at")
    op.execute("UPDATE device SET token_hash = sha256(uuid_send(gen_random_uuid()))")  # nobody's: devices enrol again
    op.alter_column("device", "token_hash", nullable=False)
    op.alter_column("device", "enrolment_token_id", nullable=False)
