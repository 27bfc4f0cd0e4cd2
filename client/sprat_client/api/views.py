"""The shapes of the server's JSON, field for field; times are RFC 3339 text, sizes bytes, digests `sha256:<hex>`."""

from typing import Any, Literal, TypedDict

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]

JOB_ENDS: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})


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


class SharesView(TypedDict):
    """That a release is a near copy of another one of its model that uses a donor's layers."""

    base: int
    weights: str
    donor: str
    budget: float


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
    shares: SharesView | None
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


class DeviceModelView(TypedDict):
    """One model on a device: what it should run (`prefetch`: have at hand), and what it said it runs."""

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
    `facts` are the device's attributes; `site` says how far it is with a plan; `measures` what modules and links take.
    """

    kind: Literal["assignment", "trust", "holdout", "facts", "site", "measures"]
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
    attributes: dict[str, str] | None
    site: str | None
    plan: int | None
    state: str | None
    modules: list[dict[str, Any]] | None
    links: list[dict[str, Any]] | None
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
