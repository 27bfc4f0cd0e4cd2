"""Tables of the fleet. Counters never fall, reports and assignments never change (triggers of migration 0005).

A device's key changes only by a replacement that an operator allowed, and the old one is dead (migration 0012).
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    Double,
    ForeignKeyConstraint,
    Index,
    PrimaryKeyConstraint,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, in_project, within
from sprat_shared.ids import new_id


class EnrolmentToken(ProjectOwned, Base):
    """Lets a number of devices join until it expires. Only the hash of the secret is kept."""

    __tablename__ = "enrolment_token"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("token_hash"),
        CheckConstraint("octet_length(token_hash) = 32", name="hash_is_sha256"),
        CheckConstraint("uses >= 1 AND used BETWEEN 0 AND uses", name="is_not_used_more_often_than_allowed"),
        CheckConstraint("expires_at > created_at", name="expires_after_it_was_made"),
        CheckConstraint("char_length(device_group) BETWEEN 1 AND 100", name="group_is_short"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    token_hash: Mapped[bytes]
    device_group: Mapped[str]
    uses: Mapped[int]
    used: Mapped[int] = mapped_column(default=0)
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]


class Device(ProjectOwned, Base):
    """One agent, known by the public half of the key it made."""

    __tablename__ = "device"
    __table_args__ = (
        in_project(),
        within("enrolment_token"),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "public_key"),
        UniqueConstraint("token_hash"),
        Index("uq_device_name", "project_id", "name", unique=True, postgresql_where="revoked_at IS NULL"),
        CheckConstraint("octet_length(public_key) = 32", name="key_is_ed25519"),
        CheckConstraint("octet_length(token_hash) = 32", name="hash_is_sha256"),
        CheckConstraint("(token_hash IS NULL) = (token_expires_at IS NULL)", name="tokens_expire"),
        CheckConstraint("char_length(name) BETWEEN 1 AND 100", name="name_is_short"),
        CheckConstraint("assignment_counter >= 0 AND report_sequence >= 0", name="counters_count"),
        CheckConstraint("profile ~ '^[a-z0-9-]{1,63}$'", name="profile_is_plain"),
        CheckConstraint("jsonb_typeof(labels) = 'object'", name="labels_are_an_object"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]  # unique among devices that are not revoked
    device_group: Mapped[str]
    public_key: Mapped[bytes]
    token_hash: Mapped[bytes | None]  # of its newest bearer token; none until it asks for one
    token_expires_at: Mapped[datetime | None]
    agent: Mapped[str]
    profile: Mapped[str | None]  # the class of devices that it said it is of
    attributes: Mapped[dict[str, str]] = mapped_column(JSONB)  # what it says of itself
    labels: Mapped[dict[str, str]] = mapped_column(JSONB, default=dict)  # what operators say of it
    enrolment_token_id: Mapped[UUID | None]  # None: by the queue
    enrolled_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[datetime | None]  # written in batches, seconds late
    revoked_at: Mapped[datetime | None]
    assignment_counter: Mapped[int] = mapped_column(default=0)  # of its newest assignment, over all models
    report_sequence: Mapped[int] = mapped_column(default=0)  # of its newest report


class Replacement(ProjectOwned, Base):
    """Binds an enrolment token to a device: whoever joins with it takes that device's place."""

    __tablename__ = "replacement"
    __table_args__ = (within("enrolment_token"), within("device"))

    enrolment_token_id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID]


class RetiredKey(ProjectOwned, Base):
    """A key that a device had before; nobody joins with it again."""

    __tablename__ = "retired_key"
    __table_args__ = (
        within("device"),
        PrimaryKeyConstraint("project_id", "public_key"),
        CheckConstraint("octet_length(public_key) = 32", name="key_is_ed25519"),
    )

    public_key: Mapped[bytes]
    device_id: Mapped[UUID]
    retired_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SpentAssertion(ProjectOwned, Base):
    """An assertion that a device got a token for: it counts once. Kept until it would be too old anyway."""

    __tablename__ = "spent_assertion"
    __table_args__ = (
        within("device"),
        Index(None, "expires_at"),
        CheckConstraint("char_length(jti) BETWEEN 1 AND 64", name="jti_is_short"),
    )

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    jti: Mapped[str] = mapped_column(primary_key=True)
    expires_at: Mapped[datetime]


