"""Events and webhooks: what happened, followed or sent."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast
from urllib.parse import quote

from sprat_client.api.transport import Transport


class EventView(TypedDict):
    """Something that happened; `seq` counts within the project."""

    seq: int
    id: str
    type: str
    subject: str
    data: dict[str, Any]
    timestamp: str


class WebhookView(TypedDict):
    """An address that is sent events; `secret` is there only in the answer that made it."""

    id: str
    name: str
    url: str
    types: list[str]
    state: Literal["enabled", "disabled"]
    disabled_because: str | None
    failing_since: str | None
    created_by: str
    created_at: str
    secret: NotRequired[str]


class DeliveryView(TypedDict):
    """How sending one event to a webhook went."""

    event: str
    seq: int
    type: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    status: int | None
    error: str | None
    tried_at: str | None
    next_at: str | None


class Events:
    """What happened in a project."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, types: Sequence[str] = (), limit: int | None = None) -> list[EventView]:
        """Return events, newest first, at most `limit` of them."""
        return list(self._transport.pages("/events", limit=limit, type=list(types) or None))

    def follow(self, *, types: Sequence[str] = (), after: int | None = None) -> Iterator[EventView]:
        """Iterate events as they happen, without end; where the link is cut it goes on without a gap.

        Args:
            types: only these.
            after: begin after the event of this `seq`; None: with what happens from now on.
        """
        query: dict[str, Any] = {"type": list(types)} if types else {}
        for said in self._transport.stream("/events", last_id=None if after is None else str(after), **query):
            yield cast("EventView", json.loads(said))


class Webhooks:
    """Addresses that are sent a project's events."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, *, url: str, types: Sequence[str] = ()) -> WebhookView:
        """Make a webhook; its secret is shown in this answer only."""
        return cast("WebhookView", self._transport.post("/webhooks", {"name": name, "url": url, "types": list(types)}))

    def get(self, name: str) -> WebhookView:
        """Return a webhook."""
        return cast("WebhookView", self._transport.get(_path(name)))

    def delete(self, name: str) -> None:
        """Send nothing more to it."""
        self._transport.delete(_path(name))

    def rotate(self, name: str) -> WebhookView:
        """Give it another secret, shown in this answer only; the one before signs beside it for a day."""
        return cast("WebhookView", self._transport.post(f"{_path(name)}/rotate"))

    def enable(self, name: str) -> WebhookView:
        """Send to it again."""
        return cast("WebhookView", self._transport.post(f"{_path(name)}/enable"))

    def test(self, name: str) -> WebhookView:
        """Send it an event of the type webhook.test."""
        return cast("WebhookView", self._transport.post(f"{_path(name)}/test"))

    def deliveries(self, name: str, *, limit: int | None = None) -> list[DeliveryView]:
        """Return what it was sent, the newest event first."""
        return list(self._transport.pages(f"{_path(name)}/deliveries", limit=limit))

    def list(self) -> list[WebhookView]:
        """Return all webhooks."""
        return list(self._transport.pages("/webhooks"))

    def replay(self, name: str, event: str) -> DeliveryView:
        """Send it an event again."""
        return cast("DeliveryView", self._transport.post(f"{_path(name)}/deliveries/{event}/replay"))


def _path(name: str) -> str:
    return f"/webhooks/{quote(name, safe='')}"
