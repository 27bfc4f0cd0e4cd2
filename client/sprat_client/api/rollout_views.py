"""What the server says of rollouts."""

from typing import Any, Literal, TypedDict

RolloutState = Literal["draft", "running", "paused", "halted", "aborted", "superseded", "succeeded", "undone"]

ROLLOUT_ENDS: frozenset[str] = frozenset({"halted", "aborted", "superseded", "succeeded", "undone"})


class RolloutDeviceView(TypedDict):
    """One device's part in a rollout."""

    device: str
    name: str
    wave: int | None
    state: Literal["waiting", "exposed", "committed", "failed", "excused", "left", "control"]
    previous: int | None
    exposed_by: int | None
    returned_by: int | None
    failure: str | None
    retries: int
    retry_at: str | None
    prefetch: Literal["asked", "ready", "failed"] | None


class ApprovalView(TypedDict):
    """A second person's word that a rollout may start."""

    by: str
    reason: str
    at: str


class WaveView(TypedDict):
    """A slice of a rollout's devices that gets the release together, and how many of them are in which state."""

    ordinal: int
    reach: str
    state: Literal["waiting", "open", "succeeded", "halted"]
    opened_at: str | None
    ended_at: str | None
    devices: int
    states: dict[str, int]


class RolloutView(TypedDict):
    """The plan to bring devices to a release, and how far it is; `plan` is how it is run."""

    id: str
    name: str | None
    model: str
    release: int
    state: RolloutState
    whole_fleet: bool
    reason: str | None
    rule: Literal["first_failure", "evidence"] | None
    exposed: int
    committed: int
    failed: int
    excused: int
    retrying: int
    prefetched: int
    fetching: int
    ready: int
    plan: dict[str, Any]
    approvals: list[ApprovalView]
    waits_for: list[str]
    held_since: str | None
    waves: list[WaveView]
    devices: int
    unplaced: int
    controls: int
    digest: str | None
    created_by: str
    created_at: str
    start_at: str | None
    started_at: str | None
    ended_at: str | None


class GateLineView(TypedDict):
    """One game of a gate against harm."""

    scope: str
    metric: str
    devices: int
    mean: float | None
    tolerance: float
    e_value: float
    halts_at: float | None


class ProofLineView(TypedDict):
    """What is proven of one metric."""

    metric: str
    required: bool
    proven: float
    reach: int | None
    tolerance: float
    e_value: float
    opens_at: float
    bound: float | None


class RatioLineView(TypedDict):
    """Whether silence is random over the segments of a kind."""

    kind: str
    e_value: float
    holds_at: float


class DoesView(TypedDict):
    """How devices do on the holdouts that their applications keep, since the rollout started."""

    devices: int
    reported: int
    samples: int
    accuracy: float | None


class PlannedWave(TypedDict):
    """A wave as it would be."""

    ordinal: int
    reach: str
    devices: int
    reached: int
    opens: str


class Change(TypedDict):
    """One value that would change."""

    field: str
    before: Any
    after: Any


class PlanView(TypedDict):
    """What a rollout would be, and what applying it would do."""

    model: str
    release: int
    rule: Literal["first_failure", "evidence"]
    devices: int
    controls: int
    starts: str | None
    waves: list[PlannedWave]
    unreached: int
    obstacles: list[str]
    notes: list[str]
    action: Literal["create", "unchanged", "replace", "conflict"]
    rollout: str | None
    changes: list[Change]


class AppliedView(TypedDict):
    """What applying a rollout did."""

    action: Literal["created", "unchanged", "replaced", "started"]
    rollout: RolloutView


class WhyView(TypedDict):
    """What the gate of a rollout says, and what it rests on."""

    rollout: str
    rule: Literal["first_failure", "evidence"] | None
    decides: bool
    decision: Literal["open", "hold", "halt"]
    reasons: list[str]
    exposed: int
    reported: int
    failed: int
    lost: int
    failures: dict[str, int]
    control: DoesView | None
    treated: DoesView | None
    next_reach: int | None
    reach: int
    e_value: float
    halts_at: float
    halted_after: int | None
    exposed_at_halt: int | None
    gates: list[GateLineView]
    proofs: list[ProofLineView]
    ratios: list[RatioLineView]
    would_change: list[str]
