"""What models, releases and datasets look like in requests and answers."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sprat_server.registry.models import Dataset, Model, Release, UpdateFile
from sprat_shared.trust.targets import Shares, update_path
from sprat_shared.wire.tensors import DTYPES

_EXAMPLE_DIGEST = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

DEFAULT_KEEP: Final = 0.95
"""Share of the full retrain's gain that an update keeps where the request names no target."""

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]


class Recipe(BaseModel):
    """The importable factory that gives the trainable module, and its configuration."""

    model_config = ConfigDict(extra="forbid")

    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", max_length=300)]
    config: dict[str, Any] = {}


Shape = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=16)]
Dtype = Annotated[str, Field(pattern=f"^({'|'.join(DTYPES)})$")]
InputName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=100)]


class NamedInput(BaseModel):
    """Name, shape (with its batch axis) and type (safetensors code) of one of several inputs."""

    model_config = ConfigDict(extra="forbid")

    name: InputName
    shape: Shape
    dtype: Dtype = "F32"


class Example(BaseModel):
    """What a model takes: `shape` and `dtype` of its input, or `inputs` in the order of the arguments."""

    model_config = ConfigDict(extra="forbid")

    shape: Shape | None = None
    dtype: Dtype = "F32"
    inputs: Annotated[list[NamedInput], Field(min_length=1, max_length=32)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.shape is None) == (self.inputs is None):
            raise ValueError("say the shape of the one input, or all inputs by name")
        names = [one.name for one in self.inputs or []]
        if len(set(names)) != len(names):
            raise ValueError("two inputs have one name")
        return self

    @model_serializer(mode="wrap")
    def _as_asked(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said: dict[str, Any] = serialise(self)
        return {"inputs": said["inputs"]} if self.inputs is not None else {"shape": self.shape, "dtype": self.dtype}


class NewModel(BaseModel):
    """A model to be registered: from a recipe, or from ONNX alone (then not retrainable here)."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "name": "pcb-defects",
                    "recipe": {"factory": "acme_models.pcb:build", "config": {"width": 32}},
                    "weights": _EXAMPLE_DIGEST,
                    "graph": None,
                    "example": {"shape": [1, 1, 28, 28], "dtype": "F32"},
                }
            ]
        },
    )

    name: ModelName
    weights: Digest
    recipe: Recipe | None = None
    graph: Digest | None = None
    example: Example | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.recipe is None) == (self.graph is None):
            raise ValueError("give either a recipe, or the digest of an uploaded ONNX file as graph")
        return self


class ModelView(BaseModel):
    """A model."""

    id: UUID
    name: str
    recipe: dict[str, Any] | None
    example: dict[str, Any] | None
    latest: int | None
    created_at: datetime

    @classmethod
    def of(cls, model: Model, latest: int | None) -> Self:
        """Show this row; `latest` is the number of its newest release."""
        return cls(
            id=model.id,
            name=model.name,
            recipe=model.recipe,
            example=model.example,
            latest=latest,
            created_at=model.created_at,
        )


class UpdateView(BaseModel):
    """One update file of a release: from release `base` (null: full), its bytes, the target it is signed under."""

    base: int | None
    bytes: int
    blob: str
    target: str


class QuarantineView(BaseModel):
    """The rollout that a release halted; it goes out again only on a person's word."""

    rollout: UUID
    reason: str
    since: datetime


class SharesView(BaseModel):
    """That a release is a near copy of release `base` of its model, of weights `weights`, with layers of `donor`.

    `budget` is the largest share of answers that may differ from that release's, 0 to 1.
    """

    base: int
    weights: str
    donor: str
    budget: float

    @classmethod
    def of(cls, shares: Shares) -> Self:
        """Show what is signed."""
        return cls(base=shares.base, weights=shares.weights, donor=shares.donor, budget=shares.budget)


class ReleaseView(BaseModel):
    """One immutable, numbered state of a model; `local` names the tensors that each device computes itself.

    `shares` is there where it uses layers of another model: no release is made from it.
    `state` is `pending-signatures` until signed metadata name the release; no device can have it before. `quarantine`
    is there where its last rollout halted.
    """

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
    created_at: datetime
    published_at: datetime | None

    @classmethod
    def of(
        cls,
        model: Model,
        release: Release,
        updates: Sequence[UpdateFile],
        published_at: datetime | None,
        quarantine: QuarantineView | None = None,
    ) -> Self:
        """Show this row, the updates that lead to it, and since when it is published."""
        return cls(
            model=model.name,
            number=release.number,
            release_id=release.release_id,
            weights=release.weights_digest,
            weights_blob=release.weights_blob,
            graph=release.graph_digest,
            recipe_config=release.recipe_config,
            model_bytes=release.model_bytes,
            tensors=len(release.tensor_table),
            local=release.local_names,
            origin=release.origin,
            base=release.base_number,
            shares=None if release.shared is None else SharesView.of(release.shared),
            updates=[
                UpdateView(
                    base=update.base_number,
                    bytes=update.bytes,
                    blob=update.blob,
                    target=update_path(model.name, update.number, update.base_number),
                )
                for update in updates
            ],
            metrics=release.metrics,
            state="pending-signatures" if published_at is None else "published",
            quarantine=quarantine,
            created_at=release.created_at,
            published_at=published_at,
        )


class WayView(BaseModel):
    """The way from release `base` to release `to` with the fewest bytes, and how many devices take it.

    `devices` run `base`, or could go back to it where less leads on from there than from what they run.
    `way` is `none` (nothing is needed), `direct` (one update), `chain` (several) or `full`; `bytes` of all `files`
    together, `share` of the model's bytes; `path` names the signed targets in order.
    """

    base: int
    to: int
    devices: int
    way: Literal["none", "direct", "chain", "full"]
    files: int
    bytes: int
    share: float
    path: list[str]


class NewRelease(BaseModel):
    """A release to be made from weights that were trained elsewhere.

    Where tensors come, go or change their shapes, `config` says which keys of the recipe's config change, or, for a
    model from ONNX alone, `graph` is the digest of the uploaded new ONNX file.
    """

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"weights": _EXAMPLE_DIGEST, "base": None, "lossless": False}]}
    )

    weights: Digest
    base: Annotated[int | None, Field(ge=1)] = None
    lossless: bool = False
    config: dict[str, Any] | None = None
    graph: Digest | None = None


