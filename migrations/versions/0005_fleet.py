"""Devices, enrolment, assignments, reports: counters that never fall; pollers hear of what concerns a device."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005_fleet"
down_revision = "0004_publish"

_DEVICE = """
CREATE FUNCTION device_keeps_what_it_is() RETURNS trigger LANGUAGE plpgsql AS $$
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

_ASSIGNMENT = """
CREATE FUNCTION assignment_counter_rises() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM assignment WHERE device_id = NEW.device_id AND counter >= NEW.counter)
      OR NOT EXISTS (SELECT FROM device WHERE id = NEW.device_id AND assignment_counter = NEW.counter) THEN
    RAISE EXCEPTION 'assignment % of device % is not newer than all before', NEW.counter, NEW.device_id
      USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

_REPORT = """
CREATE FUNCTION report_sequence_rises() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM report WHERE device_id = NEW.device_id AND sequence >= NEW.sequence) THEN
    RAISE EXCEPTION 'report % of device % is a replay', NEW.sequence, NEW.device_id USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

_ENROLMENT = """
CREATE FUNCTION enrolment_token_is_used_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.used < OLD.used OR NEW.token_hash <> OLD.token_hash OR NEW.uses <> OLD.uses THEN
    RAISE EXCEPTION 'an enrolment token only wears out' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

# A device row changes whenever an assignment is made (its counter), so one trigger says all that a poller must know.
_NOTIFY = """
CREATE FUNCTION device_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('sprat_poll', 'device=' || NEW.id);
  RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "enrolment_token",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("device_group", sa.Text(), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "char_length(device_group) BETWEEN 1 AND 100", name=op.f("ck_enrolment_token_group_is_short")
        ),
        sa.CheckConstraint("expires_at > created_at", name=op.f("ck_enrolment_token_expires_after_it_was_made")),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("ck_enrolment_token_hash_is_sha256")),
        sa.CheckConstraint(
            "uses >= 1 AND used BETWEEN 0 AND uses", name=op.f("ck_enrolment_token_is_not_used_more_often_than_allowed")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrolment_token")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_enrolment_token_token_hash")),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("device_group", sa.Text(), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("attributes", postgresql.JSONB(), nullable=False),
        sa.Column("enrolment_token_id", sa.Uuid(), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("assignment_counter", sa.BigInteger(), nullable=False),
        sa.Column("report_sequence", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("assignment_counter >= 0 AND report_sequence >= 0", name=op.f("ck_device_counters_count")),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 100", name=op.f("ck_device_name_is_short")),
        sa.CheckConstraint("octet_length(public_key) = 32", name=op.f("ck_device_key_is_ed25519")),
        sa.CheckConstraint("octet_length(token_hash) = 32", name=op.f("ck_device_hash_is_sha256")),
        sa.ForeignKeyConstraint(
            ["enrolment_token_id"], ["enrolment_token.id"], name=op.f("fk_device_enrolment_token_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
        sa.UniqueConstraint("public_key", name=op.f("uq_device_public_key")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_device_token_hash")),
    )
    op.create_index("uq_device_name", "device", ["name"], unique=True, postgresql_where=sa.text("revoked_at IS NULL"))
    op.create_table(
        "assignment",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("counter", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "number IS NOT NULL OR reason = 'return'", name=op.f("ck_assignment_only_a_return_can_withdraw")
        ),
        sa.CheckConstraint("reason IN ('rollout', 'return', 'enrolment')", name=op.f("ck_assignment_reason_is_known")),
        sa.CheckConstraint("counter >= 1", name=op.f("ck_assignment_counter_is_positive")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_assignment_device_id")),
        sa.ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_assignment_model_id")),
        sa.PrimaryKeyConstraint("device_id", "counter", name=op.f("pk_assignment")),
    )
    op.create_index(
        op.f("ix_assignment_device_id_model_id_counter"),
        "assignment",
        ["device_id", "model_id", "counter"],
        unique=False,
    )
    op.create_table(
        "report",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("assignment", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("serving_number", sa.BigInteger(), nullable=True),
        sa.Column("serving_weights", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('committed', 'refused', 'rolled_back', 'failed', 'returned')",
            name=op.f("ck_report_outcome_is_known"),
        ),
        sa.CheckConstraint("octet_length(signature) = 64", name=op.f("ck_report_signature_is_ed25519")),
        sa.CheckConstraint("sequence >= 1", name=op.f("ck_report_sequence_is_positive")),
        sa.ForeignKeyConstraint(
            ["device_id", "assignment"], ["assignment.device_id", "assignment.counter"], name="assignment_exists"
        ),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_report_device_id")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_report_model_id")),
        sa.PrimaryKeyConstraint("device_id", "sequence", name=op.f("pk_report")),
    )
    op.create_table(
        "device_slots",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("active", sa.BigInteger(), nullable=True),
        sa.Column("previous", sa.BigInteger(), nullable=True),
        sa.Column("weights", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reported_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("previous <> active", name=op.f("ck_device_slots_slots_differ")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_device_slots_device_id")),
        sa.ForeignKeyConstraint(["model_id", "active"], ["release.model_id", "release.number"], name="active_exists"),
        sa.ForeignKeyConstraint(
            ["model_id", "previous"], ["release.model_id", "release.number"], name="previous_exists"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_device_slots_model_id")),
        sa.PrimaryKeyConstraint("device_id", "model_id", name=op.f("pk_device_slots")),
    )

    for function in (_DEVICE, _ASSIGNMENT, _REPORT, _ENROLMENT, _NOTIFY):
        op.execute(function)
    for table, when, function in (
        ("device", "BEFORE UPDATE", "device_keeps_what_it_is"),
        ("device", "BEFORE DELETE", "refuse_change"),
        ("assignment", "BEFORE INSERT", "assignment_counter_rises"),
        ("assignment", "BEFORE UPDATE OR DELETE", "refuse_change"),
        ("report", "BEFORE INSERT", "report_sequence_rises"),
        ("report", "BEFORE UPDATE OR DELETE", "refuse_change"),
        ("enrolment_token", "BEFORE UPDATE", "enrolment_token_is_used_up"),
        ("device", "AFTER INSERT OR UPDATE OF assignment_counter, revoked_at, token_hash", "device_notify"),
    ):
        op.execute(f"CREATE TRIGGER {table}_{function} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()")


def downgrade() -> None:
    op.drop_table("device_slots")
    op.drop_table("report")
    op.drop_table("assignment")
    op.drop_table("device")
    op.drop_table("enrolment_token")
    op.execute("DROP FUNCTION device_notify()")
    op.execute("DROP FUNCTION enrolment_token_is_used_up()")
    op.execute("DROP FUNCTION report_sequence_rises()")
    op.execute("DROP FUNCTION assignment_counter_rises()")
    op.execute("DROP FUNCTION device_keeps_what_it_is()")