class EnrolmentRequest(ProjectOwned, Base):
    """A device without a token that waits for an operator's word. Rejected, it is refused until its row expires."""

    __tablename__ = "enrolment_request"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "public_key"),
        Index(None, "expires_at"),
        CheckConstraint("octet_length(public_key) = 32", name="key_is_ed25519"),
        CheckConstraint("char_length(name) BETWEEN 1 AND 100", name="name_is_short"),
        CheckConstraint("expires_at > created_at", name="expires_after_it_was_made"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    public_key: Mapped[bytes]
    agent: Mapped[str]
    attributes: Mapped[dict[str, str]] = mapped_column(JSONB)
    address: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime]
    rejected_at: Mapped[datetime | None]


class Assignment(ProjectOwned, Base):
    """Which release a device should run of one model. The one with the largest counter holds.

    Of the reason `prefetch`: which one it should have at hand; what it runs is not touched.
    """

    __tablename__ = "assignment"
    __table_args__ = (
        within("device"),
        within("model"),
        ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        Index(None, "device_id", "model_id", "counter"),
        CheckConstraint("counter >= 1", name="counter_is_positive"),
        CheckConstraint(
            "reason IN ('rollout', 'return', 'enrolment', 'prefetch', 'step-down', 'site')", name="reason_is_known"
        ),
        CheckConstraint("number IS NOT NULL OR reason = 'return'", name="only_a_return_can_withdraw"),
    )

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    counter: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model_id: Mapped[UUID]
    number: Mapped[int | None]  # NULL: nothing is wished any more; the device had no release before
    reason: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DeviceReport(ProjectOwned, Base):
    """What a device said, as the very bytes that it signed, with the fields that are asked for.

    It is of an assignment, or of none: then it says what signed metadata the device did not believe.
    """

    __tablename__ = "report"
    __table_args__ = (
        within("device"),
        within("model"),
        ForeignKeyConstraint(
            ["device_id", "assignment"], ["assignment.device_id", "assignment.counter"], name="assignment_exists"
        ),
        CheckConstraint("sequence >= 1", name="sequence_is_positive"),
        CheckConstraint("num_nulls(model_id, assignment, outcome) IN (0, 3)", name="is_of_an_assignment_or_of_none"),
        CheckConstraint("octet_length(signature) = 64", name="signature_is_ed25519"),
        CheckConstraint(
            "outcome IN ('committed', 'refused', 'rolled_back', 'failed', 'returned', 'ready')", name="outcome_is_known"
        ),
    )

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    body: Mapped[bytes]
    signature: Mapped[bytes]
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())
    model_id: Mapped[UUID | None]
    assignment: Mapped[int | None]
    outcome: Mapped[str | None]
    serving_number: Mapped[int | None]
    serving_weights: Mapped[str | None]


class DeviceSlots(ProjectOwned, Base):
    """What a device holds of a model, as far as its reports say: the active slot and the one it can go back to."""

    __tablename__ = "device_slots"
    __table_args__ = (
        within("device"),
        within("model"),
        ForeignKeyConstraint(["model_id", "active"], ["release.model_id", "release.number"], name="active_exists"),
        ForeignKeyConstraint(["model_id", "previous"], ["release.model_id", "release.number"], name="previous_exists"),
        CheckConstraint("previous <> active", name="slots_differ"),
    )

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    active: Mapped[int | None]
    previous: Mapped[int | None]
    weights: Mapped[str | None]  # digest of what serves, computed by the device over its files
    outcome: Mapped[str]  # of its newest report
    reported_at: Mapped[datetime]


