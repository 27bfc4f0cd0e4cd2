"""Measures: what modules and links take, as devices say; links that nobody said are solved from these."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0028_measures"
down_revision = "0027_sites"

_LINK = ("up_mbit", "down_mbit", "delay_ms")

# What stood for what nobody said.
_ASSUMED = """
UPDATE site_device SET up_mbit = coalesce(up_mbit, 1000), down_mbit = coalesce(down_mbit, 1000),
  delay_ms = coalesce(delay_ms, 0)
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("SET LOCAL statement_timeout = '5s'")
    for column in _LINK:  # what is there stays: nobody knows any more whether it was said
        op.alter_column("site_device", column, nullable=True)
    op.create_table(
        "module_measure",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("tried_s", sa.Double(), nullable=True),
        sa.Column("runs", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("jsonb_typeof(runs) = 'object'", name=op.f("ck_module_measure_runs_are_an_object")),
        sa.CheckConstraint("memory_bytes > 0", name=op.f("ck_module_measure_memory_is_positive")),
        sa.CheckConstraint("tried_s >= 0", name=op.f("ck_module_measure_time_is_not_negative")),
        sa.ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        sa.ForeignKeyConstraint(
            ["project_id", "device_id"],
            ["device.project_id", "device.id"],
            name=op.f("fk_module_measure_project_id_device_id"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "model_id"],
            ["model.project_id", "model.id"],
            name=op.f("fk_module_measure_project_id_model_id"),
        ),
        sa.PrimaryKeyConstraint("device_id", "model_id", "number", name=op.f("pk_module_measure")),
    )
    op.create_index(op.f("ix_module_measure_model_id_number"), "module_measure", ["model_id", "number"])
    op.create_table(
        "link_measure",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("peer_id", sa.Uuid(), nullable=False),
        sa.Column("round_trip", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("sent", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("received", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("said_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("project_id", sa.Uuid(), nullable=False),
        sa.CheckConstraint("device_id <> peer_id", name=op.f("ck_link_measure_links_lead_elsewhere")),
        sa.CheckConstraint("jsonb_typeof(received) = 'object'", name=op.f("ck_link_measure_received_is_an_object")),
        sa.CheckConstraint("jsonb_typeof(round_trip) = 'object'", name=op.f("ck_link_measure_round_trip_is_an_object")),
        sa.CheckConstraint("jsonb_typeof(sent) = 'object'", name=op.f("ck_link_measure_sent_is_an_object")),
        sa.ForeignKeyConstraint(
            ["project_id", "device_id"],
            ["device.project_id", "device.id"],
            name=op.f("fk_link_measure_project_id_device_id"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id", "peer_id"],
            ["device.project_id", "device.id"],
            name=op.f("fk_link_measure_project_id_peer_id"),
        ),
        sa.PrimaryKeyConstraint("device_id", "peer_id", name=op.f("pk_link_measure")),
    )
    op.create_index(op.f("ix_link_measure_peer_id"), "link_measure", ["peer_id"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_table("link_measure")
    op.drop_table("module_measure")
    op.execute(_ASSUMED)
    for column in _LINK:
        op.alter_column("site_device", column, nullable=False)
