"""/api/v1/models: models, their releases, and the jobs that make new ones."""

from typing import Annotated
from uuid import UUID

from fastapi import Query
from sqlalchemy import select

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Releaser, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, SortedPaging
from sprat_server.api.ports import BlobsDep
from sprat_server.api.routes import operators_router
from sprat_server.db.session import SessionDep
from sprat_server.flows import rollout_views
from sprat_server.flows.ways import ways
from sprat_server.jobs import service as jobs
from sprat_server.jobs.schemas import JobAccepted, JobView
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release
from sprat_server.registry.schemas import (
    CertifyRequest,
    ModelView,
    NewModel,
    NewRelease,
    ReleaseView,
    RetrainRequest,
    WayView,
)

router = operators_router(prefix="/models", tags=["models"])


@router.post("", status_code=202, responses=raises(not_found=["blob.unknown"], conflict=["model.exists"]))
def register_model(body: NewModel, session: SessionDep, releaser: Releaser, blobs: BlobsDep) -> JobAccepted:
    """Have a worker register a model; the job makes its release 1."""
    registry.check_name_is_free(session, body.name)
    for digest in (body.weights, body.graph):
        if digest is not None:
            registry.owned_length(session, blobs, digest)
    args = body.model_dump(mode="json")
    job = jobs.enqueue(session, kind="register-model", args=args, by=releaser)
    audit.record(session, releaser, "model.register", f"model:{body.name}", after=args | {"job": str(job.id)})
    return JobAccepted(job=JobView.of(job))


@router.get("")
def list_models(session: SessionDep, _viewer: Viewer, page: SortedPaging) -> Page[ModelView]:
    """List models, newest first."""
    rows, following = page.take(session, select(Model), key=Model.id, parse=UUID)
    latest = registry.newest_numbers(session, rows)
    return Page(items=[ModelView.of(model, latest.get(model.id)) for model in rows], next=following)


@router.get("/{name}", responses=raises(not_found=["model.unknown"]))
def get_model(name: str, session: SessionDep, _viewer: Viewer) -> ModelView:
    """Show a model."""
    model = registry.get_model(session, name)
    newest = registry.newest_published(session, model)
    return ModelView.of(model, None if newest is None else newest.number)


@router.get("/{name}/releases", responses=raises(not_found=["model.unknown"]))
def list_releases(name: str, session: SessionDep, _viewer: Viewer, page: SortedPaging) -> Page[ReleaseView]:
    """List the releases of a model, newest first."""
    model = registry.get_model(session, name)
    rows, following = page.take(
        session, select(Release).where(Release.model_id == model.id), key=Release.number, parse=int
    )
    since, halted = registry.publications(session, model), rollout_views.quarantines(session, model)
    items = [
        ReleaseView.of(
            model, release, registry.updates_of(session, release), since.get(release.number), halted.get(release.number)
        )
        for release in rows
    ]
    return Page(items=items, next=following)


@router.get("/{name}/releases/{number}", responses=raises(not_found=["model.unknown", "release.unknown"]))
def get_release(name: str, number: int, session: SessionDep, _viewer: Viewer) -> ReleaseView:
    """Show a release and the updates that lead to it."""
    model = registry.get_model(session, name)
    release = registry.get_release(session, model, number)
    since = registry.publications(session, model).get(number)
    halted = rollout_views.quarantines(session, model).get(number)
    return ReleaseView.of(model, release, registry.updates_of(session, release), since, halted)


@router.get("/{name}/updates", responses=raises(not_found=["model.unknown", "release.unknown"]))
def list_updates(
    name: str,
    session: SessionDep,
    _viewer: Viewer,
    page: SortedPaging,
    to: Annotated[int | None, Query(description="Number of the release; the newest of its own where left out.")] = None,
) -> Page[WayView]:
    """Show how devices come to a release from each release of the model, newest first, and what it costs them."""
    model = registry.get_model(session, name)
    target = registry.latest_release(session, model) if to is None else registry.get_release(session, model, to)
    rows, following = page.take(
        session, select(Release).where(Release.model_id == model.id), key=Release.number, parse=int
    )
    return Page(items=ways(session, model, target, rows), next=following)


@router.post("/{name}/releases", status_code=202, responses=raises(not_found=["model.unknown"]))
def create_release(
    name: str, body: NewRelease, session: SessionDep, releaser: Releaser, blobs: BlobsDep
) -> JobAccepted:
    """Have a worker make a release from weights that were trained elsewhere."""
    model = registry.get_model(session, name)
    base = body.base if body.base is not None else registry.latest_release(session, model).number
    registry.check_trainable(model, registry.get_release(session, model, base))
    for digest in (body.weights, body.graph):
        if digest is not None:
            registry.owned_length(session, blobs, digest)
    args = body.model_dump(mode="json") | {"model": name, "base": base}
    job = jobs.enqueue(session, kind="create-release", args=args, by=releaser)
    audit.record(session, releaser, "release.create", f"model:{name}", after=args | {"job": str(job.id)})
    return JobAccepted(job=JobView.of(job))


@router.post(
    "/{name}/retrain",
    status_code=202,
    responses=raises(not_found=["dataset.unknown", "model.unknown"], conflict=["model.not-retrainable"]),
)
def retrain(name: str, body: RetrainRequest, session: SessionDep, operator: Operator) -> JobAccepted:
    """Have a worker retrain a model on a dataset and make a release of what it learned."""
    model = registry.get_model(session, name)
    base = body.base if body.base is not None else registry.latest_release(session, model).number
    registry.check_trainable(model, registry.get_release(session, model, base))
    registry.check_retrainable(model)
    registry.get_dataset(session, body.dataset)
    if body.retain is not None:
        registry.get_dataset(session, body.retain)
    args = body.model_dump(mode="json") | {"model": name, "base": base}
    job = jobs.enqueue(session, kind="retrain", args=args, by=operator)
    audit.record(session, operator, "model.retrain", f"model:{name}", after=args | {"job": str(job.id)})
    return JobAccepted(job=JobView.of(job))


@router.post(
    "/{name}/releases/{number}/certify",
    status_code=202,
    responses=raises(not_found=["dataset.unknown", "model.unknown", "release.unknown"]),
)
def certify_release(
    name: str, number: int, body: CertifyRequest, session: SessionDep, operator: Operator
) -> JobAccepted:
    """Have a worker bound, without labels, by how much a release can be worse than one that it is a near copy of."""
    model = registry.get_model(session, name)
    for one in (number, body.against):
        registry.get_release(session, model, one)
    registry.get_dataset(session, body.dataset)
    args = body.model_dump(mode="json") | {"model": name, "release": number}
    job = jobs.enqueue(session, kind="certify", args=args, by=operator)
    audit.record(session, operator, "release.certify", f"model:{name}", after=args | {"job": str(job.id)})
    return JobAccepted(job=JobView.of(job))
