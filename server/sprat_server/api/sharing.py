"""/api/v1/sharing: which models use whose layers, planned, shown, applied and undone (docs/sharing.md)."""

from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Releaser, Viewer
from sprat_server.api.described import raises, together
from sprat_server.api.paging import Page, SortedPaging
from sprat_server.api.ports import BlobsDep, SettingsDep
from sprat_server.api.preconditions import Seen, SeenState
from sprat_server.api.routes import operators_router
from sprat_server.db.session import SessionDep
from sprat_server.flows import sharing_plans as flow
from sprat_server.jobs.schemas import JobAccepted, JobView
from sprat_server.rollouts.requests import Reason
from sprat_server.sharing import records
from sprat_server.sharing.models import SharingPlan
from sprat_server.sharing.schemas import ApplySharing, NewSharingPlan, SharingPlanView, SharingPreview

router = operators_router(prefix="/sharing", tags=["sharing"])

_ASKED: Final = raises(
    not_found=["dataset.unknown", "model.unknown", "release.unknown", "sharing.unknown"],
    conflict=["release.pending", "release.shared"],
    invalid=["sharing.impossible"],
)
_MOVED: Final = raises(
    not_found=["sharing.unknown"],
    conflict=["rollout.busy", "rollout.wrong-state", "sharing.wrong-state"],
)
_PLAN: Final = raises(not_found=["sharing.unknown"])


@router.post("/plans", status_code=202, responses=_ASKED)
def plan_sharing(body: NewSharingPlan, session: SessionDep, operator: Operator) -> JobAccepted:
    """Have a worker plan which of some models use whose layers; its result names the plan. Nothing is published."""
    job = flow.ask(session, body, operator)
    asked = body.model_dump(mode="json") | {"job": str(job.id)}
    audit.record(session, operator, "sharing.plan", f"job:{job.id}", after=asked)
    return JobAccepted(job=JobView.of(job))


@router.get("/plans")
def list_sharing_plans(session: SessionDep, _viewer: Viewer, page: SortedPaging) -> Page[SharingPlanView]:
    """List plans, newest first."""
    rows, following = page.take(session, select(SharingPlan), key=SharingPlan.id, parse=UUID)
    return Page(items=[flow.view(session, plan) for plan in rows], next=following)


@router.get("/plans/{plan_id}", responses=_PLAN)
def get_sharing_plan(plan_id: UUID, session: SessionDep, _viewer: Viewer) -> SharingPlanView:
    """Show a plan, its releases and its rollouts."""
    return _shown(session, plan_id)


@router.get("/plans/{plan_id}/preview", responses=_PLAN)
def preview_sharing_plan(plan_id: UUID, session: SessionDep, settings: SettingsDep, _viewer: Viewer) -> SharingPreview:
    """Show what applying a plan would publish, who would get it, and what stands in the way. Nothing is kept."""
    return flow.preview(session, settings, plan_id)


@router.post(
    "/plans/{plan_id}/apply",
    responses=together(
        _MOVED,
        raises(
            conflict=[
                "blob.unknown",
                "release.exists",
                "release.pending",
                "release.pruned",
                "release.quarantined",
                "rollout.differs",
                "rollout.name-taken",
                "rollout.no-devices",
                "sharing.not-applicable",
            ],
            invalid=["filter.bad", "rollout.bad-waves"],
        ),
    ),
)
def apply_sharing_plan(  # noqa: PLR0917 - what a route is handed
    plan_id: UUID,
    body: ApplySharing,
    session: SessionDep,
    blobs: BlobsDep,
    settings: SettingsDep,
    releaser: Releaser,
    *,
    seen: Seen,
) -> SharingPlanView:
    """Publish what a plan chose, and draft the rollouts that bring it to devices; started where that is asked for."""
    _require(seen, session, plan_id)
    return flow.view(session, flow.apply(session, blobs, settings, plan_id, body, releaser))


@router.post("/plans/{plan_id}/undo", responses=together(_MOVED, raises(conflict=["release.pruned"])))
def undo_sharing_plan(
    plan_id: UUID, body: Reason, session: SessionDep, settings: SettingsDep, operator: Operator, *, seen: Seen
) -> SharingPlanView:
    """Take a plan's rollouts back: devices return to the releases that share nothing."""
    _require(seen, session, plan_id)
    return flow.view(session, flow.undo(session, settings, plan_id, body.reason, operator))


@router.post("/plans/{plan_id}/refit", status_code=202, responses=_ASKED)
def refit_sharing_plan(plan_id: UUID, session: SessionDep, operator: Operator) -> JobAccepted:
    """Have a worker answer a plan's question anew, on the newest releases of its models."""
    job = flow.refit(session, plan_id, operator)
    audit.record(session, operator, "sharing.refit", f"sharing:{plan_id}", after={"job": str(job.id)})
    return JobAccepted(job=JobView.of(job))


def _require(seen: SeenState, session: Session, plan_id: UUID) -> None:
    seen.require(session, f"sharing:{plan_id}", lambda: _shown(session, plan_id))


def _shown(session: Session, plan_id: UUID) -> SharingPlanView:
    return flow.view(session, records.get(session, plan_id))
