"""/api/v1/sites: devices that run tasks together, and the plans by which they do (docs/site-plans.md)."""

from typing import Annotated, Any, Final

from fastapi import Path
from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Releaser, Viewer
from sprat_server.api.described import raises, together
from sprat_server.api.paging import Page, Paging, SortedPaging
from sprat_server.api.ports import BlobsDep, SettingsDep
from sprat_server.api.preconditions import Seen, SeenState
from sprat_server.api.routes import operators_router
from sprat_server.db.paging import take_page
from sprat_server.db.session import SessionDep
from sprat_server.flows import site_measures
from sprat_server.flows import site_plans as flow
from sprat_server.flows import site_previews as views
from sprat_server.jobs.schemas import JobAccepted, JobView
from sprat_server.rollouts.requests import Reason
from sprat_server.sites import records
from sprat_server.sites.measure_schemas import SiteMeasuresView
from sprat_server.sites.models import Site, SitePlanRow
from sprat_server.sites.previews import SitePlanPreview
from sprat_server.sites.schemas import EditedSite, NewSite, NewSitePlan, RepairSite, SitePlanView, SiteView

router = operators_router(prefix="/sites", tags=["sites"])

Name = Annotated[str, Path(max_length=63, description="Of the site.")]
Number = Annotated[int, Path(ge=1, lt=2**31, description="Of the plan.")]
_SITE: Final = raises(not_found=["site.unknown"])
_PLAN: Final = raises(not_found=["site.unknown", "site.unknown-plan"])


@router.post(
    "",
    status_code=201,
    responses=raises(not_found=["device.unknown"], conflict=["site.device-taken", "site.name-taken"]),
)
def create_site(body: NewSite, session: SessionDep, operator: Operator) -> SiteView:
    """Make a site of devices."""
    site = flow.create_site(session, body, operator)
    audit.record(session, operator, "site.create", f"site:{site.name}", after=body.model_dump(mode="json"))
    return views.site_view(session, site)


@router.get("")
def list_sites(session: SessionDep, _viewer: Viewer, page: Paging) -> Page[SiteView]:
    """List sites, by name."""
    rows, following = take_page(
        session,
        select(Site).where(Site.deleted_at.is_(None)),
        key=Site.name,
        parse=str,
        cursor=page.cursor,
        limit=page.limit,
        newest_first=False,
    )
    return Page(items=[views.site_view(session, row) for row in rows], next=following)


@router.get("/{site}", responses=_SITE)
def get_site(site: Name, session: SessionDep, _viewer: Viewer) -> SiteView:
    """Show a site: its devices, and which plan serves."""
    return _shown(session, site)


@router.get("/{site}/measures", responses=_SITE)
def get_site_measures(site: Name, session: SessionDep, _viewer: Viewer) -> SiteMeasuresView:
    """Show what devices measured of modules and links, as a plan would be placed by it, and what is not known."""
    return site_measures.measures_view(session, records.get_site(session, site))


@router.put("/{site}", responses=together(_SITE, raises(not_found=["device.unknown"], conflict=["site.device-taken"])))
def edit_site(site: Name, body: EditedSite, session: SessionDep, operator: Operator, seen: Seen) -> SiteView:
    """Change what a site is; plans that are there go on as they are, the next one is of these devices."""
    before = _require(seen, session, site)
    flow.edit_site(session, site, body)
    audit.record(session, operator, "site.edit", f"site:{site}", before, body.model_dump(mode="json"))
    return _shown(session, site)


@router.delete("/{site}", responses=together(_SITE, raises(conflict=["site.busy"])))
def delete_site(site: Name, session: SessionDep, operator: Operator, seen: Seen) -> SiteView:
    """Delete a site: its devices serve by no plan any more, and run of each model what they ran."""
    before = _require(seen, session, site)
    shown = _shown(session, site)
    flow.delete_site(session, site)
    audit.record(session, operator, "site.delete", f"site:{site}", before)
    return shown


