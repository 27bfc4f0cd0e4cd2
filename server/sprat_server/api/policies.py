"""/api/v1/models/{name}/policy: what is asked of the devices that have a model."""

from typing import Annotated, Any

from fastapi import Body, Query

from sprat_server.access import audit
from sprat_server.api.auth import Operator, Viewer
from sprat_server.api.described import raises
from sprat_server.api.preconditions import Seen
from sprat_server.api.routes import operators_router
from sprat_server.db.session import SessionDep
from sprat_server.fleet import policies
from sprat_server.fleet.schemas import PolicyView
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_shared.trust.policy import DevicePolicy

router = operators_router(prefix="/models", tags=["policies"])

Profile = Annotated[
    str | None,
    Query(pattern="^[a-z0-9-]{1,63}$", description="Of the devices of this profile; left out: of the whole model."),
]
Policy = Annotated[
    dict[str, Any],
    Body(
        openapi_examples={
            "night": {
                "summary": "fetch at night, and ask for 200 samples",
                "value": {"fetch": {"windows": [{"from": "22:00", "to": "05:00"}]}, "min_samples": 200},
            }
        }
    ),
]


@router.get("/{name}/policy", responses=raises(not_found=["model.unknown"]))
def get_policy(name: str, session: SessionDep, _viewer: Viewer, profile: Profile = None) -> PolicyView:
    """Show the policy that holds for devices of a profile, or of none, and where it comes from."""
    return _view(session, registry.get_model(session, name), profile)


@router.put("/{name}/policy", responses=raises(not_found=["model.unknown"], invalid=["policy.invalid"]))
def set_policy(
    name: str, body: Policy, session: SessionDep, operator: Operator, *, seen: Seen, profile: Profile = None
) -> PolicyView:
    """Set a policy in the place of the one before; devices have it, signed, with their next poll."""
    model, wanted = registry.get_model(session, name), DevicePolicy.of(body)
    seen.require(session, _subject(name, profile), lambda: _view(session, model, profile))
    before = policies.find(session, model.id, profile)
    said = None if before is None else dict(before.policy)
    row = policies.put(session, model.id, profile, wanted, operator)
    audit.record(session, operator, "policy.set", _subject(name, profile), said, row.policy)
    return _view(session, model, profile)


@router.delete("/{name}/policy", responses=raises(not_found=["model.unknown", "policy.unknown"]))
def clear_policy(
    name: str, session: SessionDep, operator: Operator, *, seen: Seen, profile: Profile = None
) -> PolicyView:
    """Take a policy away; then the model's holds for a profile, and the agents' own settings for a model."""
    model = registry.get_model(session, name)
    seen.require(session, _subject(name, profile), lambda: _view(session, model, profile))
    row = policies.clear(session, model.id, profile)
    audit.record(session, operator, "policy.clear", _subject(name, profile), row.policy)
    return _view(session, model, profile)


def _subject(name: str, profile: str | None) -> str:
    return f"model:{name}" if profile is None else f"model:{name}/{profile}"


def _view(session: SessionDep, model: Model, profile: str | None) -> PolicyView:
    row = policies.holding(session, model.id, profile)
    return PolicyView.of(model.name, profile, row, policies.profiles(session, model.id))
