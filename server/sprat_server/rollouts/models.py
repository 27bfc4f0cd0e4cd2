"""Tables of rollouts: the plan, its waves, and each device's part in it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, CheckConstraint, Double, ForeignKeyConstraint, Index, UniqueConstraint, func
from sqlalchemy.orm import Mapped, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, within
from sprat_shared.ids import new_id


class Rollout(ProjectOwned, Base):
    """The plan to bring devices to one release of a model."""

    __tablename__ = "rollout"
    __table_args__ = (
        within("model"),
        UniqueConstraint("project_id", "id"),
        ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        Index("uq_rollout_one_at_a_time", "model_id", unique=True, postgresql_where="state IN ('running', 'paused')"),
        CheckConstraint(
            "state IN ('draft', 'running', 'paused', 'halted', 'aborted', 'superseded', 'succeeded', 'undone')",
            name="state_is_known",
        ),
        CheckConstraint("started_at IS NOT NULL OR state IN ('draft', 'aborted')", name="what_runs_was_started"),
        CheckConstraint("(ended_at IS NULL) = (state IN ('draft', 'running', 'paused'))", name="what_ended_has_an_end"),
        CheckConstraint(
            "state NOT IN ('halted', 'aborted', 'superseded', 'undone') OR reason IS NOT NULL",
            name="stopping_has_a_reason",
        ),
        Index("uq_rollout_name", "project_id", "name", unique=True, postgresql_where="state <> 'aborted'"),
        CheckConstraint("name ~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$'", name="name_is_plain"),
        CheckConstraint("rule IN ('first_failure', 'evidence')", name="rule_is_known"),
        CheckConstraint("held_since IS NULL OR state = 'running'", name="only_what_runs_is_held"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    model_id: Mapped[UUID]
    number: Mapped[int]
    state: Mapped[str] = mapped_column(default="draft")
    whole_fleet: Mapped[bool]  # the cohort is every device at the start; else the devices named at creation
    name: Mapped[str | None]  # what people call it: of one rollout at a time, those aborted aside
    digest: Mapped[str | None] = mapped_column(index=True)  # of what was asked: the same request is recognised by it
    gates: Mapped[dict[str, Any]] = mapped_column(default=dict)  # what was asked: `gate_plan.GatePlan`
    plan: Mapped[dict[str, Any]] = mapped_column(default=dict)  # what else was asked: `plan.RolloutPlan`
    start_at: Mapped[datetime | None]  # it starts by itself then
    rule: Mapped[str | None]  # who decides, chosen at the start: the first failure, or evidence
    reason: Mapped[str | None]  # of the last pause, halt or abort
    held_since: Mapped[datetime | None]  # it runs, nobody is awaited, and its gate neither opens nor halts
    created_by: Mapped[str]
    creator_id: Mapped[str | None]  # of that actor: who may not approve it
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Approval(ProjectOwned, Base):
    """A second person's word that a rollout may start."""

    __tablename__ = "rollout_approval"
    __table_args__ = (within("rollout", ondelete="CASCADE"),)

    rollout_id: Mapped[UUID] = mapped_column(primary_key=True)
    actor_id: Mapped[str] = mapped_column(primary_key=True)  # each counts once
    actor: Mapped[str]
    reason: Mapped[str]
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class Wave(ProjectOwned, Base):
    """A slice of the cohort that gets the release together."""

    __tablename__ = "rollout_wave"
    __table_args__ = (
        within("rollout", ondelete="CASCADE"),
        CheckConstraint("ordinal >= 1", name="ordinal_counts_from_one"),
        CheckConstraint("reach ~ '^([1-9][0-9]*%?|where:.+|[^=]+=.+)$'", name="reach_is_amount_or_filter"),
        CheckConstraint("state IN ('waiting', 'open', 'succeeded', 'halted')", name="state_is_known"),
        CheckConstraint("(opened_at IS NULL) = (state = 'waiting')", name="waves_are_opened_before_they_end"),
        CheckConstraint("(ended_at IS NOT NULL) = (state IN ('succeeded', 'halted'))", name="what_ended_has_an_end"),
        Index("uq_rollout_wave_one_open", "rollout_id", unique=True, postgresql_where="state = 'open'"),
    )

    rollout_id: Mapped[UUID] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reach: Mapped[str]  # how much of the cohort is reached with this wave, or which devices: `reaches`
    state: Mapped[str] = mapped_column(default="waiting")
    opened_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class RolloutDevice(ProjectOwned, Base):
    """One device's part in a rollout."""

    __tablename__ = "rollout_device"
    __table_args__ = (
        within("rollout", ondelete="CASCADE"),
        within("device"),
        ForeignKeyConstraint(
            ["rollout_id", "ordinal"], ["rollout_wave.rollout_id", "rollout_wave.ordinal"], name="wave_exists"
        ),
        ForeignKeyConstraint(
            ["device_id", "exposed_by"], ["assignment.device_id", "assignment.counter"], name="exposure_exists"
        ),
        ForeignKeyConstraint(
            ["device_id", "returned_by"], ["assignment.device_id", "assignment.counter"], name="return_exists"
        ),
        Index("uq_rollout_device_exposure", "device_id", "exposed_by", unique=True),
        Index("uq_rollout_device_return", "device_id", "returned_by", unique=True),
        CheckConstraint(
            "state IN ('waiting', 'exposed', 'committed', 'failed', 'excused', 'left', 'control')",
            name="state_is_known",
        ),
        CheckConstraint("state <> 'control' OR num_nonnulls(ordinal, exposed_by) = 0", name="controls_are_not_reached"),
        CheckConstraint(
            "failure IN ('link', 'disk', 'busy', 'refused', 'rolled_back', 'silence', 'other')", name="failure_is_known"
        ),
        CheckConstraint("retries >= 0", name="retries_count"),
        CheckConstraint("retry_at IS NULL OR state = 'exposed'", name="who_ended_is_not_asked_again"),
        Index("ix_rollout_device_retry_at", "retry_at", postgresql_where="retry_at IS NOT NULL"),
        CheckConstraint("exposed_by IS NULL OR ordinal IS NOT NULL", name="exposure_needs_a_wave"),
        CheckConstraint("state <> 'waiting' OR exposed_by IS NULL", name="who_waits_is_not_exposed"),
        CheckConstraint(
            "state NOT IN ('exposed', 'failed', 'excused') OR exposed_by IS NOT NULL", name="exposure_is_assigned"
        ),
        CheckConstraint("returned_by > exposed_by", name="a_return_is_newer"),
        CheckConstraint(
            "returned_by IS NULL OR num_nonnulls(exposed_by, prefetched_by) > 0", name="a_return_needs_an_exposure"
        ),
        ForeignKeyConstraint(
            ["device_id", "prefetched_by"], ["assignment.device_id", "assignment.counter"], name="prefetch_exists"
        ),
        Index("uq_rollout_device_prefetch", "device_id", "prefetched_by", unique=True),
        CheckConstraint("prefetch IN ('asked', 'ready', 'failed')", name="prefetch_is_known"),
        CheckConstraint("(prefetch IS NULL) = (prefetched_by IS NULL)", name="prefetch_is_assigned"),
        CheckConstraint("exposed_by > prefetched_by", name="an_exposure_is_newer"),
        CheckConstraint("returned_by > prefetched_by", name="a_return_is_newer_than_a_prefetch"),
    )

    rollout_id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    ordinal: Mapped[int | None]  # its wave; NULL before the start, and for devices that no wave reaches
    state: Mapped[str] = mapped_column(default="waiting")
    previous: Mapped[int | None]  # the release it had, and goes back to
    exposed_by: Mapped[int | None]  # counter of the assignment that offered the release
    returned_by: Mapped[int | None]  # counter of the assignment that took it back
    failure: Mapped[str | None]  # class of its last failure in this rollout: `retries.Failure`
    retries: Mapped[int] = mapped_column(default=0)  # how often it was asked again
    retry_at: Mapped[datetime | None]  # it failed in a way that may pass, and is asked again then
    prefetch: Mapped[str | None]  # how far fetching ahead is; NULL: it was not asked for, or somebody else's was
    prefetched_by: Mapped[int | None]  # counter of the assignment that asked for it


