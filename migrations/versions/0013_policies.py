"""Policies of devices; pollers hear of a change."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013_policies"
down_revision = "0012_access_more"

# The director signs the policy with the assignment: a change concerns every device that may have the model.
_NOTIFY = """
CREATE FUNCTION policy_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('sprat_poll', 'policy=' || coalesce(NEW.model_id, OLD.model_id));
  RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "device_policy",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=True),
        sa.Column("policy", postgresql.JSONB(), nullable=False),
        sa.Column("set_by", sa.Text(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("profile ~ '^[a-z0-9-]{1,63}$'", name=op.f("ck_device_policy_profile_is_plain")),
        sa.CheckConstraint("jsonb_typeof(policy) = 'object'", name=op.f("ck_device_policy_policy_is_an_object")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_device_policy_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_policy")),
        sa.UniqueConstraint(
            "model_id", "profile", name=op.f("uq_device_policy_model_id_profile"), postgresql_nulls_not_distinct=True
        ),
    )
    op.execute(_NOTIFY)
    op.execute(
        "CREATE TRIGGER device_policy_notify AFTER INSERT OR UPDATE OR DELETE ON device_policy FOR EACH ROW "
        "EXECUTE FUNCTION policy_notify()"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("device_policy")
    op.execute("DROP FUNCTION policy_notify()")
