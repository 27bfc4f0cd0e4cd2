"""/healthz for load balancers, /metrics for Prometheus."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import select, text
from sqlalchemy.exc import SQLAlchemyError

from sprat_server.access import webhooks
from sprat_server.api.auth import ServerViewer, Viewer
from sprat_server.db.projects import Project, enter, leave
from sprat_server.db.session import Database, SessionDep
from sprat_server.flows import custody_views, gating
from sprat_server.jobs import models as job_models
from sprat_server.jobs import service as jobs
from sprat_server.observe import metrics
from sprat_server.sites import records as sites

router = APIRouter(tags=["health"])
_OF_ROLLOUTS = (metrics.ROLLOUT_E_VALUE, metrics.ROLLOUT_HALTS_AT, metrics.ROLLOUT_DEVICES)


@router.get("/healthz")
def healthz(request: Request) -> JSONResponse:
    """Say whether this server can do its work: 200, or 503 while its database does not answer. Needs no token."""
    database: Database = request.app.state.database
    try:
        with database.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return JSONResponse({"status": "unavailable"}, 503, {"Retry-After": "5"})
    return JSONResponse({"status": "ok"})


@router.get("/metrics", response_class=Response)
def read_metrics(session: SessionDep, _viewer: ServerViewer) -> Response:
    """Give this process's metrics, counts of jobs and the life of signed metadata in Prometheus's text format."""
    known = {project.id: project.name for project in session.scalars(select(Project))}
    leave(session)
    counts = jobs.counts(session)
    for state in (job_models.QUEUED, job_models.RUNNING, *sorted(job_models.ENDED)):
        metrics.JOBS.labels(state).set(counts.get(state, 0))
    metrics.METADATA_EXPIRES_S.clear()
    for gauge in (
        metrics.SITE_MEMBERS,
        metrics.METADATA_WAITING,
        metrics.WEBHOOK_WAITING,
        metrics.WEBHOOK_OLDEST_S,
        *_OF_ROLLOUTS,
    ):
        gauge.clear()
    sent: dict[tuple[str, ...], int] = {}
    for project_id, name in known.items():
        enter(session, project_id)
        shown = custody_views.custody(session)
        for role in shown.roles:
            metrics.METADATA_EXPIRES_S.labels(name, role.role).set((role.expires_at - shown.now).total_seconds())
            metrics.METADATA_WAITING.labels(name, role.role).set(role.waiting)
        for one in gating.readings(session):
            of_rollout = (name, one.model, str(one.rollout))
            metrics.ROLLOUT_HALTS_AT.labels(*of_rollout).set(one.halts_at)
            for metric, e_value in {"all": one.e_value, **one.games}.items():
                metrics.ROLLOUT_E_VALUE.labels(*of_rollout, metric).set(e_value)
            for what, count in {**one.counts, "room": one.room}.items():
                metrics.ROLLOUT_DEVICES.labels(*of_rollout, what).set(count)
        for (site, plan, state), count in sites.tally(session).items():
            metrics.SITE_MEMBERS.labels(name, site, plan, state).set(count)
        for hook in webhooks.readings(session):
            metrics.WEBHOOK_WAITING.labels(name, hook.name).set(hook.waiting)
            metrics.WEBHOOK_OLDEST_S.labels(name, hook.name).set(hook.oldest_s)
            sent |= {(name, hook.name, outcome): count for outcome, count in hook.attempts.items()}
    metrics.WEBHOOK_DELIVERIES.read(sent)
    return Response(metrics.text(), media_type=metrics.CONTENT_TYPE)


@router.get("/api/v1/openapi.json", include_in_schema=False)
def read_openapi(request: Request, _viewer: Viewer) -> JSONResponse:
    """Give the OpenAPI 3.1 description of every route."""
    return JSONResponse(request.app.openapi())
