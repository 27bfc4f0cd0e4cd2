"""/api/v1/tokens and /api/v1/audit: who may do what, and who did what."""

from typing import Annotated
from uuid import UUID

from fastapi import Query, Response
from pydantic import AwareDatetime, BaseModel
from sqlalchemy import select

from sprat_server.access import audit, tokens
from sprat_server.access.models import AuditRecord, OperatorToken
from sprat_server.access.schemas import AuditView, MadeToken, NewToken, TokenView
from sprat_server.api.auth import Admin, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, SortedPaging
from sprat_server.api.routes import operators_router
from sprat_server.db.projects import ACROSS
from sprat_server.db.session import SessionDep

router = operators_router(tags=["access"])

OfServer = Annotated[
    bool, Query(description="Of the server itself, not of a project; needs a token of the whole server.")
]


class ChainView(BaseModel):
    """Whether the audit log's chain is whole; `broken_at` is the first record that does not fit."""

    whole: bool
    broken_at: int | None


@router.post("/tokens", status_code=201, responses=raises(conflict=["token.exists"]))
def create_token(body: NewToken, session: SessionDep, admin: Admin) -> MadeToken:
    """Make an operator's token. Its text is in this answer and nowhere else."""
    token, text = tokens.create(
        session,
        name=body.name,
        scope=body.scope,
        expires_s=body.expires_s,
        by=admin,
        whole_server=body.whole_server,
    )
    after = {"name": token.name, "scope": token.scope, "expires_at": token.expires_at and token.expires_at.isoformat()}
    audit.record(session, admin, "token.create", f"token:{token.id}", None, after, of_server=body.whole_server)
    return MadeToken(**TokenView.of(token).model_dump(), token=text)


@router.get("/tokens")
def list_tokens(
    session: SessionDep, admin: Admin, page: SortedPaging, *, of_server: OfServer = False
) -> Page[TokenView]:
    """List operators' tokens, newest first, without their secrets."""
    query = select(OperatorToken)
    if of_server:
        admin.require_whole_server()
        query = query.where(OperatorToken.project_id.is_(None)).execution_options(**ACROSS)
    rows, following = page.take(session, query, key=OperatorToken.id, parse=UUID)
    return Page(items=[TokenView.of(token) for token in rows], next=following)


@router.delete(
    "/tokens/{token_id}",
    status_code=204,
    response_class=Response,
    responses=raises(not_found=["token.unknown"], conflict=["token.last-admin"]),
)
def revoke_token(token_id: UUID, session: SessionDep, admin: Admin) -> None:
    """Revoke a token at once."""
    token = tokens.revoke(session, token_id, by=admin)
    before = {"name": token.name, "scope": token.scope}
    of_server = token.project_id is None
    audit.record(session, admin, "token.revoke", f"token:{token.id}", before, None, of_server=of_server)


@router.get("/audit")
def list_audit(
    session: SessionDep,
    viewer: Viewer,
    page: SortedPaging,
    *,
    of_server: OfServer = False,
    subject: Annotated[str | None, Query(description="Only records about this, e.g. rollout:<id>.")] = None,
    action: Annotated[str | None, Query(description="Only this action, e.g. token.create.")] = None,
    actor: Annotated[str | None, Query(description="Only what this one did, e.g. operator:anna.")] = None,
    since: Annotated[AwareDatetime | None, Query(description="Only records of this time and later.")] = None,
    until: Annotated[AwareDatetime | None, Query(description="Only records before this time.")] = None,
) -> Page[AuditView]:
    """List the project's audit log, newest first; `sort=created`: in the order of the chain."""
    if of_server:
        viewer.require_whole_server()
    query = audit.records(of_server=of_server)
    said = {AuditRecord.subject: subject, AuditRecord.action: action, AuditRecord.actor: actor}
    query = query.where(*(column == value for column, value in said.items() if value is not None))
    if since is not None:
        query = query.where(AuditRecord.at >= since)
    if until is not None:
        query = query.where(AuditRecord.at < until)
    rows, following = page.take(session, query, key=AuditRecord.seq, parse=int)
    return Page(items=[AuditView.of(record) for record in rows], next=following)


@router.get("/audit/chain")
def check_audit(session: SessionDep, viewer: Viewer, *, of_server: OfServer = False) -> ChainView:
    """Recompute the chain of the project's audit log."""
    if of_server:
        viewer.require_whole_server()
    broken_at = audit.verify(session, of_server=of_server)
    return ChainView(whole=broken_at is None, broken_at=broken_at)
