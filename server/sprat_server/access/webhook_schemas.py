"""What webhooks and their deliveries look like in requests and answers."""

from datetime import datetime
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from sprat_server.access.webhook_models import Delivery, Webhook
from sprat_server.observe.outbox import Event


class NewWebhook(BaseModel):
    """A webhook to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"name": "pager", "url": "https://hooks.example.com/sprat", "types": ["rollout.halted", "job.failed"]}
            ]
        },
    )

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,63}$")]
    url: Annotated[str, Field(max_length=2000)]
    types: Annotated[list[str], Field(max_length=50)] = []
    """Of events; none: all."""


class WebhookView(BaseModel):
    """A webhook without its secret."""

    id: UUID
    name: str
    url: str
    types: list[str]
    state: Literal["enabled", "disabled"]
    disabled_because: str | None
    failing_since: datetime | None
    created_by: str
    created_at: datetime

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """Show this row."""
        return cls(
            id=webhook.id,
            name=webhook.name,
            url=webhook.url,
            types=webhook.kinds,
            state="enabled" if webhook.disabled_at is None else "disabled",
            disabled_because=webhook.disabled_because,
            failing_since=webhook.failing_since,
            created_by=webhook.created_by,
            created_at=webhook.created_at,
        )


class WebhookSecret(WebhookView):
    """A webhook with its newest secret: it is shown this once."""

    secret: str = ""


class DeliveryView(BaseModel):
    """How sending one event to a webhook went."""

    event: UUID
    seq: int
    type: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    status: int | None
    error: str | None
    tried_at: datetime | None
    next_at: datetime | None

    @classmethod
    def of(cls, row: Delivery, event: Event) -> Self:
        """Show this row."""
        return cls(
            event=event.id,
            seq=event.seq,
            type=event.kind,
            state=row.state,  # type: ignore[arg-type] # held by CHECK state_is_known
            attempts=row.attempts,
            status=row.status,
            error=row.error,
            tried_at=row.tried_at,
            next_at=row.next_at,
        )
