"""Tables of sites, their tasks, their plans (their numbers never fall, what was signed never changes), and measures."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Double, ForeignKeyConstraint, Index, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, in_project, within
from sprat_server.sites.states import Cause, MemberStatus, PlanStatus
from sprat_shared.ids import new_id


class SiteTask(ProjectOwned, Base):
    """A task that sites can be asked for. A plan has a copy, so that a task may be replaced while one serves."""

    __tablename__ = "site_task"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "name"),
        CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name="name_is_plain"),
        CheckConstraint("jsonb_typeof(graph) = 'object'", name="graph_is_an_object"),
        CheckConstraint("jsonb_typeof(fallback) = 'object'", name="fallback_is_an_object"),
        CheckConstraint("jsonb_typeof(test) = 'object'", name="test_is_an_object"),
        CheckConstraint("deadline_s > 0 AND deadline_s <= 3600", name="deadline_is_sane"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    graph: Mapped[dict[str, Any]] = mapped_column(JSONB)  # `TaskGraph.as_json`
    fallback: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # of the same inputs and outputs
    deadline_s: Mapped[float] = mapped_column(Double)
    test: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # {dataset, input, output}
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    replaced_at: Mapped[datetime | None]


class Site(ProjectOwned, Base):
    """Devices that run tasks together. One that was deleted stays, so that numbers of plans go on under its name."""

    __tablename__ = "site"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        Index("uq_site_name", "project_id", "name", unique=True, postgresql_where="deleted_at IS NULL"),
        CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name="name_is_plain"),
        CheckConstraint("hold_s > 0 AND switch_s > 0", name="times_are_positive"),
        CheckConstraint("pays_within_s > 0", name="horizon_is_positive"),
        CheckConstraint("uplink_mbit > 0", name="uplink_is_positive"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    hold_s: Mapped[float] = mapped_column(Double)  # until all members must be ready
    switch_s: Mapped[float] = mapped_column(Double)  # until nobody is awaited any more
    auto_repair: Mapped[bool]
    pays_within_s: Mapped[float] = mapped_column(Double, server_default="86400")  # over which gains are counted
    uplink_mbit: Mapped[float | None] = mapped_column(Double)  # from the server, shared by all; NULL: binds nothing
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]


class SiteDevice(ProjectOwned, Base):
    """A device of a site, and what placements may take of it. A device is of one site."""

    __tablename__ = "site_device"
    __table_args__ = (
        within("site"),
        within("device"),
        UniqueConstraint("device_id"),
        CheckConstraint("memory_bytes >= 0", name="memory_is_not_negative"),
        CheckConstraint("up_mbit > 0 AND down_mbit > 0 AND delay_ms >= 0", name="links_make_sense"),
        CheckConstraint("utilisation > 0 AND utilisation <= 1", name="utilisation_is_a_share"),
    )

    site_id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    memory_bytes: Mapped[int | None]  # NULL: nobody said; the link likewise
    up_mbit: Mapped[float | None] = mapped_column(Double)
    down_mbit: Mapped[float | None] = mapped_column(Double)
    delay_ms: Mapped[float | None] = mapped_column(Double)
    utilisation: Mapped[float] = mapped_column(Double)


class SitePlanRow(ProjectOwned, Base):
    """A plan of a site: which release of which module is where. Its file is made when it is applied."""

    __tablename__ = "site_plan"
    __table_args__ = (
        within("site"),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("site_id", "number"),
        Index(
            "uq_site_plan_under_way",
            "site_id",
            unique=True,
            postgresql_where="state IN ('holding', 'switching')",
        ),
        Index("uq_site_plan_serving", "site_id", unique=True, postgresql_where="state = 'serving'"),
        Index("uq_site_plan_draining", "site_id", unique=True, postgresql_where="state = 'draining'"),
        Index("uq_site_plan_improvement", "site_id", "parent", unique=True, postgresql_where="cause = 'improvement'"),
        CheckConstraint("number >= 1", name="number_is_positive"),
        CheckConstraint("digest ~ '^sha256:[0-9a-f]{64}$'", name="digest_is_sha256"),
        CheckConstraint(
            "state IN ('planned', 'holding', 'switching', 'serving', 'draining', 'retired', 'failed', 'aborted')",
            name="state_is_known",
        ),
        CheckConstraint(
            "(state = 'planned') = (applied_at IS NULL) AND num_nulls(applied_at, digest, bytes, expires_at) IN (0, 4)",
            name="what_was_applied_has_a_file",
        ),
        CheckConstraint(
            "(state IN ('holding', 'switching')) = (deadline_at IS NOT NULL)", name="what_is_under_way_has_a_deadline"
        ),
        CheckConstraint(
            "state NOT IN ('switching', 'serving', 'draining', 'retired') OR switched_at IS NOT NULL",
            name="what_served_was_switched_to",
        ),
        CheckConstraint(
            "(state IN ('retired', 'failed', 'aborted')) = (ended_at IS NOT NULL)", name="ends_have_a_time"
        ),
        CheckConstraint("state NOT IN ('failed', 'aborted') OR reason IS NOT NULL", name="failures_have_a_reason"),
        CheckConstraint("jsonb_typeof(asked) = 'object'", name="asked_is_an_object"),
        CheckConstraint("jsonb_typeof(content) = 'object'", name="content_is_an_object"),
        CheckConstraint(
            "cause IN ('asked', 'repair', 'improvement', 'renewal', 'step') AND (cause = 'asked') = (parent IS NULL)",
            name="cause_is_known",
        ),
        CheckConstraint("jsonb_typeof(improvement) = 'object'", name="improvement_is_an_object"),
        CheckConstraint("state = 'planned' OR wished_by IS NULL", name="what_is_wished_is_planned"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    site_id: Mapped[UUID]
    number: Mapped[int]
    state: Mapped[str] = mapped_column(default=PlanStatus.PLANNED.value)
    asked: Mapped[dict[str, Any]] = mapped_column(JSONB)  # `NewSitePlan`
    content: Mapped[dict[str, Any]] = mapped_column(JSONB)  # {modules, tasks, placement, tests}
    reason: Mapped[str | None]
    digest: Mapped[str | None]  # of its file, also the name of its blob
    bytes: Mapped[int | None]
    expires_at: Mapped[datetime | None]
    deadline_at: Mapped[datetime | None]  # of the phase under way
    made_by: Mapped[str]
    cause: Mapped[str] = mapped_column(default=Cause.ASKED.value, server_default=Cause.ASKED.value)
    parent: Mapped[int | None]  # number of the plan that this one repairs, improves, renews, or is a step to
    improvement: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # of a repair: what came of it
    wished_by: Mapped[str | None]  # who had it applied; it is once its steps have served
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    applied_at: Mapped[datetime | None]
    switched_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class SitePlanMember(ProjectOwned, Base):
    """A device of a plan that was applied: what is signed for it, and what it said."""

    __tablename__ = "site_plan_member"
    __table_args__ = (
        within("site_plan", "plan_id"),
        within("device"),
        Index(None, "device_id"),
        CheckConstraint("state IN ('asked', 'ready', 'serving', 'refused', 'left')", name="state_is_known"),
        CheckConstraint("phase IN ('hold', 'serve', 'drain')", name="phase_is_known"),
        CheckConstraint("octet_length(public_key) = 32", name="key_is_ed25519"),
    )

    plan_id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(default=MemberStatus.ASKED.value)
    phase: Mapped[str | None]  # NULL: nothing is signed for it any more
    address: Mapped[str | None]  # NULL: it holds no module, and only asks
    public_key: Mapped[bytes]  # over which its certificate was made
    error_code: Mapped[str | None]
    error_detail: Mapped[str | None]
    said_at: Mapped[datetime | None]


class SitePlanHost(ProjectOwned, Base):
    """A module of a plan that was applied on one of its hosts."""

    __tablename__ = "site_plan_host"
    __table_args__ = (
        within("site_plan", "plan_id"),
        within("device"),
        within("model"),
        ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        ForeignKeyConstraint(
            ["device_id", "fetched_by"], ["assignment.device_id", "assignment.counter"], name="fetched_by_exists"
        ),
        ForeignKeyConstraint(
            ["device_id", "kept_by"], ["assignment.device_id", "assignment.counter"], name="kept_by_exists"
        ),
        Index(None, "device_id", "fetched_by"),
        Index(None, "model_id"),
        CheckConstraint("num_nulls(to_fetch, starts_s, takes_s, due_at) IN (0, 4)", name="turns_are_planned"),
        CheckConstraint("due_at IS NULL OR (begun_at IS NULL) = (fetched_by IS NULL)", name="turns_begin_by_a_wish"),
    )

    plan_id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int]
    fetched_by: Mapped[int | None]  # the assignment that has it fetch the release; NULL: it has it, or waits its turn
    kept_by: Mapped[int | None]  # the one that has it run the release since the plan serves
    to_fetch: Mapped[int | None]  # bytes, by the cheapest way then; NULL: it had it, or was to have it anyway
    starts_s: Mapped[float | None] = mapped_column(Double)  # of its device's turn, since the plan was applied
    takes_s: Mapped[float | None] = mapped_column(Double)  # of that turn, with all that the device fetches
    due_at: Mapped[datetime | None]  # from then on the turn waits for nobody
    begun_at: Mapped[datetime | None]  # when its turn came
    fetched_at: Mapped[datetime | None]  # when it said that it has it


class ModuleMeasure(ProjectOwned, Base):
    """What a device said last of what a release takes there (`ModuleFigures`)."""

    __tablename__ = "module_measure"
    __table_args__ = (
        within("device"),
        within("model"),
        ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        Index(None, "model_id", "number"),
        CheckConstraint("memory_bytes > 0", name="memory_is_positive"),
        CheckConstraint("tried_s >= 0", name="time_is_not_negative"),
        CheckConstraint("jsonb_typeof(runs) = 'object'", name="runs_are_an_object"),
    )

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    memory_bytes: Mapped[int | None]
    tried_s: Mapped[float | None] = mapped_column(Double)
    runs: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # `Spread`, seconds
    said_at: Mapped[datetime]


class LinkMeasure(ProjectOwned, Base):
    """What a device said last of the way to another one (`LinkFigures`)."""

    __tablename__ = "link_measure"
    __table_args__ = (
        within("device"),
        within("device", "peer_id"),
        Index(None, "peer_id"),
        CheckConstraint("device_id <> peer_id", name="links_lead_elsewhere"),
        CheckConstraint("jsonb_typeof(round_trip) = 'object'", name="round_trip_is_an_object"),
        CheckConstraint("jsonb_typeof(sent) = 'object'", name="sent_is_an_object"),
        CheckConstraint("jsonb_typeof(received) = 'object'", name="received_is_an_object"),
    )

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    peer_id: Mapped[UUID] = mapped_column(primary_key=True)
    round_trip: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # `Spread`, seconds
    sent: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # likewise, seconds per byte
    received: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    said_at: Mapped[datetime]
