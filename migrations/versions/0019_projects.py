"""Projects: every row belongs to one, rows of two cannot refer to each other, and each has an audit chain of its own.

What was there belongs to the project `default`; tokens that were there are of the whole server, as they were.
"""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0019_projects"
down_revision = "0018_rollout_moves"

_DEFAULT: Final = "00000000-0000-7000-8000-000000000001"

# Tables that belong to a project by themselves; then those that belong to one through another table.
_ROOTS: Final = (
    "model",
    "dataset",
    "device",
    "enrolment_token",
    "enrolment_request",
    "job",
    "signed_metadata",
    "draft_metadata",
    "saved_group",
)
_PARENTS: Final = (
    "model",
    "device",
    "enrolment_token",
    "enrolment_request",
    "job",
    "draft_metadata",
    "rollout",
    "saved_group",
)
_CHILDREN: Final = (
    ("release", "model"),
    ("publication", "model"),
    ("update_file", "model"),
    ("direct_build", "model"),
    ("device_policy", "model"),
    ("rollout", "model"),
    ("assignment", "device"),
    ("assignment", "model"),
    ("report", "device"),
    ("report", "model"),
    ("device_slots", "device"),
    ("device_slots", "model"),
    ("replacement", "device"),
    ("replacement", "enrolment_token"),
    ("retired_key", "device"),
    ("spent_assertion", "device"),
    ("director_metadata", "device"),
    ("device", "enrolment_token"),
    ("rollout_wave", "rollout"),
    ("rollout_device", "rollout"),
    ("rollout_device", "device"),
    ("rollout_gate", "rollout"),
    ("rollout_approval", "rollout"),
    ("draft_signature", "draft_metadata"),
    ("saved_group_member", "saved_group"),
    ("saved_group_member", "device"),
    ("device_drift", "device"),
    ("device_drift", "model"),
    ("drift_policy", "model"),
    ("drift_event", "model"),
    ("drift_event", "job"),
    ("drift_event", "rollout"),
)
# Rows that go when what they belong to goes.
_WITH_PARENT: Final = frozenset(
    {
        ("rollout_wave", "rollout"),
        ("rollout_device", "rollout"),
        ("rollout_gate", "rollout"),
        ("rollout_approval", "rollout"),
        ("draft_signature", "draft_metadata"),
        ("saved_group_member", "saved_group"),
    }
)
_KEYS: Final = (  # primary key, or unique constraint, before and now
    ("dataset", "pk_dataset", ["digest"]),
    ("signed_metadata", "pk_signed_metadata", ["repository", "role", "version"]),
    ("retired_key", "pk_retired_key", ["public_key"]),
    ("audit", "pk_audit", ["seq"]),
    ("model", "uq_model_name", ["name"]),
    ("saved_group", "uq_saved_group_name", ["name"]),
    ("device", "uq_device_public_key", ["public_key"]),
    ("enrolment_request", "uq_enrolment_request_public_key", ["public_key"]),
    ("draft_metadata", "uq_draft_metadata_digest", ["digest"]),
    ("draft_metadata", "uq_draft_metadata_role_number", ["role", "number"]),
)

_CHAIN = """
CREATE OR REPLACE FUNCTION audit_chain() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  last audit;
BEGIN
  PERFORM pg_advisory_xact_lock({lock});
  SELECT * INTO last FROM audit {where} ORDER BY seq DESC LIMIT 1;
  NEW.seq := coalesce(last.seq, 0) + 1;
  NEW.at := clock_timestamp();
  NEW.previous := coalesce(last.digest, decode(repeat('00', 32), 'hex'));
  NEW.digest := audit_digest(NEW);
  RETURN NEW;
END
$$
"""
_CHAIN_NOW = _CHAIN.format(
    lock="hashtext('sprat.audit'), hashtext(NEW.project_id::text)", where="WHERE project_id = NEW.project_id"
)
_CHAIN_BEFORE = _CHAIN.format(lock="hashtext('sprat.audit')", where="")

# The chain that was there goes on as it was; other projects' records say of which they are.
_FORM_1 = """jsonb_build_array('sprat-audit-1', r.seq, extract(epoch FROM r.at)::text, r.actor, r.actor_id, r.action,
      r.subject, r.before, r.after, r.request_id)::text"""
_FORM_2 = """jsonb_build_array('sprat-audit-2', r.seq, extract(epoch FROM r.at)::text, r.actor, r.actor_id, r.action,
      r.subject, r.before, r.after, r.request_id, r.address)::text"""
_TEXT_NOW = f"""
CREATE OR REPLACE FUNCTION audit_text(r audit) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN r.project_id <> '{_DEFAULT}' THEN
    jsonb_build_array('sprat-audit-3', r.seq, extract(epoch FROM r.at)::text, r.actor, r.actor_id, r.action, r.subject,
      r.before, r.after, r.request_id, r.address, r.project_id)::text
  WHEN r.address IS NULL THEN
    {_FORM_1}
  ELSE
    {_FORM_2}
  END
$$
"""  # noqa: S608 - a constant of this file
_TEXT_BEFORE = f"""
CREATE OR REPLACE FUNCTION audit_text(r audit) RETURNS text LANGUAGE sql STABLE AS $$
  SELECT CASE WHEN r.address IS NULL THEN
    {_FORM_1}
  ELSE
    {_FORM_2}
  END
$$
"""

