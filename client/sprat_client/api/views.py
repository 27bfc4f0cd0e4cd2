"""The shapes of the server's JSON, field for field; times are RFC 3339 text, sizes bytes, digests `sha256:<hex>`."""

from typing import Any, Literal, NotRequired, TypedDict

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
RolloutState = Literal["draft", "running", "paused", "halted", "aborted", "succeeded"]

JOB_ENDS: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})
ROLLOUT_ENDS: frozenset[str] = frozenset({"halted", "aborted", "succeeded"})


class BlobRef(TypedDict):
    """A blob the server holds: its digest and length in bytes."""

    digest: str
    length: int


class ModelView(TypedDict):
    """A named lineage of weights."""

    id: NotRequired[str]
    name: str
    recipe: NotRequired[dict[str, Any] | None]
    latest: NotRequired[int | None]
    created_at: NotRequired[str]


class DatasetView(TypedDict):
    """Labelled samples on the server, immutable."""

    digest: str
    name: str
    samples: NotRequired[int]
    created_at: NotRequired[str]


class UpdateView(TypedDict):
    """One update file of a release: from release `base` (None: full), its bytes on the wire."""

    base: int | None
    bytes: int
    target: str


class ReleaseView(TypedDict):
    """One immutable, numbered state of a model."""

    number: int
    release_id: str
    weights: str
    graph: str
    model_bytes: int
    updates: list[UpdateView]
    metrics: dict[str, Any] | None
    origin: str
    created_at: str


class ProgressView(TypedDict):
    """How far a job is: `fraction` in 0..1 or None where it is not known."""

    step: str | None
    fraction: float | None
    message: str | None


class JobView(TypedDict):
    """Work that the server does in a worker."""

    id: str
    kind: str
    state: JobState
    progress: ProgressView | None
    result: dict[str, Any] | None
    error: dict[str, Any] | str | None
    created_at: NotRequired[str]


class WaveView(TypedDict):
    """A slice of a rollout's devices that gets the release together."""

    ordinal: int
    state: Literal["waiting", "open", "succeeded", "halted"]
    devices: NotRequired[list[Any]]


class RolloutView(TypedDict):
    """The plan to bring devices to a release, and how far it is."""

    id: str
    model: str
    release: int
    state: RolloutState
    waves: list[WaveView]
    reason: NotRequired[str | None]
    created_at: NotRequired[str]


class DeviceView(TypedDict):
    """One agent of the fleet."""

    id: str
    name: NotRequired[str]
    group: NotRequired[str | None]
    last_seen_at: NotRequired[str | None]


class ReportView(TypedDict):
    """What a device said about one assignment, signed with its key."""

    id: NotRequired[str]
    outcome: NotRequired[str]
    reason: NotRequired[str | None]


class EnrolmentTokenView(TypedDict):
    """A token that lets devices enrol; `token` is shown once."""

    id: str
    token: str
    uses: int
    expires_at: NotRequired[str | None]


class TokenView(TypedDict):
    """An operator's token; `token` is there only in the answer that made it."""

    id: str
    name: str
    scopes: list[str]
    token: NotRequired[str]
    expires_at: NotRequired[str | None]


class AuditView(TypedDict):
    """One entry of the append-only audit log."""

    id: NotRequired[int]
    at: NotRequired[str]
    actor: NotRequired[str]
    action: NotRequired[str]
    subject: NotRequired[str]
