"""What people send to make and move rollouts."""

import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from sprat_server.rollouts.gate_plan import GatePlan
from sprat_server.rollouts.plan import RolloutPlan, windows_of
from sprat_server.rollouts.reaches import Growth
from sprat_server.rollouts.retries import Retries

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Grow(BaseModel):
    """Waves that grow by a factor, from a number of devices (left out: 10, in small fleets a tenth of them)."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    factor: Annotated[float, Field(ge=1.25, le=100)] = 2.0
    first: Annotated[int | None, Field(alias="from", ge=1, le=10**9)] = None


class NewRollout(BaseModel):
    """A rollout to be drafted.

    Waves reach so many devices, or so much of the cohort, counted from the start, or devices of a label; left out,
    they double.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"model": "pcb-defects", "release": 2},
                {"model": "pcb-defects", "release": 2, "waves": ["1", "50%", "100%"]},
                {
                    "name": "pcb-defects-2",
                    "model": "pcb-defects",
                    "release": 2,
                    "grow": {"factor": 3, "from": 20},
                    "control": "5%",
                    "in_flight": 200,
                    "approvals": 1,
                    "start_at": "2027-01-11T22:00:00Z",
                    "windows": [{"from": "22:00", "to": "05:00", "days": [0, 1, 2, 3, 4]}],
                    "retries": {"link": 5},
                    "gates": {"rule": "evidence", "policy": {"metrics": {"accuracy": {"tolerance": 0.01}}}},
                },
            ]
        },
    )

    name: Name | None = None
    model: Annotated[str, Field(max_length=63)]
    release: Annotated[int, Field(ge=1, lt=2**31)]
    waves: Annotated[list[str] | None, Field(min_length=1, max_length=100)] = None
    grow: Grow | None = None
    devices: Annotated[list[UUID] | None, Field(max_length=100_000)] = None
    where: Annotated[
        str | None, Field(max_length=2000, description="The devices for which this filter holds when it starts")
    ] = None
    group: Annotated[str | None, Field(max_length=63, description="The devices of this saved group, likewise")] = None
    gates: Annotated[
        dict[str, Any] | None,
        Field(description="Of its gate: rule (evidence or first_failure), silence_s, held_s, policy; docs/gates.md"),
    ] = None
    control: Annotated[
        str | None, Field(max_length=10, description="Share of the devices that is held back, such as 5%")
    ] = None
    in_flight: Annotated[
        int | None, Field(ge=1, le=10**9, description="Most devices that may be at work on it at a time")
    ] = None
    approvals: Annotated[int, Field(ge=0, le=10, description="Other people who must approve it first")] = 0
    start_at: Annotated[AwareDatetime | None, Field(description="It starts by itself then")] = None
    windows: Annotated[
        list[dict[str, Any]], Field(max_length=50, description="Stretches of the day (UTC) in which devices get it")
    ] = []
    retries: Annotated[
        dict[str, Any] | None,
        Field(description="How often link, disk and busy failures are tried again; first_wait_s before the first time"),
    ] = None
    supersede: Annotated[bool, Field(description="A running rollout of the model ends when this one starts")] = False
    override_quarantine: Annotated[
        str | None, Field(min_length=1, max_length=1000, description="Why a release that was halted may go out again")
    ] = None
    rehearsal: Annotated[
        bool, Field(description="Its devices are only played (sprat simulate fleet): no release is quarantined by it")
    ] = False

    @model_validator(mode="after")
    def _one_plan_of_waves(self) -> Self:
        if self.waves is not None and self.grow is not None:
            raise ValueError("say either waves or grow")
        return self

    @model_validator(mode="after")
    def _one_cohort(self) -> Self:
        if sum(said is not None for said in (self.devices, self.where, self.group)) > 1:
            raise ValueError("say which devices by one of devices, where and group")
        return self

    @property
    def plan(self) -> RolloutPlan:
        """How it is to be run.

        Raises:
            InvalidInput: a part of it cannot be.
        """
        growth = None if self.waves is not None else Growth()
        if self.grow is not None:
            growth = Growth(self.grow.first, self.grow.factor)
        return RolloutPlan(
            where=self.where,
            group=self.group,
            growth=growth,
            control=self.control,
            in_flight=self.in_flight,
            approvals=self.approvals,
            windows=windows_of(self.windows),
            retries=Retries() if self.retries is None else Retries.of(self.retries),
            supersede=self.supersede,
            override_quarantine=self.override_quarantine,
            rehearsal=self.rehearsal,
        )

    @property
    def gate_plan(self) -> GatePlan:
        """What is asked of its gate; InvalidInput where that is wrong."""
        return GatePlan.of(self.gates or {})

    def content(self) -> dict[str, Any]:
        """Return all that is asked as a JSON object, every default said, without the name.

        Raises:
            InvalidInput: a part of it cannot be.
        """
        devices = None if self.devices is None else sorted(str(one) for one in self.devices)
        return {
            "model": self.model,
            "release": self.release,
            "waves": self.waves,
            "devices": devices,
            "gates": self.gate_plan.as_json(),
            "plan": self.plan.as_json(),
            "start_at": None if self.start_at is None else _utc(self.start_at),
        }

    def digest(self) -> str:
        """Return the SHA-256 of the content: the same request has the same one."""
        text = json.dumps(self.content(), sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


class Reason(BaseModel):
    """Why something is done; kept in the audit log."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "line 3 is under maintenance"}]}
    )

    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class MaybeReason(BaseModel):
    """Why something is done, where a reason is not asked for."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"reason": "the line stands still tonight"}]}
    )

    reason: Annotated[str | None, Field(max_length=1000)] = None


class Resume(Reason):
    """Why a rollout goes on; `acknowledge`: the failures until now are known, and do not halt it again."""

    acknowledge: bool = False


class Abort(Reason):
    """Why a rollout ends; `keep`: devices that have committed the release keep it, the others go back."""

    keep: bool = False


class Apply(BaseModel):
    """A rollout as it should be: it is made unless it is there already."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"rollout": {"name": "pcb-defects-2", "model": "pcb-defects", "release": 2}, "start": True}]
        },
    )

    rollout: NewRollout
    start: Annotated[bool, Field(description="Start it too, if it is a draft that nothing holds back")] = False


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()
