"""Tables of the registry. Rows here are facts: they are added once and never change (triggers of migration 0003)."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
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
from sprat_shared.trust.targets import LocalStatistics, Shares

_DIGEST = "~ '^sha256:[0-9a-f]{64}$'"


class Model(ProjectOwned, Base):
    """A named lineage of weights."""

    __tablename__ = "model"
    __table_args__ = (
        in_project(),
        UniqueConstraint("project_id", "id"),
        UniqueConstraint("project_id", "name"),
        CheckConstraint("name ~ '^[a-z0-9-]{1,63}$'", name="name_is_plain"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str]
    recipe: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True)
    )  # {factory, config}; NULL: from ONNX
    example: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # {shape, dtype} of one input
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Graph(Base):
    """An architecture: immutable ONNX without weights, named by the digest of its bytes."""

    __tablename__ = "graph"
    __table_args__ = (
        CheckConstraint(f"digest {_DIGEST}", name="digest_is_sha256"),
        CheckConstraint(f"probe_digest {_DIGEST}", name="probe_is_sha256"),
        CheckConstraint("bytes > 0", name="is_not_empty"),
    )

    digest: Mapped[str] = mapped_column(primary_key=True)  # also the name of its blob
    bytes: Mapped[int]
    probe_digest: Mapped[str | None]  # blob of the same graph with named activations
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Release(ProjectOwned, Base):
    """One immutable, numbered state of a model: graph and exact weights."""

    __tablename__ = "release"
    __table_args__ = (
        within("model"),
        UniqueConstraint("model_id", "number"),
        UniqueConstraint("model_id", "release_id"),
        ForeignKeyConstraint(["model_id", "base_number"], ["release.model_id", "release.number"], name="base_exists"),
        CheckConstraint("number >= 1", name="number_is_positive"),
        CheckConstraint("base_number < number", name="base_came_before"),
        CheckConstraint("(number = 1) = (base_number IS NULL)", name="only_the_first_has_no_base"),
        CheckConstraint("(number = 1) = (origin = 'registered')", name="only_the_first_is_registered"),
        CheckConstraint("origin IN ('registered', 'retrained', 'created', 'shared')", name="origin_is_known"),
        CheckConstraint("(origin = 'shared') = (shares IS NOT NULL)", name="only_shared_ones_share"),
        CheckConstraint(
            "shares IS NULL OR jsonb_typeof(shares) = 'object' AND shares ?& array['base', 'weights', 'donor', "
            "'budget_ppm'] AND (shares ->> 'base')::integer = base_number",
            name="what_shares_was_made_from_its_base",
        ),
        CheckConstraint(f"release_id {_DIGEST}", name="release_id_is_sha256"),
        CheckConstraint(f"weights_digest {_DIGEST}", name="weights_digest_is_sha256"),
        CheckConstraint(f"weights_blob {_DIGEST}", name="weights_blob_is_sha256"),
        CheckConstraint("model_bytes > 0", name="model_is_not_empty"),
        CheckConstraint("jsonb_typeof(tensor_table) = 'array'", name="tensor_table_is_a_list"),
        CheckConstraint("jsonb_typeof(recipe_config) = 'object'", name="recipe_config_is_an_object"),
        CheckConstraint("jsonb_typeof(local_tensors) = 'array'", name="local_tensors_are_a_list"),
        CheckConstraint("(local_tensors IS NULL) = (statistics_graph IS NULL)", name="local_tensors_have_a_graph"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    model_id: Mapped[UUID]
    number: Mapped[int]
    release_id: Mapped[str]  # sha256 of graph digest and weights digest
    graph_digest: Mapped[str] = mapped_column(ForeignKey("graph.digest"))
    weights_digest: Mapped[str]
    weights_blob: Mapped[str]  # safetensors file of the weights
    model_bytes: Mapped[int]  # sum over the tensors
    origin: Mapped[str]
    base_number: Mapped[int | None]
    metrics: Mapped[dict[str, Any]] = mapped_column(JSONB)
    tensor_table: Mapped[list[Any]] = mapped_column(JSONB)  # [[name, dtype, [dims]], ...] in table order
    recipe_config: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True)
    )  # with which the model's recipe gives this release's module; NULL: the model's own
    local_tensors: Mapped[list[Any] | None] = mapped_column(
        JSONB(none_as_null=True)
    )  # indices in tensor_table of what each device computes itself; NULL: all is sent
    statistics_graph: Mapped[str | None] = mapped_column(ForeignKey("graph.digest"))  # from which it does
    shares: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True)
    )  # {base, weights, donor, budget_ppm}: a near copy that uses a donor's layers; NULL: a release by itself
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    @property
    def shared(self) -> Shares | None:
        """Of which release it is a near copy that shares layers; None of a release by itself."""
        return None if self.shares is None else Shares.of(self.shares)

    @property
    def local(self) -> LocalStatistics | None:
        """What each device computes itself; None where all is sent."""
        if self.local_tensors is None or self.statistics_graph is None:
            return None
        return LocalStatistics(graph=self.statistics_graph, tensors=tuple(self.local_tensors))

    @property
    def local_names(self) -> list[str]:
        """The names of those tensors."""
        return [self.tensor_table[index][0] for index in self.local_tensors or ()]


class Publication(ProjectOwned, Base):
    """The fact that signed metadata name a release: devices can have it since then. A release without it is pending."""

    __tablename__ = "publication"
    __table_args__ = (
        within("model"),
        ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
    )

    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    published_at: Mapped[datetime] = mapped_column(server_default=func.now())


class UpdateFile(ProjectOwned, Base):
    """One file that gives a release from its base, or from nothing (full)."""

    __tablename__ = "update_file"
    __table_args__ = (
        within("model"),
        ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        ForeignKeyConstraint(["model_id", "base_number"], ["release.model_id", "release.number"], name="base_exists"),
        UniqueConstraint("model_id", "number", "base_number", postgresql_nulls_not_distinct=True),
        Index(None, "blob"),
        CheckConstraint("base_number <> number", name="leads_somewhere"),
        CheckConstraint(f"blob {_DIGEST}", name="blob_is_sha256"),
        CheckConstraint("bytes > 0", name="is_not_empty"),
        CheckConstraint("wire >= 1", name="wire_version_is_positive"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    model_id: Mapped[UUID]
    number: Mapped[int]
    base_number: Mapped[int | None]  # NULL: full
    blob: Mapped[str]
    bytes: Mapped[int]
    wire: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class DirectBuild(ProjectOwned, Base):
    """What one update from an older release straight to a newer one takes: found out once, published if it pays."""

    __tablename__ = "direct_build"
    __table_args__ = (
        within("model"),
        ForeignKeyConstraint(["model_id", "number"], ["release.model_id", "release.number"], name="release_exists"),
        ForeignKeyConstraint(["model_id", "base_number"], ["release.model_id", "release.number"], name="base_exists"),
        CheckConstraint("base_number < number", name="leads_to_a_newer_release"),
        CheckConstraint(f"blob {_DIGEST}", name="blob_is_sha256"),
        CheckConstraint("bytes > 0", name="is_not_empty"),
        CheckConstraint("(bytes IS NULL) = (blob IS NULL)", name="what_is_kept_has_a_length"),
    )

    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    base_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    blob: Mapped[str | None]  # NULL: there is none that takes fewer bytes than the ways there were
    bytes: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Dataset(ProjectOwned, Base):
    """Labelled samples, immutable, named by the digest of the file."""

    __tablename__ = "dataset"
    __table_args__ = (
        in_project(),
        PrimaryKeyConstraint("project_id", "digest"),
        CheckConstraint(f"digest {_DIGEST}", name="digest_is_sha256"),
        CheckConstraint("bytes > 0", name="is_not_empty"),
        CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="name_is_short"),
        CheckConstraint("format IN ('npz', 'safetensors')", name="format_is_known"),
        CheckConstraint("train >= 1 AND validation >= 1 AND test >= 1", name="every_split_has_samples"),
        CheckConstraint("samples = train + validation + test", name="every_sample_is_in_one_split"),
        CheckConstraint("classes >= 2", name="there_is_something_to_tell_apart"),
    )

    digest: Mapped[str]  # also the name of its blob
    name: Mapped[str]
    bytes: Mapped[int]
    format: Mapped[str]
    samples: Mapped[int]
    input_shape: Mapped[list[Any]] = mapped_column(JSONB)  # of one sample
    input_dtype: Mapped[str]
    classes: Mapped[int]  # largest label + 1
    train: Mapped[int]  # samples in each split
    validation: Mapped[int]
    test: Mapped[int]
    given_split: Mapped[bool]  # false: 70/15/15 by the seeded rule of registry.samples
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OwnedBlob(ProjectOwned, Base):
    """A blob that a project may read: it uploaded the bytes, or a fact of it names them (triggers of the migration)."""

    __tablename__ = "owned_blob"
    __table_args__ = (
        in_project(),
        PrimaryKeyConstraint("project_id", "digest"),
        CheckConstraint(f"digest {_DIGEST}", name="digest_is_sha256"),
    )

    digest: Mapped[str]
