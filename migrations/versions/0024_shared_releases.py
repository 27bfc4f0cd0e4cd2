"""Expand: releases that use layers of another model say what they were made from; plans to share."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0024_shared_releases"
down_revision = "0023_kept_answers"

_KNOWN = "origin IN ('registered', 'retrained', 'created'{more})"
_MADE_FROM = (
    "shares IS NULL OR jsonb_typeof(shares) = 'object' AND shares ?& array['base', 'weights', 'donor', 'budget_ppm'] "
    "AND (shares ->> 'base')::integer = base_number"
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("SET LOCAL statement_timeout = '5s'")
    op.add_column("release", sa.Column("shares", postgresql.JSONB(none_as_null=True), nullable=True))
    op.drop_constraint(op.f("ck_release_origin_is_known"), "release")
    op.create_check_constraint(op.f("ck_release_origin_is_known"), "release", _KNOWN.format(more=", 'shared'"))
    op.create_check_constraint(
        op.f("ck_release_only_shared_ones_share"), "release", "(origin = 'shared') = (shares IS NOT NULL)"
    )
    op.create_check_constraint(op.f("ck_release_what_shares_was_made_from_its_base"), "release", _MADE_FROM)
    op.create_table(
        "sharing_plan",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("asked", postgresql.JSONB(), nullable=False),
        sa.Column("result", postgresql.JSONB(), nullable=False),
        sa.Column("applied", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("refit_of", sa.Uuid(), nullable=True),
        sa.Column("stale_reason", sa.Text(), nullable=True),
        sa.Column("made_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("applied_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint(
            "state IN ('planned', 'applied', 'undone', 'stale')", name=op.f("ck_sharing_plan_state_is_known")
        ),
        sa.CheckConstraint(
            "(applied_at IS NULL) = (applied IS NULL)", name=op.f("ck_sharing_plan_what_was_applied_is_said")
        ),
        sa.CheckConstraint(
            "state NOT IN ('applied', 'undone') OR applied_at IS NOT NULL",
            name=op.f("ck_sharing_plan_applied_before_undone"),
        ),
        sa.CheckConstraint(
            "(undone_at IS NOT NULL) = (state = 'undone')", name=op.f("ck_sharing_plan_undone_plans_say_when")
        ),
        sa.CheckConstraint(
            "state <> 'stale' OR stale_reason IS NOT NULL", name=op.f("ck_sharing_plan_stale_plans_say_why")
        ),
        sa.CheckConstraint("jsonb_typeof(asked) = 'object'", name=op.f("ck_sharing_plan_asked_is_an_object")),
        sa.CheckConstraint("jsonb_typeof(result) = 'object'", name=op.f("ck_sharing_plan_result_is_an_object")),
        sa.ForeignKeyConstraint(["project_id"], ["project.id"], name=op.f("fk_sharing_plan_project_id")),
        sa.ForeignKeyConstraint(
            ["project_id", "refit_of"], ["sharing_plan.project_id", "sharing_plan.id"], name="refit_is_of_a_plan"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sharing_plan")),
        sa.UniqueConstraint("project_id", "id", name=op.f("uq_sharing_plan_project_id_id")),
    )
    op.create_index(op.f("ix_sharing_plan_created_at"), "sharing_plan", ["created_at"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("sharing_plan")
    for name in ("what_shares_was_made_from_its_base", "only_shared_ones_share", "origin_is_known"):
        op.drop_constraint(op.f(f"ck_release_{name}"), "release")
    op.create_check_constraint(op.f("ck_release_origin_is_known"), "release", _KNOWN.format(more=""))
    op.drop_column("release", "shares")
