"""/api/v1/webhooks: where events are sent, and how that went."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Query, Response
from sqlalchemy import select

from sprat_server.access import audit, delivery, webhooks
from sprat_server.access.webhook_models import Delivery, Webhook
from sprat_server.access.webhook_schemas import DeliveryView, NewWebhook, WebhookSecret, WebhookView
from sprat_server.api.auth import Admin, Operator, Viewer
from sprat_server.api.described import raises
from sprat_server.api.paging import Page, SortedPaging
from sprat_server.api.ports import SettingsDep
from sprat_server.api.routes import operators_router
from sprat_server.db.session import SessionDep
from sprat_server.observe.outbox import Event

router = operators_router(prefix="/webhooks", tags=["webhooks"])


@router.post("", status_code=201, responses=raises(conflict=["webhook.exists", "webhook.too-many"]))
def create_webhook(body: NewWebhook, session: SessionDep, settings: SettingsDep, admin: Admin) -> WebhookSecret:
    """Have events sent to an address, signed. The secret is in this answer and nowhere else."""
    delivery.check_url(body.url, private=settings.webhook_private)
    webhook, secret = webhooks.create(session, name=body.name, url=body.url, kinds=body.types, by=admin)
    audit.record(session, admin, "webhook.create", f"webhook:{webhook.id}", after=body.model_dump(mode="json"))
    return WebhookSecret(**WebhookView.of(webhook).model_dump(), secret=secret)


@router.get("")
def list_webhooks(session: SessionDep, _viewer: Viewer, page: SortedPaging) -> Page[WebhookView]:
    """List webhooks, newest first."""
    rows, following = page.take(session, select(Webhook), key=Webhook.id, parse=UUID)
    return Page(items=[WebhookView.of(row) for row in rows], next=following)


@router.get("/{webhook}", responses=raises(not_found=["webhook.unknown"]))
def get_webhook(webhook: str, session: SessionDep, _viewer: Viewer) -> WebhookView:
    """Show a webhook."""
    return WebhookView.of(webhooks.find(session, webhook))


@router.delete("/{webhook}", status_code=204, response_class=Response, responses=raises(not_found=["webhook.unknown"]))
def delete_webhook(webhook: str, session: SessionDep, admin: Admin) -> None:
    """Send nothing more to an address, and forget what was sent."""
    found = webhooks.find(session, webhook, lock=True)
    before = {"name": found.name, "url": found.url}
    session.delete(found)
    session.flush()
    audit.record(session, admin, "webhook.delete", f"webhook:{found.id}", before)


@router.post("/{webhook}/rotate", responses=raises(not_found=["webhook.unknown"]))
def rotate_webhook(webhook: str, session: SessionDep, admin: Admin) -> WebhookSecret:
    """Give a webhook another secret; the one before signs beside it for a day."""
    found = webhooks.find(session, webhook, lock=True)
    secret = webhooks.rotate(session, found)
    audit.record(session, admin, "webhook.rotate", f"webhook:{found.id}")
    return WebhookSecret(**WebhookView.of(found).model_dump(), secret=secret)


@router.post("/{webhook}/enable", responses=raises(not_found=["webhook.unknown"]))
def enable_webhook(webhook: str, session: SessionDep, operator: Operator) -> WebhookView:
    """Send to an address again that was disabled because no delivery succeeded for days."""
    found = webhooks.find(session, webhook, lock=True)
    before = {"disabled_because": found.disabled_because}
    webhooks.enable(session, found)
    audit.record(session, operator, "webhook.enable", f"webhook:{found.id}", before)
    return WebhookView.of(found)


@router.post("/{webhook}/test", status_code=202, responses=raises(not_found=["webhook.unknown"]))
def test_webhook(webhook: str, session: SessionDep, operator: Operator) -> WebhookView:
    """Send an event of the type webhook.test to this address alone; its deliveries show how that went."""
    found = webhooks.find(session, webhook)
    webhooks.try_out(session, found)
    audit.record(session, operator, "webhook.test", f"webhook:{found.id}")
    return WebhookView.of(found)


@router.get("/{webhook}/deliveries", responses=raises(not_found=["webhook.unknown"]))
def list_deliveries(
    webhook: str,
    session: SessionDep,
    _viewer: Viewer,
    page: SortedPaging,
    *,
    state: Annotated[Literal["pending", "delivered", "failed"] | None, Query()] = None,
) -> Page[DeliveryView]:
    """List what a webhook was sent, the newest event first."""
    found = webhooks.find(session, webhook)
    query = select(Delivery).where(Delivery.webhook_id == found.id)
    if state is not None:
        query = query.where(Delivery.state == state)
    rows, following = page.take(session, query, key=Delivery.event_seq, parse=int)
    events = session.scalars(select(Event).where(Event.seq.in_([row.event_seq for row in rows])))
    by_seq = {event.seq: event for event in events}
    return Page(items=[DeliveryView.of(row, by_seq[row.event_seq]) for row in rows], next=following)


@router.post(
    "/{webhook}/deliveries/{event_id}/replay",
    status_code=202,
    responses=raises(not_found=["webhook.unknown"], conflict=["webhook.disabled"]),
)
def replay_delivery(webhook: str, event_id: UUID, session: SessionDep, operator: Operator) -> DeliveryView:
    """Send an event again, whether it was delivered or given up."""
    found = webhooks.find(session, webhook)
    row = webhooks.replay(session, found, event_id)
    event = session.scalars(select(Event).where(Event.seq == row.event_seq)).one()
    audit.record(session, operator, "webhook.replay", f"webhook:{found.id}", after={"event": str(event_id)})
    return DeliveryView.of(row, event)
