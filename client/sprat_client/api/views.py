"""The shapes of the server's JSON, field for field; times are RFC 3339 text, sizes bytes, digests `sha256:<hex>`."""

from typing import Any, Literal, TypedDict

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
RolloutState = Literal["draft", "running", "paused", "halted", "aborted", "superseded", "succeeded", "undone"]

JOB_ENDS: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
ROLLOUT_ENDS: frozenset[str] = frozenset({"halted", "aborted", "superseded", "succeeded", "undone"})


class BlobRef(TypedDict):
    """A blob the server holds: its digest and length in bytes."""

    digest: str
    length: int


class ModelView(TypedDict):
    """A named lineage of weights; `latest` is the number of its newest release."""

    id: str
    name: str
    recipe: dict[str, Any] | None
    example: dict[str, Any] | None
    latest: int | None
    created_at: str


class DatasetView(TypedDict):
    """Labelled samples on the server, immutable; `splits` counts the samples of each split."""

    digest: str
    name: str
    bytes: int
    format: str
    samples: int
    input_shape: list[int]
    input_dtype: str
    classes: int
    splits: dict[str, int]
    given_split: bool
    created_at: str


class UpdateView(TypedDict):
    """One update file of a release: from release `base` (None: full), its bytes on the wire."""

    base: int | None
    bytes: int
    blob: str
    target: str


class QuarantineView(TypedDict):
    """The rollout that a release halted."""

    rollout: str
    reason: str
    since: str


class ReleaseView(TypedDict):
    """One immutable, numbered state of a model."""

    model: str
    number: int
    release_id: str
    weights: str
    weights_blob: str
    graph: str
    recipe_config: dict[str, Any] | None
    model_bytes: int
    tensors: int
    local: list[str]
    origin: str
    base: int | None
    updates: list[UpdateView]
    metrics: dict[str, Any]
    state: Literal["pending-signatures", "published"]
    quarantine: QuarantineView | None
    created_at: str
    published_at: str | None


class WayView(TypedDict):
    """The way from release `base` to release `to` with the fewest bytes; so many `devices` take it."""

    base: int
    to: int
    devices: int
    way: Literal["none", "direct", "chain", "full"]
    files: int
    bytes: int
    share: float
    path: list[str]


class PolicyView(TypedDict):
    """The policy that holds for devices of a profile (None: of any), and for what it was set (`agent`: for nothing)."""

    model: str
    profile: str | None
    source: Literal["profile", "model", "agent"]
    policy: dict[str, Any]
    set_by: str | None
    set_at: str | None
    profiles: list[str]


class ProgressView(TypedDict):
    """How far a job is: `fraction` of the whole, 0 to 1."""

    step: str
    fraction: float
    message: str


class JobErrorView(TypedDict):
    """Why a job failed."""

    code: str
    message: str


class JobView(TypedDict):
    """Work that the server does in a worker."""

    id: str
    kind: str
    state: JobState
    args: dict[str, Any]
    requested_by: str
    attempt: int
    cancel_requested: bool
    progress: ProgressView
    result: dict[str, Any] | None
    error: JobErrorView | None
    created_at: str
    started_at: str | None
    ended_at: str | None


class RolloutDeviceView(TypedDict):
    """One device's part in a rollout."""

    device: str
    name: str
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
    """A slice of a rollout's devices that gets the release together."""

    ordinal: int
    reach: str
    state: Literal["waiting", "open", "succeeded", "halted"]
    opened_at: str | None
    ended_at: str | None
    devices: list[RolloutDeviceView]


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
    ready: int
    plan: dict[str, Any]
    approvals: list[ApprovalView]
    waits_for: list[str]
    waves: list[WaveView]
    unplaced: list[RolloutDeviceView]
    controls: list[RolloutDeviceView]
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


class DeviceModelView(TypedDict):
    """One model on a device: what it should run (`prefetch`: have at hand), and what it said it runs."""

    model: str
    assigned: int | None
    assignment: int | None
    prefetch: bool
    active: int | None
    previous: int | None
    weights: str | None
    local: list[str]
    outcome: str | None
    reported_at: str | None


class DeviceView(TypedDict):
    """One agent of the fleet; `fingerprint` is of its key."""

    id: str
    name: str
    group: str
    agent: str
    profile: str | None
    fingerprint: str
    attributes: dict[str, str]
    labels: dict[str, str]
    enrolled_at: str
    last_seen_at: str | None
    revoked_at: str | None
    models: list[DeviceModelView]


class EnrolmentRequestView(TypedDict):
    """A device without a token that waits for an operator's word."""

    id: str
    name: str
    fingerprint: str
    agent: str
    attributes: dict[str, str]
    address: str
    created_at: str
    expires_at: str
    rejected_at: str | None


class ReportView(TypedDict):
    """What a device said, signed with its key: about one assignment, or what signed metadata it did not believe.

    Of the latter kind, `trust`, what belongs to an assignment is None. A third kind, `holdout`, says how the samples
    drift that applications labelled there: counts by class, and histograms of confidence, ten bins from 0 to 1.
    """

    kind: Literal["assignment", "trust", "holdout"]
    sequence: int
    received_at: str
    model: str | None
    assignment: int | None
    release: int | None
    outcome: str | None
    serving_release: int | None
    serving_weights: str | None
    error_code: str | None
    error_detail: str | None
    evidence: dict[str, Any] | None
    received_bytes: int | None
    seconds: float | None
    samples: int | None
    added: int | None
    classes: list[list[int]] | None
    others: int | None
    confidences: list[int] | None
    correct: list[int] | None
    agent: str


class KeyView(TypedDict):
    """A public key; `holder` has the private half: `server`, or the name that was given with it."""

    keyid: str
    holder: str
    scheme: str


class RoleView(TypedDict):
    """One role: its newest published version, and who must sign the next one, from when on."""

    role: str
    version: int
    expires_at: str
    renew_at: str
    threshold: int
    keys: list[KeyView]
    online: bool
    waiting: int


class NeedView(TypedDict):
    """What a draft must have: `threshold` signatures by `keys`; `signed` are there."""

    by: str
    threshold: int
    missing: int
    keys: list[KeyView]
    signed: list[str]


class DraftView(TypedDict):
    """The next version of a role, which waits for signatures; `payload` is base64 of the metadata to sign."""

    digest: str
    role: str
    version: int
    release: int | None
    reason: str
    created_by: str
    created_at: str
    expires_at: str
    needs: list[NeedView]
    payload: str
    public_keys: dict[str, dict[str, Any]]


class CustodyView(TypedDict):
    """Every role, what waits for signatures, and the server's clock."""

    now: str
    roles: list[RoleView]
    waiting: list[DraftView]


class SignedView(TypedDict):
    """What came of a signature or a rotation: roles that were published, and what waits still."""

    published: list[str]
    waiting: list[DraftView]