@router.post(
    "/{site}/plans",
    status_code=202,
    responses=raises(
        not_found=["model.unknown", "release.unknown", "site.unknown", "task.unknown"],
        conflict=["release.pending", "release.quarantined", "site.not-one-release"],
        invalid=["site.bad-plan"],
    ),
)
def plan_site(site: Name, body: NewSitePlan, session: SessionDep, operator: Operator) -> JobAccepted:
    """Have a worker make a plan; its result has the number. Nothing is sent to devices before it is applied."""
    job = flow.ask_plan(session, site, body, operator)
    asked = body.model_dump(mode="json") | {"job": str(job.id)}
    audit.record(session, operator, "site.plan", f"site:{site}", after=asked)
    return JobAccepted(job=JobView.of(job))


@router.post(
    "/{site}/repair",
    status_code=202,
    responses=together(_SITE, raises(not_found=["device.unknown"], conflict=["site.nothing-to-repair"])),
)
def repair_site(site: Name, body: RepairSite, session: SessionDep, operator: Operator, *, seen: Seen) -> JobAccepted:
    """Have a worker plan anew what serves, without devices that were lost; the modules that still run stay there."""
    before = _require(seen, session, site)
    job = flow.ask_repair(session, site, body.without, operator)
    audit.record(
        session, operator, "site.repair", f"site:{site}", before, {"without": body.without, "job": str(job.id)}
    )
    return JobAccepted(job=JobView.of(job))


@router.get("/{site}/plans", responses=_SITE)
def list_site_plans(site: Name, session: SessionDep, _viewer: Viewer, page: SortedPaging) -> Page[SitePlanView]:
    """List the plans of a site, newest first."""
    row = records.get_site(session, site)
    rows, following = page.take(
        session, select(SitePlanRow).where(SitePlanRow.site_id == row.id), key=SitePlanRow.number, parse=int
    )
    return Page(items=[views.plan_view(session, row, plan) for plan in rows], next=following)


@router.get("/{site}/plans/{plan}", responses=_PLAN)
def get_site_plan(site: Name, plan: Number, session: SessionDep, _viewer: Viewer) -> SitePlanView:
    """Show a plan, and how far its members are."""
    return _shown_plan(session, site, plan)


@router.get("/{site}/plans/{plan}/preview", responses=_PLAN)
def preview_site_plan(site: Name, plan: Number, session: SessionDep, _viewer: Viewer) -> SitePlanPreview:
    """Show who would fetch what in how many bytes, who would hold how much, and what stands in the way."""
    row = records.get_site(session, site)
    return views.preview(session, row, records.get_plan(session, row, plan))


@router.post(
    "/{site}/plans/{plan}/apply",
    responses=together(_PLAN, raises(conflict=["release.pruned", "site.no-room", "site.not-applicable"])),
)
def apply_site_plan(  # noqa: PLR0917 - what a route is handed
    site: Name,
    plan: Number,
    session: SessionDep,
    blobs: BlobsDep,
    settings: SettingsDep,
    releaser: Releaser,
    *,
    seen: Seen,
) -> SitePlanView:
    """Have the devices hold a plan; when all are ready they serve by it, and the one before ends."""
    _require_plan(seen, session, site, plan)
    flow.apply(session, blobs, settings, site, plan, releaser)
    return _shown_plan(session, site, plan)


@router.post("/{site}/plans/{plan}/abort", responses=together(_PLAN, raises(conflict=["site.wrong-state"])))
def abort_site_plan(
    site: Name, plan: Number, body: Reason, session: SessionDep, operator: Operator, *, seen: Seen
) -> SitePlanView:
    """End a plan that is held; the one before serves on."""
    _require_plan(seen, session, site, plan)
    flow.abort(session, site, plan, body.reason, operator)
    return _shown_plan(session, site, plan)


def _require(seen: SeenState, session: Session, site: str) -> dict[str, Any]:
    seen.require(session, f"site:{site}", lambda: _shown(session, site))
    return _shown(session, site).model_dump(mode="json")


def _require_plan(seen: SeenState, session: Session, site: str, plan: int) -> None:
    seen.require(session, f"site-plan:{site}/{plan}", lambda: _shown_plan(session, site, plan))


def _shown(session: Session, site: str) -> SiteView:
    return views.site_view(session, records.get_site(session, site))


def _shown_plan(session: Session, site: str, number: int) -> SitePlanView:
    row = records.get_site(session, site)
    return views.plan_view(session, row, records.get_plan(session, row, number))