class PolicyRow(ProjectOwned, Base):
    """What is asked of the devices that have a model, or of those of one profile: that one is in the other's place."""

    __tablename__ = "device_policy"
    __table_args__ = (
        within("model"),
        UniqueConstraint("model_id", "profile", postgresql_nulls_not_distinct=True),
        CheckConstraint("profile ~ '^[a-z0-9-]{1,63}$'", name="profile_is_plain"),
        CheckConstraint("jsonb_typeof(policy) = 'object'", name="policy_is_an_object"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    model_id: Mapped[UUID]
    profile: Mapped[str | None]  # NULL: of every device whose profile has none of its own
    policy: Mapped[dict[str, Any]]
    set_by: Mapped[str]
    set_at: Mapped[datetime] = mapped_column(server_default=func.now())


class SavedGroup(ProjectOwned, Base):
    """A filter with a name, and with it the devices for which it holds, kept as they change."""

    __tablename__ = "saved_group"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "name"),
        CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name="name_is_plain"),
        CheckConstraint("char_length(expression) BETWEEN 1 AND 2000", name="expression_is_short"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    expression: Mapped[str]
    moves: Mapped[bool]  # devices may come and go without a word of theirs: upkeep looks
    created_by: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    edited_at: Mapped[datetime | None]


class SavedGroupMember(ProjectOwned, Base):
    """A device for which a saved group's filter holds."""

    __tablename__ = "saved_group_member"
    __table_args__ = (within("saved_group", "group_id", ondelete="CASCADE"), within("device"), Index(None, "device_id"))

    group_id: Mapped[UUID] = mapped_column(primary_key=True)
    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    since: Mapped[datetime] = mapped_column(server_default=func.now())


class DeviceDrift(ProjectOwned, Base):
    """What a device said last of how a model does there: on its labelled samples, and of how far its inputs moved."""

    __tablename__ = "device_drift"
    __table_args__ = (
        within("device"),
        within("model"),
        CheckConstraint("samples >= 0 AND correct BETWEEN 0 AND samples", name="counts_make_sense"),
        CheckConstraint("input_drift BETWEEN 0 AND 1", name="drift_is_a_share"),
        CheckConstraint("(said_at IS NULL) = (release IS NULL)", name="samples_are_of_a_release"),
        CheckConstraint("(moved_at IS NULL) = (input_drift IS NULL)", name="a_move_has_a_time"),
    )

    device_id: Mapped[UUID] = mapped_column(primary_key=True)
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    release: Mapped[int | None]  # number of the one that answered the samples
    samples: Mapped[int] = mapped_column(default=0)
    correct: Mapped[int] = mapped_column(default=0)
    said_at: Mapped[datetime | None]
    input_drift: Mapped[float | None] = mapped_column(Double)
    moved_at: Mapped[datetime | None]


class DriftPolicyRow(ProjectOwned, Base):
    """What is watched of a model in the field, and whether a person stopped what follows from it."""

    __tablename__ = "drift_policy"
    __table_args__ = (
        within("model"),
        CheckConstraint("(stopped_at IS NULL) = (stop_reason IS NULL)", name="stopping_has_a_reason"),
    )

    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    policy: Mapped[dict[str, Any]]
    set_by: Mapped[str]
    set_at: Mapped[datetime] = mapped_column(server_default=func.now())
    stopped_at: Mapped[datetime | None]
    stop_reason: Mapped[str | None]


class DriftEvent(ProjectOwned, Base):
    """What was done about drift, with the evidence that it rests on."""

    __tablename__ = "drift_event"
    __table_args__ = (
        within("model"),
        within("job"),
        within("rollout"),
        Index(None, "model_id", "at"),
        CheckConstraint("action IN ('notify', 'retrain')", name="action_is_known"),
        CheckConstraint("(action = 'retrain') = (job_id IS NOT NULL)", name="a_retrain_has_a_job"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    model_id: Mapped[UUID]
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    action: Mapped[str]
    why: Mapped[str]
    finding: Mapped[dict[str, Any]]  # `drift.Finding`
    dataset: Mapped[str | None]  # digest of what the retrain is on
    job_id: Mapped[UUID | None]
    release: Mapped[int | None]  # that the job made
    rollout_id: Mapped[UUID | None]
    outcome: Mapped[str | None]  # how it ended; NULL: it is under way
