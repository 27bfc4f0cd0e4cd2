"""Models, graphs, releases, updates, datasets: facts that the database lets nobody change."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003_registry"
down_revision = "0002_jobs"

_REFUSE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of % are facts: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'check_violation';
END
$$
"""

# The numbers of a model's releases are 1, 2, 3 …; the service allocates them under a lock on the model.
_NUMBER = """
CREATE FUNCTION release_number_is_next() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  next bigint;
BEGIN
  SELECT coalesce(max(number), 0) + 1 INTO next FROM release WHERE model_id = NEW.model_id;
  IF NEW.number <> next THEN
    RAISE EXCEPTION 'the next release of this model is %, not %', next, NEW.number USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

# At most one full update is held by a unique constraint; that there is one can only be seen when all is written.
_FULL = """
CREATE FUNCTION release_has_a_full_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (
    SELECT FROM update_file WHERE model_id = NEW.model_id AND number = NEW.number AND base_number IS NULL
  ) THEN
    RAISE EXCEPTION 'release % has no full update', NEW.number USING ERRCODE = 'check_violation';
  END IF;
  RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "graph",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("probe_digest", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_graph_digest_is_sha256")),
        sa.CheckConstraint("probe_digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_graph_probe_is_sha256")),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_graph_is_not_empty")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_graph")),
    )
    op.create_table(
        "model",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("recipe", postgresql.JSONB(), nullable=True),
        sa.Column("example", postgresql.JSONB(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name=op.f("ck_model_name_is_plain")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint("name", name=op.f("uq_model_name")),
    )
    op.create_table(
        "release",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("release_id", sa.Text(), nullable=False),
        sa.Column("graph_digest", sa.Text(), nullable=False),
        sa.Column("weights_digest", sa.Text(), nullable=False),
        sa.Column("weights_blob", sa.Text(), nullable=False),
        sa.Column("model_bytes", sa.BigInteger(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("base_number", sa.BigInteger(), nullable=True),
        sa.Column("metrics", postgresql.JSONB(), nullable=False),
        sa.Column("tensor_table", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(number = 1) = (origin = 'registered')", name=op.f("ck_release_only_the_first_is_registered")
        ),
        sa.CheckConstraint("jsonb_typeof(tensor_table) = 'array'", name=op.f("ck_release_tensor_table_is_a_list")),
        sa.CheckConstraint("origin IN ('registered', 'retrained', 'created')", name=op.f("ck_release_origin_is_known")),
        sa.CheckConstraint("release_id ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_release_release_id_is_sha256")),
        sa.CheckConstraint("weights_blob ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_release_weights_blob_is_sha256")),
        sa.CheckConstraint(
            "weights_digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_release_weights_digest_is_sha256")
        ),
        sa.CheckConstraint("(number = 1) = (base_number IS NULL)", name=op.f("ck_release_only_the_first_has_no_base")),
        sa.CheckConstraint("base_number < number", name=op.f("ck_release_base_came_before")),
        sa.CheckConstraint("model_bytes > 0", name=op.f("ck_release_model_is_not_empty")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_release_number_is_positive")),
        sa.ForeignKeyConstraint(["graph_digest"], ["graph.digest"], name=op.f("fk_release_graph_digest")),
        sa.ForeignKeyConstraint(
            ["model_id", "base_number"], ["release.model_id", "release.number"], name="base_exists"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_release_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
        sa.UniqueConstraint("model_id", "number", name=op.f("uq_release_model_id_number")),
        sa.UniqueConstraint("model_id", "release_id", name=op.f("uq_release_model_id_release_id")),
    )
    op.create_table(
        "update_file",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("base_number", sa.BigInteger(), nullable=True),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("wire", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("blob ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_update_file_blob_is_sha256")),
        sa.CheckConstraint("base_number <> number", name=op.f("ck_update_file_leads_somewhere")),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_update_file_is_not_empty")),
        sa.CheckConstraint("wire >= 1", name=op.f("ck_update_file_wire_version_is_positive")),
        sa.ForeignKeyConstraint(
            ["model_id", "base_number"], ["release.model_id", "release.number"], name="base_exists"
        ),
        sa.ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_update_file_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_update_file")),
        sa.UniqueConstraint(
            "model_id",
            "number",
            "base_number",
            name=op.f("uq_update_file_model_id_number_base_number"),
            postgresql_nulls_not_distinct=True,
        ),
    )
    op.create_index(op.f("ix_update_file_blob"), "update_file", ["blob"], unique=False)
    op.create_table(
        "dataset",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("input_shape", postgresql.JSONB(), nullable=False),
        sa.Column("input_dtype", sa.Text(), nullable=False),
        sa.Column("classes", sa.BigInteger(), nullable=False),
        sa.Column("train", sa.BigInteger(), nullable=False),
        sa.Column("validation", sa.BigInteger(), nullable=False),
        sa.Column("test", sa.BigInteger(), nullable=False),
        sa.Column("given_split", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_dataset_digest_is_sha256")),
        sa.CheckConstraint("format IN ('npz', 'safetensors')", name=op.f("ck_dataset_format_is_known")),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_dataset_is_not_empty")),
        sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name=op.f("ck_dataset_name_is_short")),
        sa.CheckConstraint("classes >= 2", name=op.f("ck_dataset_there_is_something_to_tell_apart")),
        sa.CheckConstraint("samples = train + validation + test", name=op.f("ck_dataset_every_sample_is_in_one_split")),
        sa.CheckConstraint(
            "train >= 1 AND validation >= 1 AND test >= 1", name=op.f("ck_dataset_every_split_has_samples")
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_dataset")),
    )

    op.execute(_REFUSE)
    op.execute(_NUMBER)
    op.execute(_FULL)
    for table in ("graph", "model", "release", "update_file", "dataset"):
        _keep(table)
    op.execute(
        "CREATE TRIGGER release_number BEFORE INSERT ON release FOR EACH ROW EXECUTE FUNCTION release_number_is_next()"
    )
    op.execute(
        "CREATE CONSTRAINT TRIGGER release_full AFTER INSERT ON release DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION release_has_a_full_update()"
    )


def downgrade() -> None:
    op.drop_table("dataset")
    op.drop_table("update_file")
    op.drop_table("release")
    op.drop_table("model")
    op.drop_table("graph")
    op.execute("DROP FUNCTION release_has_a_full_update()")
    op.execute("DROP FUNCTION release_number_is_next()")
    op.execute("DROP FUNCTION refuse_change()")


def _keep(table: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_keep BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
