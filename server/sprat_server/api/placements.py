"""/api/v1/placements: which module would run on which device of a site, and how good that is (docs/placement.md)."""

from sprat_server.access import audit
from sprat_server.api.auth import Operator
from sprat_server.api.described import raises
from sprat_server.api.routes import operators_router
from sprat_server.db.session import SessionDep
from sprat_server.jobs import service as jobs
from sprat_server.jobs.schemas import JobAccepted, JobView
from sprat_server.placement.schemas import NewPlacement

router = operators_router(prefix="/placements", tags=["placements"])


@router.post("", status_code=202, responses=raises(invalid=["placement.invalid"]))
def plan_placement(body: NewPlacement, session: SessionDep, operator: Operator) -> JobAccepted:
    """Have a worker place the modules of a site; its result is the plan, with its proof. Nothing is sent to devices."""
    body.wishes().check(body.site())
    job = jobs.enqueue(session, kind="place", args=body.model_dump(mode="json", by_alias=True), by=operator)
    counts = {"devices": len(body.devices), "modules": len(body.modules), "tasks": len(body.tasks)}
    audit.record(session, operator, "placement.plan", f"job:{job.id}", after=counts)
    return JobAccepted(job=JobView.of(job))
