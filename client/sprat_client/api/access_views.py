"""The shapes of the server's JSON about who may do what: projects, tokens, the audit log; as in `views`."""

from typing import Any, NotRequired, TypedDict


class ProjectView(TypedDict):
    """A project."""

    id: str
    name: str
    title: str
    created_by: str
    created_at: str
    changed_at: str


class EnrolmentTokenView(TypedDict):
    """A token that lets devices enrol; `token` is shown once."""

    id: str
    token: str
    group: str
    uses: int
    expires_at: str


class TokenView(TypedDict):
    """An operator's token; `token` is there only in the answer that made it."""

    id: str
    name: str
    scope: str
    scopes: list[str]
    whole_server: bool
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    token: NotRequired[str]


class AuditView(TypedDict):
    """One record of the append-only audit log, chained by digests."""

    seq: int
    at: str
    actor: str
    actor_id: str
    action: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    request_id: str | None
    address: str | None
    previous: str
    digest: str
    sealed: str