class CertifyRequest(BaseModel):
    """A question: by how much can a release be worse than another one of its model that it is a near copy of?

    Both are run on the inputs of a dataset that chose nothing about the release; labels are not used. `budget` is the
    largest bound that is wished, a share of the answers; `tolerance` is for outputs that are no classes.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"against": 2, "dataset": _EXAMPLE_DIGEST, "budget": 0.01}]},
    )

    against: Annotated[int, Field(ge=1, lt=2**31)]
    dataset: Digest
    budget: Annotated[float | None, Field(gt=0, lt=1)] = None
    tolerance: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None


class RetrainRequest(BaseModel):
    """A retrain to be done: on which data, from which release (null: the latest), and what its update must reach.

    One of `keep` (share of the full retrain's gain; 0.95 where none is given), `budget` (most bytes of the update) and
    `max_drop` (most that accuracy may be below the full retrain's: 0.005 is half a point) is given, all measured on
    the validation split. `retain` names a dataset of an old domain that is to be kept: it is replayed, and measured.
    `strategy` is how updates are made: `factors` trains low-rank factors on their grid, `subspace` a few coefficients
    that all matrices share, `full` cuts the full retrain afterwards, `auto` takes what gives the smallest file.
    `config` names the keys of the recipe's config that change with the release, such as a larger number of classes.
    With `local_statistics` each device computes the statistics of batch norms from its own inputs; a release made from
    one of that kind is of that kind.
    """

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"dataset": _EXAMPLE_DIGEST, "base": None, "keep": 0.95, "seed": 0}]},
    )

    dataset: Digest
    retain: Digest | None = None
    base: Annotated[int | None, Field(ge=1)] = None
    keep: Annotated[float | None, Field(gt=0, le=1)] = None
    budget: Annotated[int | None, Field(ge=1, le=1 << 40)] = None
    max_drop: Annotated[float | None, Field(ge=0, lt=1)] = None
    max_epochs: Annotated[int | None, Field(ge=1, le=10_000)] = None
    max_candidates: Annotated[int | None, Field(ge=1, le=100)] = None
    config: dict[str, Any] | None = None
    local_statistics: bool = False
    strategy: Literal["auto", "full", "factors", "subspace"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _two_domains(self) -> Self:
        if self.retain == self.dataset:
            raise ValueError("retain is the dataset itself; name one of the old domain, or none")
        return self

    @model_validator(mode="after")
    def _one_knob(self) -> Self:
        given = [name for name in ("keep", "budget", "max_drop") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of keep, budget and max_drop, not {' and '.join(given)}")
        if not given:
            self.keep = DEFAULT_KEEP
        return self


class NewDataset(BaseModel):
    """An uploaded file to be checked and kept as a dataset."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "line-3-august", "blob": _EXAMPLE_DIGEST}]}
    )

    name: Annotated[str, Field(min_length=1, max_length=200)]
    blob: Digest


class DatasetView(BaseModel):
    """A dataset; `splits` counts the samples of each split."""

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
    created_at: datetime

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Show this row."""
        return cls(
            digest=dataset.digest,
            name=dataset.name,
            bytes=dataset.bytes,
            format=dataset.format,
            samples=dataset.samples,
            input_shape=dataset.input_shape,
            input_dtype=dataset.input_dtype,
            classes=dataset.classes,
            splits={"train": dataset.train, "validation": dataset.validation, "test": dataset.test},
            given_split=dataset.given_split,
            created_at=dataset.created_at,
        )
