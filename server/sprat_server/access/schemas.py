"""What tokens and audit records look like in requests and answers."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from sprat_server.access.models import AuditRecord, OperatorToken
from sprat_server.access.tokens import Scope
from sprat_server.db.projects import Project


class NewProject(BaseModel):
    """A project to be made."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "line-3", "title": "Line 3"}]})

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
    title: Annotated[str, Field(max_length=200)] = ""


class ProjectChange(BaseModel):
    """What of a project is to be another."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"title": "Line 3, new ovens"}]})

    title: Annotated[str, Field(max_length=200)]


class ProjectView(BaseModel):
    """A project."""

    id: UUID
    name: str
    title: str
    created_by: str
    created_at: datetime
    changed_at: datetime

    @classmethod
    def of(cls, project: Project) -> Self:
        """Show this row."""
        return cls(
            id=project.id,
            name=project.name,
            title=project.title,
            created_by=project.created_by,
            created_at=project.created_at,
            changed_at=project.changed_at,
        )


class NewToken(BaseModel):
    """A token to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "ci@line-3", "scopes": ["releaser"], "expires_s": 2592000}]},
    )

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,63}$")]
    scopes: Annotated[list[Literal["viewer", "operator", "releaser", "admin"]], Field(min_length=1)]
    """Each scope includes those below it, so the highest decides."""
    expires_s: Annotated[float | None, Field(ge=1, le=10 * 365 * 86400)] = None
    whole_server: bool = False
    """Of the whole server; else of the project in which it is made."""

    @property
    def scope(self) -> Scope:
        """The highest of the scopes."""
        return max(Scope.of(name) for name in self.scopes)


class TokenView(BaseModel):
    """A token without its secret."""

    id: UUID
    name: str
    scope: str
    scopes: list[str]
    whole_server: bool
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, token: OperatorToken) -> Self:
        """Show this row."""
        scope = Scope.of(token.scope)
        return cls(
            id=token.id,
            name=token.name,
            scope=scope.label,
            scopes=[each.label for each in Scope if each <= scope],
            whole_server=token.project_id is None,
            created_at=token.created_at,
            expires_at=token.expires_at,
            revoked_at=token.revoked_at,
            last_used_at=token.last_used_at,
        )


class MadeToken(TokenView):
    """A token just made, with its text: it is shown this once."""

    token: str = ""


class AuditView(BaseModel):
    """One audit record; `digest` is SHA-256 over the bytes of `previous` and the text `sealed`, which says the rest."""

    seq: int
    at: datetime
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

    @classmethod
    def of(cls, record: AuditRecord) -> Self:
        """Show this row."""
        return cls(
            seq=record.seq,
            at=record.at,
            actor=record.actor,
            actor_id=record.actor_id,
            action=record.action,
            subject=record.subject,
            before=record.before,
            after=record.after,
            request_id=record.request_id,
            address=record.address,
            previous=record.previous.hex(),
            digest=record.digest.hex(),
            sealed=record.sealed,
        )
