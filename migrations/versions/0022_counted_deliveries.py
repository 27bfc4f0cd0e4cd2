"""Expand: webhooks count how attempts to send ended, whichever worker made them."""

import sqlalchemy as sa
from alembic import op

revision = "0022_counted_deliveries"
down_revision = "0021_traced_jobs"

_COUNTS = ("delivered", "failed", "given_up")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.execute("SET LOCAL statement_timeout = '5s'")
    for count in _COUNTS:
        op.add_column("webhook", sa.Column(count, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.create_check_constraint(op.f("ck_webhook_attempts_count"), "webhook", "least(delivered, failed, given_up) >= 0")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '4s'")
    op.drop_constraint(op.f("ck_webhook_attempts_count"), "webhook")
    for count in _COUNTS:
        op.drop_column("webhook", count)
