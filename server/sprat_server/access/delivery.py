"""Sending one event to one webhook: read, sign, send without a connection to the database, note how it ended.

A webhook's address is anybody's choice, so it must not become a way into this server's own network: names are resolved
here, every address must be a public one, and the connection goes to exactly the address that was looked at. Redirects
are not followed, proxies of the environment are not used, and of the answer only the status is kept.
"""

import ipaddress
import random
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit
from uuid import UUID

import httpx
import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.access import webhooks
from sprat_server.access.webhook_models import PENDING, Delivery, Webhook
from sprat_server.db.projects import enter
from sprat_server.db.session import Database
from sprat_server.observe import tracing
from sprat_server.observe.outbox import Event
from sprat_shared.errors import InvalidInput

_TIMEOUT_S: Final = 10.0
_EARLY: Final = timedelta(seconds=5)  # as far may this clock and the database's be apart
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # the last 32 bits are an address of IPv4
_PORTS: Final = {"http": 80, "https": 443}

_log = structlog.get_logger(__name__)


class AddressRefused(InvalidInput):
    """A webhook's address is not one that this server sends to."""

    code = "webhook.address"


@dataclass(frozen=True, slots=True)
class _Message:
    url: str
    body: bytes
    headers: dict[str, str]


def check_url(url: str, *, private: bool) -> SplitResult:
    """Return the parts of an address that webhooks may have.

    Args:
        url: the address.
        private: plain HTTP and addresses of private networks are allowed.

    Raises:
        AddressRefused: it is not.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as bad:
        raise AddressRefused(f"{url[:100]!r} is not a URL ({bad}); write https://host/path") from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise AddressRefused(f"{url[:100]!r} is not an address to send to; write https://host/path")
    if parts.scheme == "http" and not private:
        raise AddressRefused("plain HTTP shows events to everyone on the way; write https://")
    if parts.username is not None or parts.fragment:
        raise AddressRefused("a webhook's URL holds no user and no fragment; the signature says who sends")
    return parts


def resolve(parts: SplitResult, *, private: bool) -> str:
    """Return the IP address to connect to; every one that the name has must be allowed.

    Raises:
        AddressRefused: one is not public, or the name has none.
    """
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as bad:
        raise AddressRefused(f"{host} has no address ({bad})") from None
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        if not private and not is_public(address):
            raise AddressRefused(
                f"{host} is {address}, which is not a public address; SPRAT_WEBHOOK_PRIVATE=1 allows those"
            )
    return addresses[0]


def is_public(address: str) -> bool:
    """Tell whether an IP address is of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(ip.packed[-4:]) if ip in _NAT64 else None
        inner = ip.ipv4_mapped or ip.sixtofour or translated
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def deliver(database: Database, webhook_id: UUID, seq: int, *, private: bool) -> None:
    """Send an event to a webhook, if that is still to be done.

    Args:
        database: where both are.
        webhook_id: to whom.
        seq: the event's number.
        private: plain HTTP and addresses of private networks are allowed.
    """
    attributes = {"sprat.webhook": str(webhook_id), "sprat.event.seq": seq}
    with tracing.span("webhook.deliver", kind="client", attributes=attributes):
        _deliver(database, webhook_id, seq, private=private)


def _deliver(database: Database, webhook_id: UUID, seq: int, *, private: bool) -> None:
    with database.across_projects() as session:
        found = _locked(session, webhook_id, seq)
        message = None if found is None else _message(session, *found)
    if message is None:
        return
    status, error = _send(message, private=private)
    with database.across_projects() as session:
        found = _locked(session, webhook_id, seq)
        if found is not None:
            row, webhook = found
            webhooks.note(session, row, webhook, status=status, error=error, draw=random.random())  # noqa: S311 - jitter
    tracing.note({"http.request.method": "POST", "http.response.status_code": status})
    if error is not None:
        tracing.fail("no answer" if status is None else str(status))
    _log.info("webhook.tried", webhook=str(webhook_id), seq=seq, status=status, error=error)


def _locked(session: Session, webhook_id: UUID, seq: int) -> tuple[Delivery, Webhook] | None:
    """Return what is to be sent, locked; None where it was sent, given up, forgotten, or the webhook is off."""
    webhook = session.scalar(select(Webhook).where(Webhook.id == webhook_id).with_for_update())
    if webhook is None or webhook.disabled_at is not None:
        return None
    enter(session, webhook.project_id)
    row = session.scalar(
        select(Delivery).where(Delivery.webhook_id == webhook_id, Delivery.event_seq == seq).with_for_update()
    )
    if row is None or row.state != PENDING or row.next_at is None or row.next_at > datetime.now(UTC) + _EARLY:
        return None  # the last: it was queued twice, and the other attempt has failed meanwhile
    return row, webhook


def _message(session: Session, row: Delivery, webhook: Webhook) -> _Message:
    now = datetime.now(UTC)
    event = session.scalars(select(Event).where(Event.seq == row.event_seq)).one()
    body = webhooks.body_of(event)
    headers = dict(webhooks.signed_headers(webhooks.signing_keys(webhook, now), str(event.id), now, body))
    headers |= {"Content-Type": "application/json", "User-Agent": "sprat-webhooks/1"}
    return _Message(webhook.url, body, headers)


def _send(message: _Message, *, private: bool) -> tuple[int | None, str | None]:
    """Send it; return the answer's status, and why it counts as failed, if it does."""
    try:
        parts = check_url(message.url, private=private)
        address = resolve(parts, private=private)
        host = f"[{address}]" if ":" in address else address
        port = f":{parts.port}" if parts.port else ""
        url = parts._replace(netloc=f"{host}{port}").geturl()
        headers = message.headers | {"Host": parts.netloc}
        options: dict[str, Any] = {"extensions": {"sni_hostname": parts.hostname}} if parts.scheme == "https" else {}
        with (
            httpx.Client(timeout=_TIMEOUT_S, follow_redirects=False, trust_env=False) as client,
            client.stream("POST", url, content=message.body, headers=headers, **options) as answer,
        ):
            status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL, AddressRefused) as bad:
        return None, f"{type(bad).__name__}: {bad}"[:400]
    return status, None if 200 <= status < 300 else f"it answered {status}"  # noqa: PLR2004 - success
