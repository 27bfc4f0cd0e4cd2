"""The director: signed metadata of each device, whose versions only rise; profiles; reports of what is not believed."""

import sqlalchemy as sa
from alembic import op

revision = "0010_director"
down_revision = "0009_local_statistics"

_VERSION = """
CREATE FUNCTION director_version_is_next() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  next bigint;
BEGIN
  SELECT coalesce(max(version), 0) + 1 INTO next
    FROM director_metadata WHERE device_id = NEW.device_id AND role = NEW.role;
  IF NEW.version <> next THEN
    RAISE EXCEPTION 'the next version of % of device % is %, not %', NEW.role, NEW.device_id, next, NEW.version
      USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END
$$
"""

# What is older serves as a dictionary only, and is forgotten; without the newest, versions could begin anew.
_NEWEST = """
CREATE FUNCTION director_newest_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (
    SELECT FROM director_metadata
      WHERE device_id = OLD.device_id AND role = OLD.role AND version > OLD.version
  ) THEN
    RAISE EXCEPTION 'version % of % is the newest of device % and stays', OLD.version, OLD.role, OLD.device_id
      USING ERRCODE = 'check_violation';
  END IF;
  RETURN OLD;
END
$$
"""

# From what a device holds follows its cheapest path, which the director signs.
_SLOTS = """
CREATE FUNCTION slots_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('sprat_poll', 'device=' || NEW.device_id);
  RETURN NULL;
END
$$
"""


_OF_AN_ASSIGNMENT = ("model_id", "assignment", "outcome")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.create_table(
        "director_metadata",
        sa.Column("device_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "role IN ('timestamp', 'snapshot', 'targets')", name=op.f("ck_director_metadata_role_is_a_devices")
        ),
        sa.CheckConstraint("expires_at > created_at", name=op.f("ck_director_metadata_expires_after_it_was_made")),
        sa.CheckConstraint("octet_length(body) > 0", name=op.f("ck_director_metadata_body_is_not_empty")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_director_metadata_version_is_positive")),
        sa.ForeignKeyConstraint(["device_id"], ["device.id"], name=op.f("fk_director_metadata_device_id")),
        sa.PrimaryKeyConstraint("device_id", "role", "version", name=op.f("pk_director_metadata")),
    )
    op.add_column("device", sa.Column("profile", sa.Text(), nullable=True))
    op.create_check_constraint(op.f("ck_device_profile_is_plain"), "device", "profile ~ '^[a-z0-9-]{1,63}$'")
    for column in _OF_AN_ASSIGNMENT:
        op.alter_column("report", column, nullable=True)
    op.create_check_constraint(
        op.f("ck_report_is_of_an_assignment_or_of_none"),
        "report",
        "num_nulls(model_id, assignment, outcome) IN (0, 3)",
    )
    for function in (_VERSION, _NEWEST, _SLOTS):
        op.execute(function)
    for name, when, function in (
        ("director_metadata_keep", "BEFORE UPDATE ON director_metadata", "refuse_change"),
        ("director_metadata_version", "BEFORE INSERT ON director_metadata", "director_version_is_next"),
        ("director_metadata_newest", "BEFORE DELETE ON director_metadata", "director_newest_stays"),
        ("device_slots_notify", "AFTER INSERT OR UPDATE OF active, previous ON device_slots", "slots_notify"),
    ):
        op.execute(f"CREATE TRIGGER {name} {when} FOR EACH ROW EXECUTE FUNCTION {function}()")
    # A new root, of either repository, concerns every device as a new timestamp of the image repository does.
    op.execute(
        "CREATE TRIGGER signed_metadata_notify_root AFTER INSERT ON signed_metadata FOR EACH ROW "
        "WHEN (NEW.role = 'root') EXECUTE FUNCTION metadata_notify()"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("DROP TRIGGER signed_metadata_notify_root ON signed_metadata")
    op.execute("DROP TRIGGER device_slots_notify ON device_slots")
    op.drop_constraint(op.f("ck_report_is_of_an_assignment_or_of_none"), "report")
    for column in _OF_AN_ASSIGNMENT:
        op.alter_column("report", column, nullable=False)
    op.drop_column("device", "profile")
    op.drop_table("director_metadata")
    for function in ("slots_notify", "director_newest_stays", "director_version_is_next"):
        op.execute(f"DROP FUNCTION {function}()")
