"""Operator tokens, and the audit log that the database itself chains and keeps append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0001_access"
down_revision = None

# What a record's digest covers, as text that does not depend on settings: times as seconds since 1970.
_DIGEST = """
CREATE FUNCTION audit_digest(r audit) RETURNS bytea LANGUAGE sql STABLE AS $$
  SELECT sha256(r.previous || convert_to(jsonb_build_array(
    'sprat-audit-1', r.seq, extract(epoch FROM r.at)::text, r.actor, r.actor_id, r.action, r.subject,
    r.before, r.after, r.request_id)::text, 'UTF8'))
$$
"""

# One writer at a time, until its transaction ends: the chain has one order, that of the commits.
_CHAIN = """
CREATE FUNCTION audit_chain() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  last audit;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtext('sprat.audit'));
  SELECT * INTO last FROM audit ORDER BY seq DESC LIMIT 1;
  NEW.seq := coalesce(last.seq, 0) + 1;
  NEW.at := clock_timestamp();
  NEW.previous := coalesce(last.digest, decode(repeat('00', 32), 'hex'));
  NEW.digest := audit_digest(NEW);
  RETURN NEW;
END
$$
"""

_REFUSE = """
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit log is append-only: % is refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$
"""


def upgrade() -> None:
    op.create_table(
        "operator_token",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_operator_token"),
        sa.ForeignKeyConstraint(["created_by"], ["operator_token.id"], name="fk_operator_token_created_by"),
        sa.CheckConstraint(
            "scope IN ('viewer', 'operator', 'releaser', 'admin')", name=op.f("ck_operator_token_scope_is_known")
        ),
        sa.CheckConstraint("octet_length(secret_sha256) = 32", name=op.f("ck_operator_token_secret_is_a_sha256")),
        sa.CheckConstraint(
            "expires_at IS NULL OR expires_at > created_at",
            name=op.f("ck_operator_token_tokens_expire_after_they_begin"),
        ),
    )
    op.create_index(
        "uq_operator_token_live_name",
        "operator_token",
        ["name"],
        unique=True,
        postgresql_where=sa.text("revoked_at IS NULL"),
    )
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("before", sa.dialects.postgresql.JSONB(), nullable=True),
        sa.Column("after", sa.dialects.postgresql.JSONB(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("previous", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
        sa.CheckConstraint(
            "octet_length(previous) = 32 AND octet_length(digest) = 32", name=op.f("ck_audit_links_are_sha256")
        ),
    )
    op.execute(_DIGEST)
    op.execute(_CHAIN)
    op.execute(_REFUSE)
    op.execute("CREATE TRIGGER audit_chain BEFORE INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_chain()")
    op.execute(
        "CREATE TRIGGER audit_keep BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION audit_refuse()"
    )
    op.execute("CREATE TRIGGER audit_whole BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()")


def downgrade() -> None:
    op.execute("DROP FUNCTION audit_digest(audit)")
    op.drop_table("audit")
    op.execute("DROP FUNCTION audit_chain()")
    op.execute("DROP FUNCTION audit_refuse()")
    op.drop_table("operator_token")
