"""Direct updates: what one update from an older release straight to a newer one takes, found out once."""

import sqlalchemy as sa
from alembic import op

revision = "0008_direct_builds"
down_revision = "0007_recipe_config"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "direct_build",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("base_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("blob", sa.Text(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("base_number < number", name=op.f("ck_direct_build_leads_to_a_newer_release")),
        sa.CheckConstraint("blob ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_direct_build_blob_is_sha256")),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_direct_build_is_not_empty")),
        sa.CheckConstraint("(bytes IS NULL) = (blob IS NULL)", name=op.f("ck_direct_build_what_is_kept_has_a_length")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_direct_build_model_id")),
        sa.ForeignKeyConstraint(
            ["model_id", "base_number"], ["release.model_id", "release.number"], name="base_exists"
        ),
        sa.ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        sa.PrimaryKeyConstraint("model_id", "number", "base_number", name=op.f("pk_direct_build")),
    )
    op.execute(
        "CREATE TRIGGER direct_build_keep BEFORE UPDATE OR DELETE ON direct_build "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )


def downgrade() -> None:
    op.drop_table("direct_build")
