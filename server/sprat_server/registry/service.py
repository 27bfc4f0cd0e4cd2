"""Read and add facts of the registry. Callers own the transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import and_, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sprat_server.db.blobs import Blobs, BlobUnknown
from sprat_server.db.projects import project_of
from sprat_server.observe import outbox
from sprat_server.registry.models import (
    Dataset,
    DirectBuild,
    Graph,
    Model,
    OwnedBlob,
    Publication,
    Release,
    UpdateFile,
)
from sprat_shared.errors import Conflict, InvalidInput, NotFound
from sprat_shared.ids import check_model_name, parse_digest
from sprat_shared.trust.targets import WIRE_VERSION, LocalStatistics, Shares, update_path
from sprat_shared.wire.tensors import TensorTable
from sprat_shared.wire.tensors import release_id as release_id_of

Origin = Literal["registered", "retrained", "created", "shared"]
ReleaseState = Literal["pending-signatures", "published"]


@dataclass(frozen=True, slots=True)
class NewUpdate:
    """An update file that is about to be published.

    Attributes:
        base: number of the release it needs; None for a full update.
        blob: digest of the file.
        length: its bytes.
    """

    base: int | None
    blob: str
    length: int


def create_model(
    session: Session, *, name: str, recipe: Mapping[str, Any] | None, example: Mapping[str, Any] | None
) -> Model:
    """Add a model; its first release is to be added in the same transaction.

    Raises:
        InvalidInput: the name is not of the form of model names.
        Conflict: the name is taken.
    """
    check_name_is_free(session, name)
    model = Model(
        name=name,
        recipe=None if recipe is None else dict(recipe),
        example=None if example is None else dict(example),
    )
    session.add(model)
    session.flush()
    return model


def check_name_is_free(session: Session, name: str) -> None:
    """Raise unless a model of this name may be created.

    Raises:
        InvalidInput: the name is not of the form of model names.
        Conflict: the name is taken.
    """
    if session.scalar(select(Model.id).where(Model.name == check_model_name(name))):
        raise Conflict(f"a model called {name!r} exists already; choose another name", code="model.exists")


def get_model(session: Session, name: str) -> Model:
    """Return the model of this name.

    Raises:
        NotFound: there is none.
    """
    model = session.scalar(select(Model).where(Model.name == name))
    if model is None:
        raise NotFound(f"there is no model called {name[:80]!r}; `sprat model list` shows them", code="model.unknown")
    return model


def all_models(session: Session) -> list[Model]:
    """Return every model that has a release, in the order of making."""
    return list(session.scalars(select(Model).where(Model.id.in_(select(Release.model_id))).order_by(Model.id)))


def lock_model(session: Session, model: Model) -> None:
    """Let no other transaction add a release or a rollout of the model until this one ends.

    Rows that refer to the model can still be added: whoever signs metadata notes publications without this lock.
    """
    session.execute(select(Model.id).where(Model.id == model.id).with_for_update(key_share=True))


def get_release(session: Session, model: Model, number: int) -> Release:
    """Return `model@number`.

    Raises:
        NotFound: there is none.
    """
    release = session.scalar(select(Release).where(Release.model_id == model.id, Release.number == number))
    if release is None:
        raise NotFound(f"{model.name} has no release {number}", code="release.unknown")
    return release


def latest_release(session: Session, model: Model) -> Release:
    """Return the newest release of the model that devices can have and that shares no layers: what work goes on from.

    What waits for signatures does not count.

    Raises:
        NotFound: it has none.
    """
    release = newest_published(session, model)
    if release is None:
        raise NotFound(
            f"{model.name} has no release that is published; `sprat release list {model.name}` shows what waits for "
            "signatures",
            code="release.unknown",
        )
    return release


def newest_published(session: Session, model: Model) -> Release | None:
    """Return the newest release that signed metadata ever named and that shares no layers; None where there is none."""
    return session.scalar(
        select(Release)
        .join(Publication, and_(Publication.model_id == Release.model_id, Publication.number == Release.number))
        .where(Release.model_id == model.id, Release.shares.is_(None))
        .order_by(Release.number.desc())
        .limit(1)
    )


def newest_numbers(session: Session, models: Iterable[Model]) -> dict[UUID, int]:
    """Return for each of these models the number of its `newest_published` release; those without are left out."""
    newest = (
        select(Publication.model_id, func.max(Publication.number))
        .join(Release, and_(Publication.model_id == Release.model_id, Publication.number == Release.number))
        .where(Publication.model_id.in_([model.id for model in models]), Release.shares.is_(None))
        .group_by(Publication.model_id)
    )
    return dict(session.execute(newest).all())


def ladders(session: Session, model: Model, live: Iterable[int]) -> dict[int, int]:
    """Return the levels of the ladders to which some releases belong: number of the level -> of what it was made from.

    The levels of a ladder were made from one release with one donor and budget.
    """
    shared = session.scalars(select(Release).where(Release.model_id == model.id, Release.shares.is_not(None))).all()
    here = set(live)
    of_live = [release.shares for release in shared if release.number in here]
    return {one.number: one.shared.base for one in shared if one.shares in of_live and one.shared is not None}


def check_trainable(model: Model, release: Release) -> None:
    """Raise if a release shares layers: nothing goes on from it.

    Raises:
        Conflict: it does; the message says which one to take.
    """
    if release.shared is not None:
        raise Conflict(
            f"{model.name}@{release.number} shares layers with {release.shared.donor} and is no base for a release; "
            f"take {model.name}@{release.shared.base}, which it was made from",
            code="release.shared",
        )


def require_published(session: Session, model: Model, number: int) -> None:
    """Return if devices can have this release.

    Raises:
        Conflict: it waits for signatures.
    """
    if session.get(Publication, (model.id, number)) is None:
        raise Conflict(
            f"{model.name}@{number} waits for signatures, so no device can have it; see: "
            f"sprat release sign {model.name}@{number} --help",
            code="release.pending",
        )


def state_of(session: Session, release: Release) -> ReleaseState:
    """Return whether devices can have a release, or it waits for signatures."""
    there = session.get(Publication, (release.model_id, release.number))
    return "pending-signatures" if there is None else "published"


def publications(session: Session, model: Model) -> dict[int, datetime]:
    """Return since when each release of a model is published; those that wait for signatures are left out."""
    rows = session.execute(select(Publication.number, Publication.published_at).where(Publication.model_id == model.id))
    return dict(rows.all())


def pending_releases(session: Session, model: Model) -> list[int]:
    """Return the numbers of the releases that wait for signatures, rising."""
    published = select(Publication.number).where(Publication.model_id == model.id)
    waiting = select(Release.number).where(Release.model_id == model.id, Release.number.not_in(published))
    return list(session.scalars(waiting.order_by(Release.number)))


def mark_published(session: Session, name: str, paths: Iterable[str]) -> None:
    """Note that signed metadata name these target paths of a model: releases among them are published from now on."""
    model = session.scalar(select(Model).where(Model.name == name))
    if model is None:
        return
    named = set(paths)
    published = [one for one in pending_releases(session, model) if update_path(name, one, None) in named]
    session.add_all(Publication(model_id=model.id, number=number) for number in published)
    session.flush()
    for number in published:
        outbox.tell(session, "release.published", f"release:{name}@{number}", {"model": name, "release": number})


def ensure_graph(session: Session, *, digest: str, length: int, probe: str | None) -> Graph:
    """Return the graph of this digest, added if it is new.

    Args:
        session: the caller's transaction.
        digest: sha256 of the ONNX bytes.
        length: their number.
        probe: digest of the probe graph's bytes, where there is one.
    """
    graph = session.get(Graph, digest)
    if graph is None:
        graph = Graph(digest=digest, bytes=length, probe_digest=probe)
        session.add(graph)
        session.flush()
    return graph


def add_release(
    session: Session,
    *,
    model: Model,
    graph: Graph,
    weights_blob: str,
    table: TensorTable,
    weights_digest: str,
    updates: Sequence[NewUpdate],
    metrics: Mapping[str, Any],
    origin: Origin,
    base: int | None,
    recipe_config: Mapping[str, Any] | None = None,
    local: LocalStatistics | None = None,
    shares: Shares | None = None,
) -> Release:
    """Add the next release of a model with its updates; the number is allocated under a lock on the model.

    Without a `recipe_config` of its own it has the base's.

    Raises:
        Conflict: a release of the model has exactly this graph and these weights already.
        InvalidInput: there is not exactly one full update, or two updates from one base.
        NotFound: a base does not exist.
    """
    bases = [update.base for update in updates]
    if bases.count(None) != 1 or len(set(bases)) != len(bases):
        raise InvalidInput(f"a release takes exactly one full update and at most one from each base, got {bases}")
    parse_digest(weights_digest)
    lock_model(session, model)
    identity = release_id_of(graph.digest, weights_digest)
    same = select(Release.number).where(Release.model_id == model.id, Release.release_id == identity)
    if (number := session.scalar(same)) is not None:
        raise Conflict(
            f"{model.name}@{number} has exactly this graph and these weights already; there is nothing to release",
            code="release.exists",
        )
    for needed in {base, *bases}:
        if needed is not None:
            get_release(session, model, needed)
    if recipe_config is None and base is not None:
        recipe_config = get_release(session, model, base).recipe_config
    newest = session.scalar(select(func.max(Release.number)).where(Release.model_id == model.id)) or 0
    release = Release(
        model_id=model.id,
        number=newest + 1,
        release_id=identity,
        graph_digest=graph.digest,
        weights_digest=weights_digest,
        weights_blob=weights_blob,
        model_bytes=sum(spec.nbytes for spec in table.specs),
        origin=origin,
        base_number=base,
        metrics=dict(metrics),
        tensor_table=[[spec.name, spec.dtype, list(spec.shape)] for spec in table.specs],
        recipe_config=None if recipe_config is None else dict(recipe_config),
        local_tensors=None if local is None else list(local.tensors),
        statistics_graph=None if local is None else local.graph,
        shares=None if shares is None else shares.as_json(),
    )
    session.add(release)
    session.flush()
    for update in updates:
        add_update(session, release, update)
    return release


def add_update(session: Session, release: Release, update: NewUpdate) -> UpdateFile:
    """Add one update that leads to `release`."""
    row = UpdateFile(
        model_id=release.model_id,
        number=release.number,
        base_number=update.base,
        blob=update.blob,
        bytes=update.length,
        wire=WIRE_VERSION,
    )
    session.add(row)
    session.flush()
    return row


def updates_of(session: Session, release: Release) -> list[UpdateFile]:
    """Return the updates that lead to a release, the full one first."""
    return list(
        session.scalars(
            select(UpdateFile)
            .where(UpdateFile.model_id == release.model_id, UpdateFile.number == release.number)
            .order_by(UpdateFile.base_number.nulls_first())
        )
    )


def all_updates(session: Session, model: Model, *, also: Iterable[int] = ()) -> list[UpdateFile]:
    """Return every update between published releases of a model, in the order they were added.

    Args:
        session: the caller's transaction.
        model: of the updates.
        also: releases that count though they wait for signatures.
    """
    published = select(Publication.number).where(Publication.model_id == model.id)
    there = (UpdateFile.number.in_(published), UpdateFile.number.in_(list(also)))
    rows = session.scalars(
        select(UpdateFile).where(UpdateFile.model_id == model.id, or_(*there)).order_by(UpdateFile.number)
    )
    return list(rows)


def direct_builds(session: Session, model: Model) -> list[DirectBuild]:
    """Return what was found out about direct updates of a model."""
    return list(session.scalars(select(DirectBuild).where(DirectBuild.model_id == model.id)))


def add_direct_build(
    session: Session, model: Model, *, base: int, number: int, blob: str | None, length: int | None
) -> None:
    """Keep what a direct update from `base` to `number` takes.

    Args:
        session: the caller's transaction.
        model: of the releases.
        base: number of the older release.
        number: of the newer one.
        blob: digest of the file; None where there is none that takes fewer bytes than the ways there were.
        length: its bytes; None likewise.
    """
    session.add(DirectBuild(model_id=model.id, number=number, base_number=base, blob=blob, bytes=length))
    session.flush()


def check_retrainable(model: Model) -> None:
    """Raise unless the model has a recipe.

    Raises:
        Conflict: it came from ONNX alone.
    """
    if model.recipe is None:
        raise Conflict(
            f"{model.name} was registered from ONNX without a recipe and cannot be retrained here; train it elsewhere "
            "and make a release from the weights",
            code="model.not-retrainable",
        )


def own_blob(session: Session, digest: str) -> None:
    """Let the session's project read a blob: it uploaded the bytes."""
    row = insert(OwnedBlob).values(project_id=project_of(session), digest=digest)
    session.execute(row.on_conflict_do_nothing())


def owned_length(session: Session, blobs: Blobs, digest: str) -> int:
    """Return the bytes of a blob that the session's project may read.

    Raises:
        BlobUnknown: there is none of this digest, or it is of another project: that cannot be told apart.
        InvalidInput: the digest cannot be read.
    """
    parse_digest(digest)
    if session.scalar(select(OwnedBlob.digest).where(OwnedBlob.digest == digest)) is None:
        raise BlobUnknown(digest)
    return blobs.length(digest)


def get_dataset(session: Session, digest: str) -> Dataset:
    """Return the dataset of this digest.

    Raises:
        NotFound: there is none.
    """
    dataset = session.scalar(select(Dataset).where(Dataset.digest == digest))
    if dataset is None:
        raise NotFound(f"there is no dataset {digest[:80]!r}; `sprat dataset list` shows them", code="dataset.unknown")
    return dataset
