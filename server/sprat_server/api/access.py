"""/api/v1/tokens and /api/v1/audit: who may do what, and who did what."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import undefer

from sprat_server.access import audit, tokens
from sprat_server.access.models import AuditRecord, OperatorToken
from sprat_server.access.schemas import AuditView, MadeToken, NewToken, TokenView
from sprat_server.api.auth import Admin, Viewer
from sprat_server.api.paging import Page, Paging
from sprat_server.db.paging import take_page
from sprat_server.db.session import SessionDep

router = APIRouter(tags=["access"])


class ChainView(BaseModel):
    """Whether the audit log's chain is whole; `broken_at` is the first record that does not fit."""

    whole: bool
    broken_at: int | None


@router.post("/tokens", status_code=201)
def create_token(body: NewToken, session: SessionDep, admin: Admin) -> MadeToken:
    """Make an operator's token. Its text is in this answer and nowhere else."""
    token, text = tokens.create(session, name=body.name, scope=body.scope, expires_s=body.expires_s, by=admin)
    after = {"name": token.name, "scope": token.scope, "expires_at": token.expires_at and token.expires_at.isoformat()}
    audit.record(session, admin, "token.create", f"token:{token.id}", None, after)
    return MadeToken(**TokenView.of(token).model_dump(), token=text)


@router.get("/tokens")
def list_tokens(session: SessionDep, _admin: Admin, page: Paging) -> Page[TokenView]:
    """List operators' tokens, newest first, without their secrets."""
    rows, following = take_page(
        session, select(OperatorToken), key=OperatorToken.id, parse=UUID, cursor=page.cursor, limit=page.limit
    )
    return Page(items=[TokenView.of(token) for token in rows], next=following)


@router.delete("/tokens/{token_id}", status_code=204, response_class=Response)
def revoke_token(token_id: UUID, session: SessionDep, admin: Admin) -> None:
    """Revoke a token at once."""
    token = tokens.revoke(session, token_id)
    audit.record(session, admin, "token.revoke", f"token:{token.id}", {"name": token.name, "scope": token.scope}, None)


@router.get("/audit")
def list_audit(
    session: SessionDep,
    _viewer: Viewer,
    page: Paging,
    subject: Annotated[str | None, Query(description="Only records about this, e.g. rollout:<id>.")] = None,
    action: Annotated[str | None, Query(description="Only this action, e.g. token.create.")] = None,
    oldest_first: Annotated[bool, Query(description="In the order of the chain.")] = False,  # noqa: FBT002
) -> Page[AuditView]:
    """List the audit log, newest first unless asked otherwise."""
    query = select(AuditRecord).options(undefer(AuditRecord.sealed))
    if subject is not None:
        query = query.where(AuditRecord.subject == subject)
    if action is not None:
        query = query.where(AuditRecord.action == action)
    rows, following = take_page(
        session,
        query,
        key=AuditRecord.seq,
        parse=int,
        cursor=page.cursor,
        limit=page.limit,
        newest_first=not oldest_first,
    )
    return Page(items=[AuditView.of(record) for record in rows], next=following)


@router.get("/audit/chain")
def check_audit(session: SessionDep, _viewer: Viewer) -> ChainView:
    """Recompute the chain of the audit log."""
    broken_at = audit.verify(session)
    return ChainView(whole=broken_at is None, broken_at=broken_at)
