"""Signed TUF metadata: each version once, for ever; versions rise by one; pollers hear of a new timestamp."""

import sqlalchemy as sa
from alembic import op

revision = "0004_publish"
down_revision = "0003_registry"

_VERSION = """
CREATE FUNCTION metadata_version_is_next() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  next bigint;
BEGIN
  SELECT coalesce(max(version), 0) + 1 INTO next
    FROM signed_metadata WHERE repository = NEW.repository AND role = NEW.role;
  IF NEW.version <> next THEN
    RAISE EXCEPTION 'the next version of %/% is %, not %', NEW.repository, NEW.role, next, NEW.version
      USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

# Every change ends with a new timestamp, so its version is all that a poller must know.
_NOTIFY = """
CREATE FUNCTION metadata_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('sprat_poll', 'timestamp=' || NEW.version);
  RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "signed_metadata",
        sa.Column("repository", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("repository IN ('image', 'director')", name=op.f("ck_signed_metadata_repository_is_known")),
        sa.CheckConstraint("role ~ '^[a-z0-9.-]{1,80}$'", name=op.f("ck_signed_metadata_role_is_plain")),
        sa.CheckConstraint("expires_at > created_at", name=op.f("ck_signed_metadata_expires_after_it_was_made")),
        sa.CheckConstraint("octet_length(body) > 0", name=op.f("ck_signed_metadata_body_is_not_empty")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_signed_metadata_version_is_positive")),
        sa.PrimaryKeyConstraint("repository", "role", "version", name=op.f("pk_signed_metadata")),
    )

    op.execute(_VERSION)
    op.execute(_NOTIFY)
    op.execute(
        "CREATE TRIGGER signed_metadata_keep BEFORE UPDATE OR DELETE ON signed_metadata "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER signed_metadata_version BEFORE INSERT ON signed_metadata "
        "FOR EACH ROW EXECUTE FUNCTION metadata_version_is_next()"
    )
    op.execute(
        "CREATE TRIGGER signed_metadata_notify AFTER INSERT ON signed_metadata FOR EACH ROW "
        "WHEN (NEW.repository = 'image' AND NEW.role = 'timestamp') EXECUTE FUNCTION metadata_notify()"
    )


def downgrade() -> None:
    op.drop_table("signed_metadata")
    op.execute("DROP FUNCTION metadata_notify()")
    op.execute("DROP FUNCTION metadata_version_is_next()")
