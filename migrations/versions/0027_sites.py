"""Sites: tasks, devices that run them together, and the plans by which they do."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0027_sites"
down_revision = "0026_steps_down"

_REASON = "ck_assignment_reason_is_known"
_KNOWN = "reason IN ('rollout', 'return', 'enrolment', 'prefetch', 'step-down'{more})"

# Devices hold the newest of what is signed for them: numbers go on under a site's name, also after it was deleted.
_RISES = """
CREATE FUNCTION site_plan_number_rises() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  newest bigint;
BEGIN
  SELECT max(p.number) INTO newest FROM site_plan p JOIN site s ON s.id = p.site_id
    WHERE (s.project_id, s.name) = (SELECT project_id, name FROM site WHERE id = NEW.site_id);
  IF NEW.number <= newest THEN
    RAISE EXCEPTION 'the newest plan of this site is %, so none can be %', newest, NEW.number
      USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

_STAYS = """
CREATE FUNCTION site_plan_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'DELETE' OR (OLD.id, OLD.site_id, OLD.number, OLD.asked, OLD.content)
      IS DISTINCT FROM (NEW.id, NEW.site_id, NEW.number, NEW.asked, NEW.content)
    OR (OLD.digest IS NOT NULL
      AND (OLD.digest, OLD.bytes, OLD.expires_at) IS DISTINCT FROM (NEW.digest, NEW.bytes, NEW.expires_at))
  THEN
    RAISE EXCEPTION 'plan % of a site stays what it is', OLD.number USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

# What is signed for a device follows from its part in a plan.
_NOTIFY = """
CREATE FUNCTION site_plan_member_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('sprat_poll', 'device=' || NEW.device_id);
  RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("SET LOCAL statement_timeout = '5s'")
    op.drop_constraint(op.f(_REASON), "assignment")
    op.create_check_constraint(op.f(_REASON), "assignment", _KNOWN.format(more=", 'site'"))
    op.create_table(
        "site_task",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("graph", postgresql.JSONB(), nullable=False),
        sa.Column("fallback", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("deadline_s", sa.Double(), nullable=False),
        sa.Column("test", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("replaced_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("jsonb_typeof(fallback) = 'object'", name=op.f("ck_site_task_fallback_is_an_object")),
        sa.CheckConstraint("jsonb_typeof(graph) = 'object'", name=op.f("ck_site_task_graph_is_an_object")),
        sa.CheckConstraint("jsonb_typeof(test) = 'object'", name=op.f("ck_site_task_test_is_an_object")),
        sa.CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name=op.f("ck_site_task_name_is_plain")),
        sa.CheckConstraint("deadline_s > 0 AND deadline_s <= 3600", name=op.f("ck_site_task_deadline_is_sane")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_site_task_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site_task")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_site_task_project_id_id")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_site_task_project_id_name")),
    )
    op.create_table(
        "site",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hold_s", sa.Double(), nullable=False),
        sa.Column("switch_s", sa.Double(), nullable=False),
        sa.Column("auto_repair", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name=op.f("ck_site_name_is_plain")),
        sa.CheckConstraint("hold_s > 0 AND switch_s > 0", name=op.f("ck_site_times_are_positive")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_site_project_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_site_project_id_id")),
    )
    op.create_index("uq_site_name", "site", ["project_id", "name"], unique=True, postgresql_where="deleted_at IS NULL")
    op.create_table(
        "site_device",
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("up_mbit", sa.Double(), nullable=False),
        sa.Column("down_mbit", sa.Double(), nullable=False),
        sa.Column("delay_ms", sa.Double(), nullable=False),
        sa.Column("utilisation", sa.Double(), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("memory_bytes >= 0", name=op.f("ck_site_device_memory_is_not_negative")),
        sa.CheckConstraint(
            "up_mbit > 0 AND down_mbit > 0 AND delay_ms >= 0", name=op.f("ck_site_device_links_make_sense")
        ),
        sa.CheckConstraint("utilisation > 0 AND utilisation <= 1", name=op.f("ck_site_device_utilisation_is_a_share")),
        sa.ForeignKeyConstraint(
            ["project_id", "device_id"],
            ["device.project_id", "device.id"],
            name=op.f("fk_site_device_project_id_device_id"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "site_id"], ["site.project_id", "site.id"], name=op.f("fk_site_device_project_id_site_id")
        ),
        sa.PrimaryKeyConstraint("site_id", "device_id", name=op.f("pk_site_device")),
        sa.UniqueConstraint("device_id", name=op.f("uq_site_device_device_id")),
    )
    op.create_table(
        "site_plan",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("site_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("asked", postgresql.JSONB(), nullable=False),
        sa.Column("content", postgresql.JSONB(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("made_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("switched_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint(
            "(state = 'planned') = (applied_at IS NULL) AND num_nulls(applied_at, digest, bytes, expires_at) IN (0, 4)",
            name=op.f("ck_site_plan_what_was_applied_has_a_file"),
        ),
        sa.CheckConstraint(
            "(state IN ('holding', 'switching')) = (deadline_at IS NOT NULL)",
            name=op.f("ck_site_plan_what_is_under_way_has_a_deadline"),
        ),
        sa.CheckConstraint(
            "(state IN ('retired', 'failed', 'aborted')) = (ended_at IS NOT NULL)",
            name=op.f("ck_site_plan_ends_have_a_time"),
        ),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_site_plan_digest_is_sha256")),
        sa.CheckConstraint("jsonb_typeof(asked) = 'object'", name=op.f("ck_site_plan_asked_is_an_object")),
        sa.CheckConstraint("jsonb_typeof(content) = 'object'", name=op.f("ck_site_plan_content_is_an_object")),
        sa.CheckConstraint(
            "state IN ('planned', 'holding', 'switching', 'serving', 'draining', 'retired', 'failed', 'aborted')",
            name=op.f("ck_site_plan_state_is_known"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('failed', 'aborted') OR reason IS NOT NULL", name=op.f("ck_site_plan_failures_have_a_reason")
        ),
        sa.CheckConstraint(
            "state NOT IN ('switching', 'serving', 'draining', 'retired') OR switched_at IS NOT NULL",
            name=op.f("ck_site_plan_what_served_was_switched_to"),
        ),
        sa.CheckConstraint("number >= 1", name=op.f("ck_site_plan_number_is_positive")),
        sa.ForeignKeyConstraint(
            ["project_id", "site_id"], ["site.project_id", "site.id"], name=op.f("fk_site_plan_project_id_site_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site_plan")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_site_plan_project_id_id")),
        sa.UniqueConstraint("site_id", "number", name=op.f("uq_site_plan_site_id_number")),
    )
    op.create_index(
        "uq_site_plan_draining", "site_plan", ["site_id"], unique=True, postgresql_where="state = 'draining'"
    )
    op.create_index("uq_site_plan_serving", "site_plan", ["site_id"], unique=True, postgresql_where="state = 'serving'")
    op.create_index(
        "uq_site_plan_under_way",
        "site_plan",
        ["site_id"],
        unique=True,
        postgresql_where="state IN ('holding', 'switching')",
    )
    op.create_table(
        "site_plan_member",
        sa.Column("plan_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_detail", sa.Text(), nullable=True),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("phase IN ('hold', 'serve', 'drain')", name=op.f("ck_site_plan_member_phase_is_known")),
        sa.CheckConstraint(
            "state IN ('asked', 'ready', 'serving', 'refused', 'left')", name=op.f("ck_site_plan_member_state_is_known")
        ),
        sa.CheckConstraint("octet_length(public_key) = 32", name=op.f("ck_site_plan_member_key_is_ed25519")),
        sa.ForeignKeyConstraint(
            ["project_id", "device_id"],
            ["device.project_id", "device.id"],
            name=op.f("fk_site_plan_member_project_id_device_id"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "plan_id"],
            ["site_plan.project_id", "site_plan.id"],
            name=op.f("fk_site_plan_member_project_id_plan_id"),
        ),
        sa.PrimaryKeyConstraint("plan_id", "device_id", name=op.f("pk_site_plan_member")),
    )
    op.create_index(op.f("ix_site_plan_member_device_id"), "site_plan_member", ["device_id"])
    op.create_table(
        "site_plan_host",
        sa.Column("plan_id", sa.Uuid(), nullable=False),
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("fetched_by", sa.BigInteger(), nullable=True),
        sa.Column("kept_by", sa.BigInteger(), nullable=True),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id", "fetched_by"], ["assignment.device_id", "assignment.counter"], name="fetched_by_exists"
        ),
        sa.ForeignKeyConstraint(
            ["device_id", "kept_by"], ["assignment.device_id", "assignment.counter"], name="kept_by_exists"
        ),
        sa.ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        sa.ForeignKeyConstraint(
            ["project_id", "device_id"],
            ["device.project_id", "device.id"],
            name=op.f("fk_site_plan_host_project_id_device_id"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "model_id"],
            ["model.project_id", "model.id"],
            name=op.f("fk_site_plan_host_project_id_model_id"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "plan_id"],
            ["site_plan.project_id", "site_plan.id"],
            name=op.f("fk_site_plan_host_project_id_plan_id"),
        ),
        sa.PrimaryKeyConstraint("plan_id", "device_id", "model_id", name=op.f("pk_site_plan_host")),
    )
    op.create_index(op.f("ix_site_plan_host_device_id_fetched_by"), "site_plan_host", ["device_id", "fetched_by"])
    op.create_index(op.f("ix_site_plan_host_model_id"), "site_plan_host", ["model_id"])
    for function in (_RISES, _STAYS, _NOTIFY):
        op.execute(function)
    op.execute(
        "CREATE TRIGGER site_plan_number BEFORE INSERT ON site_plan FOR EACH ROW "
        "EXECUTE FUNCTION site_plan_number_rises()"
    )
    op.execute(
        "CREATE TRIGGER site_plan_keep BEFORE UPDATE OR DELETE ON site_plan FOR EACH ROW "
        "EXECUTE FUNCTION site_plan_stays()"
    )
    op.execute(
        "CREATE TRIGGER site_plan_member_notify AFTER INSERT OR UPDATE OF phase ON site_plan_member FOR EACH ROW "
        "EXECUTE FUNCTION site_plan_member_notify()"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    for table in ("site_plan_host", "site_plan_member", "site_plan", "site_device", "site", "site_task"):
        op.drop_table(table)
    for function in ("site_plan_number_rises", "site_plan_stays", "site_plan_member_notify"):
        op.execute(f"DROP FUNCTION {function}()")
    op.drop_constraint(op.f(_REASON), "assignment")
    op.create_check_constraint(op.f(_REASON), "assignment", _KNOWN.format(more=""))
