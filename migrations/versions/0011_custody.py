"""Custody of keys: drafts of metadata that wait for signatures, and since when signed metadata name a release."""

import sqlalchemy as sa
from alembic import op

revision = "0011_custody"
down_revision = "0010_director"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "publication",
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_publication_model_id")),
        sa.PrimaryKeyConstraint("model_id", "number", name=op.f("pk_publication")),
    )
    op.execute(
        "INSERT INTO publication (model_id, number, published_at) SELECT model_id, number, created_at FROM release"
    )
    op.execute(
        "CREATE TRIGGER publication_keep BEFORE UPDATE OR DELETE ON publication "
        "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.create_table(
        "draft_metadata",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "role ~ '^(root|targets|m[.][a-z0-9-]{1,63})$'", name=op.f("ck_draft_metadata_role_is_signed_by_people")
        ),
        sa.CheckConstraint("version >= 1", name=op.f("ck_draft_metadata_version_is_positive")),
        sa.CheckConstraint(
            "number IS NULL OR role LIKE 'm.%'", name=op.f("ck_draft_metadata_only_models_have_releases")
        ),
        sa.CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name=op.f("ck_draft_metadata_digest_is_sha256")),
        sa.CheckConstraint("char_length(reason) BETWEEN 1 AND 400", name=op.f("ck_draft_metadata_reason_is_short")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_draft_metadata")),
        sa.UniqueConstraint("digest", name=op.f("uq_draft_metadata_digest")),
        sa.UniqueConstraint(
            "role", "number", name=op.f("uq_draft_metadata_role_number"), postgresql_nulls_not_distinct=True
        ),
    )
    op.create_table(
        "draft_signature",
        sa.Column("draft_id", sa.Uuid(), nullable=False),
        sa.Column("keyid", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("char_length(keyid) BETWEEN 1 AND 128", name=op.f("ck_draft_signature_keyid_is_short")),
        sa.CheckConstraint("signature ~ '^[0-9a-f]+$'", name=op.f("ck_draft_signature_signature_is_hex")),
        sa.ForeignKeyConstraint(
            ["draft_id"], ["draft_metadata.id"], name=op.f("fk_draft_signature_draft_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("draft_id", "keyid", name=op.f("pk_draft_signature")),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("draft_signature")
    op.drop_table("draft_metadata")
    op.drop_table("publication")
