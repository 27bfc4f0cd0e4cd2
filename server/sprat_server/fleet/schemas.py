"""What devices, their reports and enrolment tokens look like in requests and answers."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from sprat_server.fleet.models import (
    Assignment,
    Device,
    DeviceReport,
    DeviceSlots,
    EnrolmentRequest,
    EnrolmentToken,
    PolicyRow,
    SavedGroup,
)
from sprat_shared.protocol.enrol import fingerprint
from sprat_shared.trust.policy import DevicePolicy


class NewEnrolmentToken(BaseModel):
    """A token with which devices may join."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"uses": 20, "expires_s": 3600, "group": "line-3"}]}
    )

    uses: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    expires_s: Annotated[float, Field(ge=1, le=366 * 86400)] = 3600
    group: Annotated[str | None, Field(min_length=1, max_length=100)] = None


class MadeEnrolmentToken(BaseModel):
    """An enrolment token just made, with its text: it is shown this once."""

    id: UUID
    token: str
    group: str
    uses: int
    expires_at: datetime

    @classmethod
    def of(cls, row: EnrolmentToken, text: str) -> Self:
        """Show this row and the text that is kept nowhere."""
        return cls(id=row.id, token=text, group=row.device_group, uses=row.uses, expires_at=row.expires_at)


class EnrolmentRequestView(BaseModel):
    """A device without a token that waits for an operator's word; its agent prints the same fingerprint."""

    id: UUID
    name: str
    fingerprint: str
    agent: str
    attributes: dict[str, str]
    address: str
    created_at: datetime
    expires_at: datetime
    rejected_at: datetime | None

    @classmethod
    def of(cls, row: EnrolmentRequest) -> Self:
        """Show this row."""
        return cls(
            id=row.id,
            name=row.name,
            fingerprint=fingerprint(row.public_key),
            agent=row.agent,
            attributes=row.attributes,
            address=row.address,
            created_at=row.created_at,
            expires_at=row.expires_at,
            rejected_at=row.rejected_at,
        )


class AcceptDevice(BaseModel):
    """Where a device that waited belongs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"group": "line-3"}]})

    group: Annotated[str, Field(min_length=1, max_length=100)] = "default"


class ReplaceDevice(BaseModel):
    """How long the token lives with which a device takes the place of another."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"expires_s": 3600}]})

    expires_s: Annotated[float, Field(ge=1, le=366 * 86400)] = 3600


class LeaveReason(BaseModel):
    """Why a device is refused from now on."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "stolen"}]})

    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class BulkLeave(BaseModel):
    """Which live devices leave the fleet: those that a filter or a saved group means, if they are as many as is said.

    `devices` is the count that the preview showed: where it is another by now, none leaves.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"where": 'labels.site = "hall-2"', "devices": 12, "reason": "hall 2 is closed"}]
        },
    )

    where: Annotated[str | None, Field(max_length=2000)] = None
    group: Annotated[str | None, Field(max_length=63)] = None
    devices: Annotated[int, Field(ge=0, le=1000)]
    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class AcceptDevices(BaseModel):
    """Which devices that wait may join, all or none, and the group that they belong to."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"requests": ["01a229d7-b64f-7047-a776-2de43df6354c"], "group": "line-a"}]},
    )

    requests: Annotated[list[UUID], Field(min_length=1, max_length=200)]
    group: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")] = "default"


class DeviceModelView(BaseModel):
    """One model on a device: what it should run, and what it said it runs; `local` names what it computed itself.

    Where `prefetch` is true, it should only have the assigned release at hand. `why` is what the assignment came of: a
    `rollout`, the `return` from one, its `enrolment`, a `prefetch`, a `step-down` from a level of what it shared, or a
    plan of its `site`.
    """

    model: str
    assigned: int | None
    assignment: int | None
    prefetch: bool
    why: str | None
    active: int | None
    previous: int | None
    weights: str | None
    local: list[str]
    outcome: str | None
    reported_at: datetime | None

    @classmethod
    def of(cls, model: str, wish: Assignment | None, slots: DeviceSlots | None, local: Sequence[str] = ()) -> Self:
        """Show these rows, either of which may be missing, and the local tensors of the release that is active."""
        return cls(
            model=model,
            assigned=None if wish is None else wish.number,
            assignment=None if wish is None else wish.counter,
            prefetch=wish is not None and wish.reason == "prefetch",
            why=None if wish is None else wish.reason,
            active=None if slots is None else slots.active,
            previous=None if slots is None else slots.previous,
            weights=None if slots is None else slots.weights,
            local=list(local),
            outcome=None if slots is None else slots.outcome,
            reported_at=None if slots is None else slots.reported_at,
        )


class DeviceView(BaseModel):
    """One agent; `fingerprint` is of its key."""

    id: UUID
    name: str
    group: str
    agent: str
    profile: str | None
    fingerprint: str
    attributes: dict[str, str]
    labels: dict[str, str]
    enrolled_at: datetime
    last_seen_at: datetime | None
    revoked_at: datetime | None
    models: list[DeviceModelView]

    @classmethod
    def of(cls, device: Device, models: Sequence[DeviceModelView]) -> Self:
        """Show this row and what is on the device."""
        return cls(
            id=device.id,
            name=device.name,
            group=device.device_group,
            agent=device.agent,
            profile=device.profile,
            fingerprint=fingerprint(device.public_key),
            attributes=device.attributes,
            labels=device.labels,
            enrolled_at=device.enrolled_at,
            last_seen_at=device.last_seen_at,
            revoked_at=device.revoked_at,
            models=list(models),
        )


class Preview(BaseModel):
    """Which devices are meant: a filter, or a saved group; a sample of at most `limit` of them is asked for."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"where": 'labels.site = "lab"', "limit": 5}]}
    )

    where: Annotated[str | None, Field(max_length=2000)] = None
    group: Annotated[str | None, Field(max_length=63)] = None
    limit: Annotated[int, Field(ge=0, le=200)] = 10


