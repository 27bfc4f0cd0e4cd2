"""The table of plans to share layers: what was asked, what came of it, and what was made of that."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, in_project
from sprat_shared.ids import new_id

PLANNED: Final = "planned"
APPLIED: Final = "applied"
UNDONE: Final = "undone"
STALE: Final = "stale"


class SharingPlan(ProjectOwned, Base):
    """Which models use whose layers, certified. A plan is applied once."""

    __tablename__ = "sharing_plan"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(
            ["project_id", "refit_of"], ["sharing_plan.project_id", "sharing_plan.id"], name="refit_is_of_a_plan"
        ),
        CheckConstraint("state IN ('planned', 'applied', 'undone', 'stale')", name="state_is_known"),
        CheckConstraint("(applied_at IS NULL) = (applied IS NULL)", name="what_was_applied_is_said"),
        CheckConstraint("state NOT IN ('applied', 'undone') OR applied_at IS NOT NULL", name="applied_before_undone"),
        CheckConstraint("(undone_at IS NOT NULL) = (state = 'undone')", name="undone_plans_say_when"),
        CheckConstraint("state <> 'stale' OR stale_reason IS NOT NULL", name="stale_plans_say_why"),
        CheckConstraint("jsonb_typeof(asked) = 'object'", name="asked_is_an_object"),
        CheckConstraint("jsonb_typeof(result) = 'object'", name="result_is_an_object"),
        Index(None, "created_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    state: Mapped[str] = mapped_column(default=PLANNED)
    asked: Mapped[dict[str, Any]] = mapped_column(JSONB)
    result: Mapped[dict[str, Any]] = mapped_column(JSONB)
    applied: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # {releases, rollouts}
    refit_of: Mapped[UUID | None]  # the plan whose question this one answers anew
    stale_reason: Mapped[str | None]
    made_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    applied_at: Mapped[datetime | None]
    undone_at: Mapped[datetime | None]
