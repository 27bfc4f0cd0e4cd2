"""The config of its recipe, release by release: a head that has grown is a module of another config."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007_recipe_config"
down_revision = "0006_rollouts"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("release", sa.Column("recipe_config", postgresql.JSONB(), nullable=True))
    op.create_check_constraint(
        op.f("ck_release_recipe_config_is_an_object"), "release", "jsonb_typeof(recipe_config) = 'object'"
    )


def downgrade() -> None:
    op.drop_column("release", "recipe_config")