class BulkLabels(BaseModel):
    """Labels to be changed on all live devices that a filter or a saved group means: a text sets, null removes."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"where": 'name ~ "press-*"', "labels": {"site": "lab", "old": None}}]},
    )

    where: Annotated[str | None, Field(max_length=2000)] = None
    group: Annotated[str | None, Field(max_length=63)] = None
    labels: Annotated[dict[str, str | None], Field(min_length=1, max_length=64)]


class DeviceCount(BaseModel):
    """How many devices were meant."""

    devices: int


class PreviewView(BaseModel):
    """How many live devices are meant, of how many; some of them, by name."""

    count: int
    live: int
    sample: list[DeviceView]


class NewGroup(BaseModel):
    """A filter to be saved under a name (docs/targeting.md)."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "lab", "where": 'labels.site = "lab"'}]}
    )

    name: Annotated[str, Field(pattern="^[a-z0-9-]{1,63}$")]
    where: Annotated[str, Field(min_length=1, max_length=2000)]


class EditedGroup(BaseModel):
    """The filter that a group has from now on."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"where": 'labels.site != "lab"'}]})

    where: Annotated[str, Field(min_length=1, max_length=2000)]


class GroupView(BaseModel):
    """A saved group; `moves`: devices come and go by themselves, and are looked at once a minute."""

    id: UUID
    name: str
    where: str
    moves: bool
    devices: int
    created_by: str
    created_at: datetime
    edited_at: datetime | None

    @classmethod
    def of(cls, row: SavedGroup, devices: int) -> Self:
        """Show this row and how many devices are in it."""
        return cls(
            id=row.id,
            name=row.name,
            where=row.expression,
            moves=row.moves,
            devices=devices,
            created_by=row.created_by,
            created_at=row.created_at,
            edited_at=row.edited_at,
        )


class ReportView(BaseModel):
    """What a device said: the fields of the signed report, and when it came.

    Kind `assignment` is about an assignment; `trust` says what signed metadata it did not believe, and only why;
    `holdout` says how the samples drift that applications labelled there: counts and histograms, never samples;
    `facts` says what the device is; `site` how far it is with a plan of its site; `measures` what modules and links
    take there.
    """

    kind: Literal["assignment", "trust", "holdout", "facts", "site", "measures"]
    sequence: int
    received_at: datetime
    model: str | None = None
    assignment: int | None = None
    release: int | None = None
    outcome: str | None = None
    serving_release: int | None = None
    serving_weights: str | None = None
    error_code: str | None = None
    error_detail: str | None = None
    evidence: dict[str, Any] | None = None
    received_bytes: int | None = None
    seconds: float | None = None
    samples: int | None = None
    added: int | None = None
    classes: list[tuple[int, int]] | None = None
    others: int | None = None
    confidences: list[int] | None = None
    correct: list[int] | None = None
    attributes: dict[str, str] | None = None
    site: str | None = None
    plan: int | None = None
    state: str | None = None
    modules: list[dict[str, Any]] | None = None
    links: list[dict[str, Any]] | None = None
    agent: str

    @classmethod
    def of(cls, row: DeviceReport) -> Self:
        """Show this row; its body was checked when it came."""
        said: Mapping[str, Any] = json.loads(row.body)
        fields = {name: said[name] for name in cls.model_fields if name in said}
        return cls(**fields | {"sequence": row.sequence, "received_at": row.received_at})


class PolicyView(BaseModel):
    """The policy that holds for the devices of a model, or for those of one profile of it.

    `source` says where it comes from: it was set for the `profile`, for the `model`, or, where nothing was said, for
    none (`agent`: its own settings). `profiles` have one of their own.
    """

    model: str
    profile: str | None
    source: Literal["profile", "model", "agent"]
    policy: dict[str, Any]
    set_by: str | None
    set_at: datetime | None
    profiles: list[str]

    @classmethod
    def of(cls, model: str, profile: str | None, row: PolicyRow | None, profiles: Sequence[str]) -> Self:
        """Show what holds; None: nothing was said."""
        source: Literal["profile", "model", "agent"] = "agent"
        if row is not None:
            source = "model" if row.profile is None else "profile"
        return cls(
            model=model,
            profile=profile,
            source=source,
            policy={} if row is None else DevicePolicy.of(row.policy).as_json(),  # the database keeps no order
            set_by=None if row is None else row.set_by,
            set_at=None if row is None else row.set_at,
            profiles=list(profiles),
        )