_VERSION = """
CREATE OR REPLACE FUNCTION metadata_version_is_next() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  next bigint;
BEGIN
  SELECT coalesce(max(version), 0) + 1 INTO next
    FROM signed_metadata WHERE {of_project}repository = NEW.repository AND role = NEW.role;
  IF NEW.version <> next THEN
    RAISE EXCEPTION 'the next version of %/% is %, not %', NEW.repository, NEW.role, next, NEW.version
      USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

_DEVICE = """
CREATE OR REPLACE FUNCTION device_keeps_what_it_is() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF (NEW.id, NEW.enrolled_at{project_new}) IS DISTINCT FROM (OLD.id, OLD.enrolled_at{project_old})
      OR (NEW.public_key, NEW.enrolment_token_id) IS DISTINCT FROM (OLD.public_key, OLD.enrolment_token_id)
      AND NOT (NEW.public_key <> OLD.public_key AND EXISTS (SELECT FROM replacement
        WHERE enrolment_token_id = NEW.enrolment_token_id AND device_id = OLD.id)) THEN
    RAISE EXCEPTION 'the identity of device % cannot change', OLD.id USING ERRCODE = 'check_violation';
  END IF;
  IF NEW.public_key <> OLD.public_key THEN
    INSERT INTO retired_key (public_key, device_id{project}) VALUES (OLD.public_key, OLD.id{project_old});
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
CREATE OR REPLACE FUNCTION device_key_is_not_retired() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM retired_key WHERE {of_project}public_key = NEW.public_key) THEN
    RAISE EXCEPTION 'the key of device % was retired', NEW.id USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

# Whatever a fact of a project names, the project may read: no code has to remember it.
_OWN = """
CREATE FUNCTION own_blobs() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  row jsonb := to_jsonb(NEW);
BEGIN
  INSERT INTO owned_blob (project_id, digest)
    SELECT DISTINCT NEW.project_id, named FROM (
      SELECT unnest(ARRAY[row->>'blob', row->>'weights_blob', row->>'graph_digest', row->>'statistics_graph',
        CASE WHEN TG_TABLE_NAME = 'dataset' THEN row->>'digest' END]) AS named
      UNION SELECT probe_digest FROM graph WHERE digest IN (row->>'graph_digest', row->>'statistics_graph')
    ) AS digests WHERE named IS NOT NULL
    ON CONFLICT DO NOTHING;
  RETURN NULL;
END
$$
"""
_NAMING: Final = ("release", "update_file", "direct_build", "dataset")
_OWNED_BEFORE = f"""
INSERT INTO owned_blob (project_id, digest)
  SELECT '{_DEFAULT}', named FROM (
    SELECT weights_blob AS named FROM release
    UNION SELECT digest FROM graph UNION SELECT probe_digest FROM graph
    UNION SELECT blob FROM update_file UNION SELECT blob FROM direct_build UNION SELECT digest FROM dataset
    UNION SELECT substr(subject, 6) FROM audit WHERE action = 'blob.upload'
  ) AS digests WHERE named ~ '^sha256:[0-9a-f]{{64}}$'
"""  # noqa: S608 - a constant of this file

