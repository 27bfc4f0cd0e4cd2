"""Who calls: the dependencies by which a route says what scope it needs.

    @router.post("/{rollout_id}/pause")
    def pause(rollout_id: UUID, session: SessionDep, operator: Operator) -> RolloutView: ...

A call that may change something (not GET or HEAD) cannot commit without an audit record (`access.audit`).
"""

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import Depends, Request

from sprat_server.access import audit, tokens
from sprat_server.access.tokens import Identity, Scope
from sprat_server.db.session import SessionDep
from sprat_server.fleet import service as fleet
from sprat_server.fleet.tokens import DEVICE_PREFIX
from sprat_server.observe.actors import Actor
from sprat_shared.errors import Unauthenticated

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def bearer(request: Request) -> str:
    """Return the token that the request shows.

    Raises:
        Unauthenticated: it shows none, or in another way.
    """
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not shown.strip():
        raise Unauthenticated("this needs a token: send the header `Authorization: Bearer <token>`")
    return shown.strip()


def needs(scope: Scope) -> Callable[[Request, SessionDep], Identity]:
    """Return the dependency that lets in tokens of at least this scope and says who it is."""

    def identify(request: Request, session: SessionDep) -> Identity:
        identity = tokens.authenticate(session, bearer(request))
        request.state.actor = identity
        identity.require(scope)
        if request.method not in _SAFE:
            audit.require_record(session, f"{request.method} {request.url.path}")
        return identity

    return identify


Viewer = Annotated[Identity, Depends(needs(Scope.VIEWER), scope="function")]
Operator = Annotated[Identity, Depends(needs(Scope.OPERATOR), scope="function")]
Releaser = Annotated[Identity, Depends(needs(Scope.RELEASER), scope="function")]
Admin = Annotated[Identity, Depends(needs(Scope.ADMIN), scope="function")]


def _identify_reader(request: Request, session: SessionDep) -> Actor:
    shown = bearer(request)
    actor: Actor
    if shown.startswith(DEVICE_PREFIX):
        device = fleet.authenticate_device(session, shown)
        actor = Actor(kind="device", id=str(device.id), name=device.name)
    else:
        actor = tokens.authenticate(session, shown)
    request.state.actor = actor
    return actor


Reader = Annotated[Actor, Depends(_identify_reader, scope="function")]
"""Whoever may read what is published: any operator, any device."""
