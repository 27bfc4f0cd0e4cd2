"""/api/v1/models/{name}/drift: how a model does in the field, what is watched, and what is done about it."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Releaser, Viewer
from sprat_server.api.described import raises
from sprat_server.api.preconditions import Seen, SeenState
from sprat_server.api.routes import operators_router
from sprat_server.db.session import SessionDep
from sprat_server.fleet import drift_records as records
from sprat_server.fleet.drift_policy import DriftPolicy
from sprat_server.fleet.drift_schemas import DriftEventView, DriftPolicyView, DriftView
from sprat_server.flows import drift
from sprat_server.registry import service as registry
from sprat_server.rollouts.requests import Reason

router = operators_router(prefix="/models", tags=["drift"])


@router.get("/{name}/drift", responses=raises(not_found=["drift.no-policy", "model.unknown"]))
def get_drift(
    name: str,
    session: SessionDep,
    _viewer: Viewer,
    limit: Annotated[int, Query(ge=0, le=200, description="The most events, newest first.")] = 20,
) -> DriftView:
    """Show what is known of a model's drift, what would be done about it, and what was."""
    model = registry.get_model(session, name)
    row = records.require_policy(session, model.id)
    shown = DriftPolicyView.of(name, row)
    finding, decision = drift.assess(session, model, shown.policy, row, datetime.now(UTC))
    events = [DriftEventView.of(event) for event in records.events(session, model.id, limit=limit)]
    return DriftView.of(shown, finding, decision, events)


@router.put("/{name}/drift-policy", responses=raises(not_found=["model.unknown"], invalid=["rollout.bad-waves"]))
def set_drift_policy(
    name: str, body: DriftPolicy, session: SessionDep, releaser: Releaser, seen: Seen
) -> DriftPolicyView:
    """Watch a model this way from now on. What a person stopped stays stopped."""
    model = registry.get_model(session, name)
    drift.check(model, body)
    _require(seen, session, name)
    before = records.policy_row(session, model.id)
    was = None if before is None else before.policy
    row = records.put_policy(session, model.id, body, releaser)
    audit.record(session, releaser, "drift-policy.set", f"model:{name}", was, row.policy)
    return DriftPolicyView.of(name, row)


@router.get("/{name}/drift-policy", responses=raises(not_found=["model.unknown"]))
def get_drift_policy(name: str, session: SessionDep, _viewer: Viewer) -> DriftPolicyView:
    """Show how a model is watched."""
    return _policy(session, name)


@router.delete("/{name}/drift-policy", responses=raises(not_found=["model.unknown"]))
def clear_drift_policy(name: str, session: SessionDep, operator: Operator, seen: Seen) -> DriftPolicyView:
    """Watch a model no more; what was done is remembered."""
    _require(seen, session, name)
    row = records.clear_policy(session, registry.get_model(session, name).id)
    audit.record(session, operator, "drift-policy.clear", f"model:{name}", row.policy)
    return DriftPolicyView.of(name, row)


@router.post("/{name}/drift/stop", responses=raises(not_found=["model.unknown"]))
def stop_drift(name: str, body: Reason, session: SessionDep, operator: Operator, seen: Seen) -> DriftPolicyView:
    """Do nothing about drift of a model any more, until it is resumed: no word, no retrain, no rollout."""
    _require(seen, session, name)
    row = records.stop(session, registry.get_model(session, name).id, body.reason)
    audit.record(session, operator, "drift.stop", f"model:{name}", after={"reason": body.reason})
    return DriftPolicyView.of(name, row)


@router.post("/{name}/drift/resume", responses=raises(not_found=["model.unknown"]))
def resume_drift(name: str, body: Reason, session: SessionDep, releaser: Releaser, seen: Seen) -> DriftPolicyView:
    """Do again what the policy says."""
    _require(seen, session, name)
    row = records.stop(session, registry.get_model(session, name).id, None)
    audit.record(session, releaser, "drift.resume", f"model:{name}", after={"reason": body.reason})
    return DriftPolicyView.of(name, row)


def _policy(session: SessionDep, name: str) -> DriftPolicyView:
    return DriftPolicyView.of(name, records.require_policy(session, registry.get_model(session, name).id))


def _require(seen: SeenState, session: SessionDep, name: str) -> None:
    seen.require(session, f"model:{name}/drift-policy", lambda: _policy(session, name))
