"""Webhooks: addresses that are sent a project's events, signed, tried again, and noted. Callers own the transaction.

What is sent follows Standard Webhooks (standardwebhooks.com): the headers webhook-id, webhook-timestamp and webhook-
signature, which is `v1,` and the base64 of HMAC-SHA256 over "id.timestamp.body". A secret that was replaced signs
beside the new one for a day. Deliveries are made by a trigger, with the event; workers take them from the queue.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sprat_server.access.webhook_models import DELIVERED, FAILED, PENDING, Delivery, Webhook
from sprat_server.observe import outbox
from sprat_server.observe.actors import Actor
from sprat_server.observe.outbox import Event
from sprat_shared.errors import Conflict, InvalidInput, NotFound
from sprat_shared.ids import new_id

QUEUE: Final = "sprat-webhooks"
TASK_NAME: Final = "sprat.deliver"
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what secrets begin with, as the standard says
OLD_SECRET_LIVES: Final = timedelta(days=1)
MOST_ATTEMPTS: Final = 12
FAILING_ALLOWED: Final = timedelta(days=5)
_MOST_WEBHOOKS: Final = 50
_FIRST_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 6 * 3600.0
_OVERDUE: Final = timedelta(minutes=5)

_DEFER: Final = text(
    "SELECT procrastinate_defer_jobs_v1(ARRAY[ROW("
    " :queue, :task, 0, NULL, NULL,"
    " jsonb_build_object('webhook_id', CAST(:hook AS text), 'seq', CAST(:seq AS bigint)),"
    " CAST(:at AS timestamptz))::procrastinate_job_to_defer_v1])"
)


_DROP_LOST: Final = text(  # what dead workers had taken: procrastinate forgets the worker and leaves the job
    "DELETE FROM procrastinate_jobs WHERE queue_name = :queue AND status = 'doing' AND worker_id IS NULL"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a webhook's attempts came to, and what waits for it."""

    name: str
    attempts: Mapping[str, int]  # by outcome: delivered, failed (to be tried again), given_up
    waiting: int
    oldest_s: float  # for how long the oldest that waits has; 0: none


class WebhookUnknown(NotFound):
    """There is no webhook of this name, or no delivery of this event to it."""

    code = "webhook.unknown"


def create(session: Session, *, name: str, url: str, kinds: Sequence[str], by: Actor) -> tuple[Webhook, str]:
    """Make a webhook; return its row and its secret as text, which is shown this once.

    Raises:
        InvalidInput: a kind of event is not known.
        Conflict: there is one of this name, or as many as a project may have.
    """
    unknown = sorted(set(kinds) - set(outbox.KINDS))
    if unknown:
        raise InvalidInput(f"{', '.join(unknown)}: no such kind of event; there are {', '.join(outbox.KINDS)}")
    if len(session.scalars(select(Webhook.id)).all()) >= _MOST_WEBHOOKS:
        raise Conflict(f"a project has at most {_MOST_WEBHOOKS} webhooks; delete one first", code="webhook.too-many")
    webhook = Webhook(
        id=new_id(), name=name, url=url, kinds=sorted(set(kinds)), secret=secrets.token_bytes(32), created_by=str(by)
    )
    try:
        with session.begin_nested():
            session.add(webhook)
    except IntegrityError as clash:
        if "uq_webhook_project_id_name" not in str(clash.orig):
            raise
        raise Conflict(f"a webhook called {name!r} exists; choose another name", code="webhook.exists") from clash
    session.refresh(webhook)
    return webhook, secret_text(webhook.secret)


def find(session: Session, name: str, *, lock: bool = False) -> Webhook:
    """Return the webhook of this name.

    Raises:
        WebhookUnknown: there is none.
    """
    query = select(Webhook).where(Webhook.name == name)
    webhook = session.scalar(query.with_for_update() if lock else query)
    if webhook is None:
        raise WebhookUnknown(f"there is no webhook called {name[:80]!r}; `sprat webhook list` shows them")
    return webhook


def rotate(session: Session, webhook: Webhook, now: datetime | None = None) -> str:
    """Give a webhook another secret and return its text; the old one signs beside it for a day."""
    webhook.old_secret, webhook.old_secret_until = webhook.secret, (now or datetime.now(UTC)) + OLD_SECRET_LIVES
    webhook.secret = secrets.token_bytes(32)
    session.flush()
    return secret_text(webhook.secret)


def enable(session: Session, webhook: Webhook) -> None:
    """Send to a webhook again that was disabled: what waited when it was, and what happens from now on."""
    webhook.disabled_at = webhook.disabled_because = webhook.failing_since = None
    session.flush()


def try_out(session: Session, webhook: Webhook) -> None:
    """Send an event to this webhook alone, whatever kinds it asks for."""
    outbox.tell(session, "webhook.test", f"webhook:{webhook.id}", {"webhook": webhook.name})


