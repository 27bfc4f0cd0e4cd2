"""/api/v1/datasets: labelled samples on the server."""

from sqlalchemy import select

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, Paging
from sprat_server.api.ports import BlobsDep
from sprat_server.api.routes import operators_router
from sprat_server.db.paging import take_page
from sprat_server.db.session import SessionDep
from sprat_server.jobs import service as jobs
from sprat_server.jobs.schemas import JobAccepted, JobView
from sprat_server.registry import service as registry
from sprat_server.registry.models import Dataset
from sprat_server.registry.schemas import DatasetView, NewDataset

router = operators_router(prefix="/datasets", tags=["datasets"])


@router.post("", status_code=202, responses=raises(not_found=["blob.unknown"]))
def create_dataset(body: NewDataset, session: SessionDep, operator: Operator, blobs: BlobsDep) -> JobAccepted:
    """Have a worker check an uploaded file and keep it as a dataset."""
    registry.owned_length(session, blobs, body.blob)
    args = body.model_dump(mode="json")
    job = jobs.enqueue(session, kind="validate-dataset", args=args, by=operator)
    audit.record(session, operator, "dataset.create", f"dataset:{body.blob}", after=args | {"job": str(job.id)})
    return JobAccepted(job=JobView.of(job))


@router.get("")
def list_datasets(session: SessionDep, _viewer: Viewer, page: Paging) -> Page[DatasetView]:
    """List datasets by digest."""
    rows, following = take_page(
        session,
        select(Dataset),
        key=Dataset.digest,
        parse=str,
        cursor=page.cursor,
        limit=page.limit,
        newest_first=False,
    )
    return Page(items=[DatasetView.of(dataset) for dataset in rows], next=following)


@router.get("/{digest}", responses=raises(not_found=["dataset.unknown"]))
def get_dataset(digest: str, session: SessionDep, _viewer: Viewer) -> DatasetView:
    """Show a dataset."""
    return DatasetView.of(registry.get_dataset(session, digest))
