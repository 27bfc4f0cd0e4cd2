"""Local statistics: which tensors of a release each device computes itself, and the graph from which it does."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009_local_statistics"
down_revision = "0008_direct_builds"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.add_column("release", sa.Column("local_tensors", postgresql.JSONB(), nullable=True))
    op.add_column("release", sa.Column("statistics_graph", sa.Text(), nullable=True))
    op.create_foreign_key(op.f("fk_release_statistics_graph"), "release", "graph", ["statistics_graph"], ["digest"])
    op.create_check_constraint(
        op.f("ck_release_local_tensors_are_a_list"), "release", "jsonb_typeof(local_tensors) = 'array'"
    )
    op.create_check_constraint(
        op.f("ck_release_local_tensors_have_a_graph"), "release", "(local_tensors IS NULL) = (statistics_graph IS NULL)"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_column("release", "statistics_graph")
    op.drop_column("release", "local_tensors")