def replay(session: Session, webhook: Webhook, event_id: UUID) -> Delivery:
    """Send an event to a webhook again, whether it was delivered or given up.

    Raises:
        WebhookUnknown: it was never meant for it, or was forgotten.
        Conflict: the webhook is disabled.
    """
    row = session.scalar(
        select(Delivery)
        .join(Event, Event.seq == Delivery.event_seq)
        .where(Delivery.webhook_id == webhook.id, Event.id == event_id)
        .with_for_update(of=Delivery)
    )
    if row is None:
        raise WebhookUnknown(f"{webhook.name} was never sent an event {event_id}, or it was forgotten")
    if webhook.disabled_at is not None:
        raise Conflict(f"{webhook.name} is disabled; enable it first", code="webhook.disabled")
    now = datetime.now(UTC)
    row.state, row.attempts, row.error, row.next_at = PENDING, 0, None, now
    session.flush()
    defer(session, row, now)
    return row


def defer(session: Session, row: Delivery, at: datetime) -> None:
    """Queue an attempt for a time."""
    said = {"queue": QUEUE, "task": TASK_NAME, "hook": str(row.webhook_id), "seq": row.event_seq, "at": at}
    session.execute(_DEFER, said)


def queue_overdue(session: Session, now: datetime | None = None) -> int:
    """Queue attempts again that a worker took and never made; return how many. The session sees every project.

    What waits for a webhook that is disabled goes on waiting.
    """
    now = now or datetime.now(UTC)
    session.execute(_DROP_LOST, {"queue": QUEUE})
    enabled = select(Webhook.id).where(Webhook.disabled_at.is_(None))
    overdue = select(Delivery).where(
        Delivery.state == PENDING, Delivery.next_at < now - _OVERDUE, Delivery.webhook_id.in_(enabled)
    )
    rows = session.scalars(overdue.limit(1000).with_for_update(skip_locked=True)).all()
    for row in rows:
        row.next_at = now
        defer(session, row, now)
    session.flush()
    return len(rows)


def note(
    session: Session, row: Delivery, webhook: Webhook, *, status: int | None, error: str | None, draw: float
) -> None:
    """Note how an attempt ended and queue the next one where it failed.

    Args:
        session: the caller's transaction.
        row: what was sent; locked.
        webhook: to whom; locked.
        status: of the answer; None: there was none.
        error: why it failed; None: it did not.
        draw: a random number from 0 to 1, for the pause.
    """
    now = datetime.now(UTC)
    row.attempts, row.status, row.error, row.tried_at = row.attempts + 1, status, error, now
    if error is None:
        row.state, row.next_at, webhook.failing_since = DELIVERED, None, None
        webhook.delivered += 1
    else:
        webhook.failing_since = webhook.failing_since or now
        if row.attempts >= MOST_ATTEMPTS:
            row.state, row.next_at = FAILED, None
            webhook.given_up += 1
        else:
            row.next_at = now + timedelta(seconds=pause_s(row.attempts, draw))
            defer(session, row, row.next_at)
            webhook.failed += 1
        if now - webhook.failing_since > FAILING_ALLOWED:
            webhook.disabled_at = now
            webhook.disabled_because = (
                f"no delivery succeeded since {webhook.failing_since:%Y-%m-%d %H:%M} UTC: {error}"
            )
    session.flush()


def readings(session: Session, now: datetime | None = None) -> list[Reading]:
    """Return what the webhooks of the session's project came to, by name."""
    now = now or datetime.now(UTC)
    waiting = select(Delivery.webhook_id, func.count(), func.min(Delivery.created_at)).where(Delivery.state == PENDING)
    of_hook = {row[0]: (row[1], row[2]) for row in session.execute(waiting.group_by(Delivery.webhook_id))}
    found = []
    for hook in session.scalars(select(Webhook).order_by(Webhook.name)):
        count, oldest = of_hook.get(hook.id, (0, now))
        attempts = {"delivered": hook.delivered, "failed": hook.failed, "given_up": hook.given_up}
        found.append(Reading(hook.name, attempts, count, max(0.0, (now - oldest).total_seconds())))
    return found


def pause_s(attempts: int, draw: float) -> float:
    """Return the seconds before the next attempt: doubling from five seconds to six hours, full jitter.

    Args:
        attempts: how many there were, from 1.
        draw: a random number from 0 to 1.
    """
    return draw * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (attempts - 1))


def body_of(event: Event) -> bytes:
    """Return what is sent of an event."""
    said: dict[str, Any] = {
        "id": str(event.id),
        "type": event.kind,
        "timestamp": event.at.isoformat(),
        "subject": event.subject,
        "data": event.data,
    }
    return json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()


def signed_headers(keys: Sequence[bytes], message_id: str, at: datetime, body: bytes) -> Mapping[str, str]:
    """Return the headers that prove a message, one signature for each key."""
    stamp = str(int(at.timestamp()))
    signed = b".".join([message_id.encode(), stamp.encode(), body])
    signatures = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": " ".join(f"v1,{one}" for one in signatures),
    }


def signing_keys(webhook: Webhook, now: datetime) -> list[bytes]:
    """Return the secrets that sign now: the newest first, and the one before for a day."""
    old = webhook.old_secret
    still = old is not None and webhook.old_secret_until is not None and now < webhook.old_secret_until
    return [webhook.secret, *([old] if still and old is not None else [])]


def secret_text(secret: bytes) -> str:
    """Return a secret as it is shown."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()
