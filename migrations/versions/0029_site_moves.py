"""What a plan of a site was made for, what came of improving a repair, and whose turn it is to fetch."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0029_site_moves"
down_revision = "0028_measures"

_SITE = {
    "horizon_is_positive": "pays_within_s > 0",
    "uplink_is_positive": "uplink_mbit > 0",
}
_PLAN = {
    "cause_is_known": (
        "cause IN ('asked', 'repair', 'improvement', 'renewal', 'step') AND (cause = 'asked') = (parent IS NULL)"
    ),
    "improvement_is_an_object": "jsonb_typeof(improvement) = 'object'",
    "what_is_wished_is_planned": "state = 'planned' OR wished_by IS NULL",
}
_HOST = {
    "turns_are_planned": "num_nulls(to_fetch, starts_s, takes_s, due_at) IN (0, 4)",
    "turns_begin_by_a_wish": "due_at IS NULL OR (begun_at IS NULL) = (fetched_by IS NULL)",
}
_CHECKS = {"site": _SITE, "site_plan": _PLAN, "site_plan_host": _HOST}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("SET LOCAL statement_timeout = '5s'")
    op.add_column("site", sa.Column("pays_within_s", sa.Double(), server_default=sa.text("86400"), nullable=False))
    op.add_column("site", sa.Column("uplink_mbit", sa.Double(), nullable=True))
    op.add_column("site_plan", sa.Column("cause", sa.Text(), server_default=sa.text("'asked'"), nullable=False))
    op.add_column("site_plan", sa.Column("parent", sa.BigInteger(), nullable=True))
    op.add_column("site_plan", sa.Column("improvement", postgresql.JSONB(none_as_null=True), nullable=True))
    op.add_column("site_plan", sa.Column("wished_by", sa.Text(), nullable=True))
    op.add_column("site_plan_host", sa.Column("to_fetch", sa.BigInteger(), nullable=True))
    op.add_column("site_plan_host", sa.Column("starts_s", sa.Double(), nullable=True))
    op.add_column("site_plan_host", sa.Column("takes_s", sa.Double(), nullable=True))
    op.add_column("site_plan_host", sa.Column("due_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("site_plan_host", sa.Column("begun_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("site_plan_host", sa.Column("fetched_at", sa.DateTime(timezone=True), nullable=True))
    for table, checks in _CHECKS.items():
        for name, condition in checks.items():
            op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, condition)
    op.create_index(
        "uq_site_plan_improvement",
        "site_plan",
        ["site_id", "parent"],
        unique=True,
        postgresql_where="cause = 'improvement'",
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_index("uq_site_plan_improvement", "site_plan")
    for table, checks in _CHECKS.items():
        for name in checks:
            op.drop_constraint(op.f(f"ck_{table}_{name}"), table)
    for table, columns in {
        "site_plan_host": ("to_fetch", "starts_s", "takes_s", "due_at", "begun_at", "fetched_at"),
        "site_plan": ("cause", "parent", "improvement", "wished_by"),
        "site": ("pays_within_s", "uplink_mbit"),
    }.items():
        for column in columns:
            op.drop_column(table, column)
