"""Who may call what: each route of the application, and the least scope that it asks for."""

from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from sprat_server.api.poll import PATH as POLL_PATH

ANYONE: Final = "anyone"
VIEWER: Final = "viewer"
OPERATOR: Final = "operator"
RELEASER: Final = "releaser"
ADMIN: Final = "admin"
SERVER_VIEWER: Final = "server_viewer"  # whose token is of the whole server
SERVER_ADMIN: Final = "server_admin"
DEVICE: Final = "device"  # and no operator
READER: Final = "reader"  # a device, or any operator
PROVEN: Final = "proven"  # whoever proves it in the request itself: by a signature, a token of its own, an assertion

OPERATORS: Final = (VIEWER, OPERATOR, RELEASER, ADMIN)
OF_SERVER: Final = (SERVER_VIEWER, SERVER_ADMIN)

TABLE: Final[Mapping[tuple[str, str], str]] = {
    ("GET", "/healthz"): ANYONE,
    ("GET", "/metrics"): SERVER_VIEWER,
    ("GET", "/api/v1/openapi.json"): VIEWER,
    # who may
    ("GET", "/api/v1/projects"): VIEWER,
    ("POST", "/api/v1/projects"): SERVER_ADMIN,
    ("GET", "/api/v1/projects/{project}"): VIEWER,
    ("PATCH", "/api/v1/projects/{project}"): SERVER_ADMIN,
    ("GET", "/api/v1/tokens"): ADMIN,
    ("POST", "/api/v1/tokens"): ADMIN,
    ("DELETE", "/api/v1/tokens/{token_id}"): ADMIN,
    ("GET", "/api/v1/audit"): VIEWER,
    # who hears of it
    ("GET", "/api/v1/events"): VIEWER,
    ("GET", "/api/v1/webhooks"): VIEWER,
    ("POST", "/api/v1/webhooks"): ADMIN,
    ("GET", "/api/v1/webhooks/{webhook}"): VIEWER,
    ("DELETE", "/api/v1/webhooks/{webhook}"): ADMIN,
    ("POST", "/api/v1/webhooks/{webhook}/rotate"): ADMIN,
    ("POST", "/api/v1/webhooks/{webhook}/enable"): OPERATOR,
    ("POST", "/api/v1/webhooks/{webhook}/test"): OPERATOR,
    ("GET", "/api/v1/webhooks/{webhook}/deliveries"): VIEWER,
    ("POST", "/api/v1/webhooks/{webhook}/deliveries/{event_id}/replay"): OPERATOR,
    ("GET", "/api/v1/audit/chain"): VIEWER,
    # what is released, and how it is made
    ("POST", "/api/v1/blobs"): OPERATOR,
    ("GET", "/api/v1/models"): VIEWER,
    ("POST", "/api/v1/models"): RELEASER,
    ("GET", "/api/v1/models/{name}"): VIEWER,
    ("GET", "/api/v1/models/{name}/releases"): VIEWER,
    ("POST", "/api/v1/models/{name}/releases"): RELEASER,
    ("GET", "/api/v1/models/{name}/releases/{number}"): VIEWER,
    ("GET", "/api/v1/models/{name}/updates"): VIEWER,
    ("POST", "/api/v1/models/{name}/releases/{number}/draft"): RELEASER,
    ("POST", "/api/v1/models/{name}/retrain"): OPERATOR,
    ("POST", "/api/v1/models/{name}/releases/{number}/certify"): OPERATOR,
    ("POST", "/api/v1/placements"): OPERATOR,
    ("GET", "/api/v1/models/{name}/policy"): VIEWER,
    ("PUT", "/api/v1/models/{name}/policy"): OPERATOR,
    ("DELETE", "/api/v1/models/{name}/policy"): OPERATOR,
    ("GET", "/api/v1/models/{name}/drift"): VIEWER,
    ("GET", "/api/v1/models/{name}/drift-policy"): VIEWER,
    ("PUT", "/api/v1/models/{name}/drift-policy"): RELEASER,
    ("DELETE", "/api/v1/models/{name}/drift-policy"): OPERATOR,
    ("POST", "/api/v1/models/{name}/drift/stop"): OPERATOR,
    ("POST", "/api/v1/models/{name}/drift/resume"): RELEASER,
    # whose layers it uses
    ("GET", "/api/v1/sharing/plans"): VIEWER,
    ("POST", "/api/v1/sharing/plans"): OPERATOR,
    ("GET", "/api/v1/sharing/plans/{plan_id}"): VIEWER,
    ("GET", "/api/v1/sharing/plans/{plan_id}/preview"): VIEWER,
    ("POST", "/api/v1/sharing/plans/{plan_id}/apply"): RELEASER,
    ("POST", "/api/v1/sharing/plans/{plan_id}/undo"): OPERATOR,
    ("POST", "/api/v1/sharing/plans/{plan_id}/refit"): OPERATOR,
    # what sites are asked for, and how they run
    ("GET", "/api/v1/tasks"): VIEWER,
    ("POST", "/api/v1/tasks"): OPERATOR,
    ("POST", "/api/v1/tasks/split"): RELEASER,
    ("GET", "/api/v1/tasks/{name}"): VIEWER,
    ("DELETE", "/api/v1/tasks/{name}"): OPERATOR,
    ("GET", "/api/v1/sites"): VIEWER,
    ("POST", "/api/v1/sites"): OPERATOR,
    ("GET", "/api/v1/sites/{site}"): VIEWER,
    ("GET", "/api/v1/sites/{site}/measures"): VIEWER,
    ("PUT", "/api/v1/sites/{site}"): OPERATOR,
    ("DELETE", "/api/v1/sites/{site}"): OPERATOR,
    ("POST", "/api/v1/sites/{site}/repair"): OPERATOR,
    ("GET", "/api/v1/sites/{site}/plans"): VIEWER,
    ("POST", "/api/v1/sites/{site}/plans"): OPERATOR,
    ("GET", "/api/v1/sites/{site}/plans/{plan}"): VIEWER,
    ("GET", "/api/v1/sites/{site}/plans/{plan}/preview"): VIEWER,
    ("POST", "/api/v1/sites/{site}/plans/{plan}/apply"): RELEASER,
    ("POST", "/api/v1/sites/{site}/plans/{plan}/abort"): OPERATOR,
    ("GET", "/api/v1/datasets"): VIEWER,
    ("POST", "/api/v1/datasets"): OPERATOR,
    ("GET", "/api/v1/datasets/{digest}"): VIEWER,
    ("GET", "/api/v1/jobs"): VIEWER,
    ("GET", "/api/v1/jobs/{job_id}"): VIEWER,
    ("POST", "/api/v1/jobs/{job_id}/cancel"): OPERATOR,
    # who signs it
    ("GET", "/api/v1/keys"): VIEWER,
    ("POST", "/api/v1/keys/rotate"): ADMIN,
    ("POST", "/api/v1/keys/drafts/{digest}/signatures"): RELEASER,
    ("POST", "/api/v1/keys/drafts/{digest}/withdraw"): ADMIN,
    # who gets it
    ("GET", "/api/v1/rollouts"): VIEWER,
    ("POST", "/api/v1/rollouts"): RELEASER,
    ("GET", "/api/v1/rollouts/{rollout_id}"): VIEWER,
    ("GET", "/api/v1/rollouts/{rollout_id}/why"): VIEWER,
    ("POST", "/api/v1/rollouts/{rollout_id}/prefetch"): OPERATOR,
    ("POST", "/api/v1/rollouts/{rollout_id}/start"): OPERATOR,
    ("POST", "/api/v1/rollouts/{rollout_id}/pause"): OPERATOR,
    ("POST", "/api/v1/rollouts/plan"): VIEWER,
    ("POST", "/api/v1/rollouts/apply"): RELEASER,
    ("POST", "/api/v1/rollouts/{rollout_id}/approve"): RELEASER,
    ("POST", "/api/v1/rollouts/{rollout_id}/undo"): OPERATOR,
    ("POST", "/api/v1/rollouts/{rollout_id}/resume"): OPERATOR,
    ("POST", "/api/v1/rollouts/{rollout_id}/promote"): OPERATOR,
    ("POST", "/api/v1/rollouts/{rollout_id}/abort"): OPERATOR,
    # the fleet
    ("POST", "/api/v1/bundles"): OPERATOR,
    ("GET", "/api/v1/devices"): VIEWER,
    ("POST", "/api/v1/devices/preview"): VIEWER,
    ("POST", "/api/v1/devices/labels"): OPERATOR,
    ("GET", "/api/v1/devices/{device_id}"): VIEWER,
    ("GET", "/api/v1/devices/{device_id}/labels"): VIEWER,
    ("PATCH", "/api/v1/devices/{device_id}/labels"): OPERATOR,
    ("POST", "/api/v1/devices/revoke"): OPERATOR,
    ("POST", "/api/v1/devices/decommission"): OPERATOR,
    ("POST", "/api/v1/enrolment-requests/accept"): OPERATOR,
    ("GET", "/api/v1/rollouts/{rollout_id}/devices"): VIEWER,
    ("GET", "/api/v1/devices/{device_id}/reports"): VIEWER,
    ("POST", "/api/v1/devices/{device_id}/revoke"): OPERATOR,
    ("POST", "/api/v1/devices/{device_id}/decommission"): OPERATOR,
    ("POST", "/api/v1/devices/{device_id}/replace"): OPERATOR,
    ("POST", "/api/v1/reports/savings"): VIEWER,
    ("GET", "/api/v1/groups"): VIEWER,
    ("POST", "/api/v1/groups"): OPERATOR,
    ("GET", "/api/v1/groups/{name}"): VIEWER,
    ("PUT", "/api/v1/groups/{name}"): OPERATOR,
    ("DELETE", "/api/v1/groups/{name}"): OPERATOR,
    ("GET", "/api/v1/groups/{name}/devices"): VIEWER,
    ("POST", "/api/v1/enrolment-tokens"): OPERATOR,
    ("GET", "/api/v1/enrolment-requests"): VIEWER,
    ("POST", "/api/v1/enrolment-requests/{request_id}/accept"): OPERATOR,
    ("POST", "/api/v1/enrolment-requests/{request_id}/reject"): OPERATOR,
    # devices prove themselves
    ("POST", "/device/v1/enrol"): PROVEN,
    ("POST", "/device/v1/token"): PROVEN,
    ("POST", "/device/v1/reports"): DEVICE,
    ("GET", POLL_PATH): DEVICE,
    ("GET", "/tuf/image/{file}"): READER,
    ("GET", "/tuf/director/{file}"): DEVICE,
    ("GET", "/blobs/sha256/{hex_digest}"): READER,
    ("HEAD", "/blobs/sha256/{hex_digest}"): READER,
}


def routes_of(app: FastAPI) -> set[tuple[str, str]]:
    """Every method and path that the application answers, in front of FastAPI or behind."""
    routed = {(method, route.path or "") for route in iter_route_contexts(app.routes) for method in route.methods or ()}
    return routed | {("GET", POLL_PATH)}


def callers(least: str) -> set[str]:
    """Who may call a route of this least scope."""
    if least in OPERATORS:
        return {*OPERATORS[OPERATORS.index(least) :], *OF_SERVER[least != VIEWER :]}
    if least in OF_SERVER:
        return set(OF_SERVER[OF_SERVER.index(least) :])
    return {DEVICE: {DEVICE}, READER: {DEVICE, *OPERATORS, *OF_SERVER}}[least]