_FIRST = f"INSERT INTO project (id, name, title, created_by) VALUES ('{_DEFAULT}', 'default', '', 'system:sprat')"  # noqa: S608
_DROP_SERVERS = f"DELETE FROM audit WHERE project_id <> '{_DEFAULT}'"  # noqa: S608 - what was done to the server itself


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "project",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name=op.f("ck_project_name_is_plain")),
        sa.CheckConstraint("char_length(title) <= 200", name=op.f("ck_project_title_is_short")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
        sa.UniqueConstraint("name", name=op.f("uq_project_name")),
    )
    op.execute(_FIRST)
    for table in dict.fromkeys([*_ROOTS, "audit", *(child for child, _ in _CHILDREN), "rollout_event"]):
        op.add_column(table, sa.Column("project_id", sa.Uuid(), server_default=_DEFAULT, nullable=False))
        op.alter_column(table, "project_id", server_default=None)
    op.add_column("operator_token", sa.Column("project_id", sa.Uuid(), nullable=True))
    for table in (*_ROOTS, "operator_token"):
        op.create_foreign_key(op.f(f"fk_{table}_project_id"), table, "project", ["project_id"], ["id"])
    _swap_keys(["project_id"])
    for table in _PARENTS:
        op.create_unique_constraint(op.f(f"uq_{table}_project_id_id"), table, ["project_id", "id"])
    for table, parent in _CHILDREN:
        column = _column(parent)
        op.drop_constraint(op.f(f"fk_{table}_{column}"), table)
        op.create_foreign_key(
            op.f(f"fk_{table}_project_id_{column}"),
            table,
            parent,
            ["project_id", column],
            ["project_id", "id"],
            ondelete="CASCADE" if (table, parent) in _WITH_PARENT else None,
        )
    op.create_foreign_key(
        op.f("fk_rollout_event_project_id_rollout_id"),
        "rollout_event",
        "rollout",
        ["project_id", "rollout_id"],
        ["project_id", "id"],
        ondelete="CASCADE",
    )
    _swap_indexes(["project_id"])
    op.create_index("ix_operator_token_project_id_id", "operator_token", ["project_id", "id"])
    op.create_table(
        "owned_blob",
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_owned_blob_digest_is_sha256")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_owned_blob_project_id")),
        sa.PrimaryKeyConstraint("project_id", "digest", name=op.f("pk_owned_blob")),
    )
    op.execute(_OWNED_BEFORE)
    op.execute(_OWN)
    for table in _NAMING:
        op.execute(f"CREATE TRIGGER {table}_own AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION own_blobs()")
    op.execute(_CHAIN_NOW)
    op.execute(_TEXT_NOW)
    op.execute(_VERSION.format(of_project="project_id = NEW.project_id AND "))
    op.execute(_DEVICE.format(project=", project_id", project_new=", NEW.project_id", project_old=", OLD.project_id"))
    op.execute(_RETIRED.format(of_project="project_id = NEW.project_id AND "))


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute(
        "DO $$ BEGIN IF EXISTS (SELECT FROM project WHERE name <> 'default') THEN "
        "RAISE EXCEPTION 'the schema before projects has no place for more than one'; END IF; END $$"
    )
    op.execute(_VERSION.format(of_project=""))
    op.execute(_DEVICE.format(project="", project_new="", project_old=""))
    op.execute(_RETIRED.format(of_project=""))
    op.execute(_TEXT_BEFORE)
    op.execute(_CHAIN_BEFORE)
    for table in _NAMING:
        op.execute(f"DROP TRIGGER {table}_own ON {table}")
    op.execute("DROP FUNCTION own_blobs()")
    op.drop_table("owned_blob")
    op.drop_index("ix_operator_token_project_id_id", "operator_token")
    op.drop_constraint(op.f("fk_rollout_event_project_id_rollout_id"), "rollout_event")
    for table, parent in _CHILDREN:
        column = _column(parent)
        op.drop_constraint(op.f(f"fk_{table}_project_id_{column}"), table)
        op.create_foreign_key(
            op.f(f"fk_{table}_{column}"),
            table,
            parent,
            [column],
            ["id"],
            ondelete="CASCADE" if (table, parent) in _WITH_PARENT else None,
        )
    for table in _PARENTS:
        op.drop_constraint(op.f(f"uq_{table}_project_id_id"), table)
    op.execute("ALTER TABLE audit DISABLE TRIGGER USER")
    op.execute(_DROP_SERVERS)
    op.execute("ALTER TABLE audit ENABLE TRIGGER USER")
    _swap_keys([])
    _swap_indexes([])
    for table in (*_ROOTS, "operator_token"):
        op.drop_constraint(op.f(f"fk_{table}_project_id"), table)
    for table in dict.fromkeys([*_ROOTS, "audit", *(child for child, _ in _CHILDREN), "rollout_event"]):
        op.drop_column(table, "project_id")
    op.drop_column("operator_token", "project_id")
    op.drop_table("project")


def _column(parent: str) -> str:
    return {"draft_metadata": "draft_id", "saved_group": "group_id"}.get(parent, f"{parent}_id")


def _swap_keys(first: list[str]) -> None:
    """Have keys begin with these columns."""
    for table, before, columns in _KEYS:
        primary = before.startswith("pk_")
        nulls: dict[str, Any] = {"postgresql_nulls_not_distinct": True} if columns[-1] == "number" else {}
        named = f"uq_{table}_{'_'.join(['project_id', *columns])}"
        old, new = (before, named) if first else (named, before)
        op.drop_constraint(op.f(before if primary else old), table)
        if primary:
            op.create_primary_key(op.f(before), table, [*first, *columns])
        else:
            op.create_unique_constraint(op.f(new), table, [*first, *columns], **nulls)


def _swap_indexes(first: list[str]) -> None:
    """Have unique indexes of names begin with these columns."""
    indexes: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("device", "uq_device_name", "revoked_at IS NULL", {}),
        ("rollout", "uq_rollout_name", "state <> 'aborted'", {}),
        (
            "operator_token",
            "uq_operator_token_live_name",
            "revoked_at IS NULL",
            {"postgresql_nulls_not_distinct": True} if first else {},
        ),
    )
    for table, name, where, nulls in indexes:
        op.drop_index(name, table)
        op.create_index(name, table, [*first, "name"], unique=True, postgresql_where=sa.text(where), **nulls)