class RolloutEvent(ProjectOwned, Base):
    """What a gate heard, in commit order: whom the release was offered to, each device's one word, what was forgiven.

    Texts of JSON, not jsonb: what is read back is what was written, to the last bit.
    """

    __tablename__ = "rollout_event"
    __table_args__ = (
        within("rollout", ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["rollout_id", "device_id"],
            ["rollout_device.rollout_id", "rollout_device.device_id"],
            ondelete="CASCADE",
            name="device_takes_part",
        ),
        CheckConstraint("position >= 1", name="position_counts_from_one"),
        CheckConstraint("kind IN ('exposed', 'ended', 'acknowledged')", name="kind_is_known"),
        CheckConstraint("(device_id IS NULL) = (kind = 'acknowledged')", name="devices_are_exposed_and_end"),
        Index("uq_rollout_event_once", "rollout_id", "device_id", "kind", unique=True),
    )

    rollout_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    device_id: Mapped[UUID | None]
    kind: Mapped[str]  # exposed; ended: it reported, was silent for too long, or left; acknowledged: by a person
    event: Mapped[dict[str, Any]] = mapped_column(JSON)  # as `evidence.event_of` reads it
    e_value: Mapped[float] = mapped_column(Double)  # of harm, over all games, after it
    at: Mapped[datetime] = mapped_column(server_default=func.now())


class RolloutGate(ProjectOwned, Base):
    """Where the gate of a rollout is: a row for each scope, and one without a scope for what belongs to none."""

    __tablename__ = "rollout_gate"
    __table_args__ = (within("rollout", ondelete="CASCADE"),)

    rollout_id: Mapped[UUID] = mapped_column(primary_key=True)
    scope: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[dict[str, Any]] = mapped_column(JSON)
