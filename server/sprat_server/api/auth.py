"""Who calls: the dependencies by which a route says what scope it needs.

    @router.post("/{rollout_id}/pause")
    def pause(rollout_id: UUID, session: SessionDep, operator: Operator) -> RolloutView: ...

A call that may change something (not GET or HEAD) cannot commit without an audit record (`access.audit`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Final
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.types import Scope as AsgiScope

from sprat_server.access import audit, projects, tokens
from sprat_server.access.limits import Lockout
from sprat_server.access.oidc import OidcVerifier
from sprat_server.access.tokens import Identity, Scope
from sprat_server.api import repeats
from sprat_server.db.projects import DEFAULT_PROJECT, enter
from sprat_server.db.session import SessionDep
from sprat_server.fleet.authentication import Recognised, authenticate_device
from sprat_server.fleet.models import Device
from sprat_server.fleet.tokens import DEVICE_PREFIX
from sprat_server.observe.actors import Actor
from sprat_shared.errors import Unauthenticated

PROJECT_HEADER: Final = "Sprat-Project"
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_JWT_DOTS: Final = 2  # header.claims.signature


def bearer(request: Request) -> str:
    """Return the token that the request shows.

    Raises:
        Unauthenticated: it shows none, or in another way.
    """
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not shown.strip():
        raise Unauthenticated("this needs a token: send the header `Authorization: Bearer <token>`")
    return shown.strip()


def address_of(scope: AsgiScope) -> str:
    """Return from where a request comes; what a trusted proxy forwarded for stands there already."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def watched(request: Request, token_id: str = "") -> AbstractContextManager[None]:
    """Return the block in which a caller is authenticated: locked out after too many failures (`access.limits`).

    A device that is known, and whose clock is wrong or whose token ended while it slept, locks out nobody behind its
    address.
    """
    lockout: Lockout = request.app.state.lockout
    return lockout.watching(address_of(request.scope), token_id, pardoned=Recognised)


def identify_operator(request: Request, session: Session, shown: str) -> Identity:
    """Return the operator who shows this token, one of ours or of the OpenID Connect issuer.

    The session acts in their project from then on: the token's, or, for a token of the whole server, the one that the
    header `Sprat-Project` names.

    Raises:
        Unauthenticated: it is not valid.
        ProjectUnknown: the header names another project than the token's, or one that does not exist.
    """
    verifier: OidcVerifier | None = request.app.state.oidc
    named = request.headers.get(PROJECT_HEADER)
    with watched(request, tokens.claimed_id(shown)):
        if verifier is not None and shown.count(".") == _JWT_DOTS:
            identity, named = verifier.identify(shown, named)
        else:
            identity = tokens.authenticate(session, shown)
    request.state.actor = identity
    enter(session, _project(session, identity, named))
    return identity


def _project(session: Session, identity: Identity, named: str | None) -> UUID:
    """Return the project in which an operator acts: the token's; else the one that they name, which gave the scope."""
    if named is None:
        return identity.project_id or DEFAULT_PROJECT
    project = projects.find(session, named)
    if identity.project_id not in {None, project.id}:
        raise projects.ProjectUnknown(named)
    return project.id


def identify_device(request: Request, session: Session, shown: str) -> Device:
    """Return the device that shows this token.

    Raises:
        Unauthenticated: it is not valid.
    """
    with watched(request):
        device = authenticate_device(session, shown)
    request.state.actor = Actor(kind="device", id=str(device.id), name=device.name)
    return device


def needs(scope: Scope, *, whole_server: bool = False, asks: bool = False) -> Callable[[Request, SessionDep], Identity]:
    """Return the dependency that lets in tokens of at least this scope and says who it is.

    Args:
        scope: the least.
        whole_server: only tokens of the whole server.
        asks: whatever the method, the call only asks: it changes nothing, and leaves no audit record.
    """

    def identify(request: Request, session: SessionDep) -> Identity:
        identity = identify_operator(request, session, bearer(request))
        identity.require(scope)
        if whole_server:
            identity.require_whole_server()
        if asks:
            session.execute(text("SET TRANSACTION READ ONLY"))
        elif request.method not in _SAFE:
            audit.require_record(session, f"{request.method} {request.url.path}")
            repeats.begin(request, session, identity)
        return identity

    return identify


def _identify_previewer(request: Request, session: SessionDep) -> Identity:
    identity = identify_operator(request, session, bearer(request))
    identity.require(Scope.VIEWER)
    session.flush()
    session.execute(text("SET TRANSACTION READ ONLY"))
    return identity


Previewer = Annotated[Identity, Depends(_identify_previewer, scope="function")]
"""A viewer who asks with a body; PostgreSQL refuses whatever the call would write."""
Viewer = Annotated[Identity, Depends(needs(Scope.VIEWER), scope="function")]
Asker = Annotated[Identity, Depends(needs(Scope.VIEWER, asks=True), scope="function")]
"""A viewer whose question stands in a body."""
Operator = Annotated[Identity, Depends(needs(Scope.OPERATOR), scope="function")]
Releaser = Annotated[Identity, Depends(needs(Scope.RELEASER), scope="function")]
Admin = Annotated[Identity, Depends(needs(Scope.ADMIN), scope="function")]
ServerViewer = Annotated[Identity, Depends(needs(Scope.VIEWER, whole_server=True), scope="function")]
ServerAdmin = Annotated[Identity, Depends(needs(Scope.ADMIN, whole_server=True), scope="function")]


def _identify_caller(request: Request, session: SessionDep) -> Device:
    return identify_device(request, session, bearer(request))


Caller = Annotated[Device, Depends(_identify_caller, scope="function")]
"""The device that calls."""


def _identify_reader(request: Request, session: SessionDep) -> None:
    shown = bearer(request)
    if shown.startswith(DEVICE_PREFIX):
        identify_device(request, session, shown)
    else:
        identify_operator(request, session, shown)


Reader = Annotated[None, Depends(_identify_reader, scope="function")]
"""Whoever may read what is published: any operator, any device."""
