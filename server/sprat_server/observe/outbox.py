"""Events: what happened that others may want to hear of, written in the transaction in which it happened (an outbox).

    outbox.tell(session, "rollout.halted", f"rollout:{rollout.id}", {"model": "mnist", "reason": why})

Rows are added when the transaction commits, after all else, under a lock of their project: so their numbers are in the
order of commits, without a gap that a reader could skip over, and nobody waits for that lock while holding it. Numbers
count within a project. A trigger notifies the channel `sprat_events`, and queues what webhooks are to be sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import CheckConstraint, FetchedValue, Index, PrimaryKeyConstraint, delete, event, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, Session, SessionTransaction, aliased, mapped_column

from sprat_server.db.base import Base
from sprat_server.db.projects import ProjectOwned, ProjectSession, in_project, project_of
from sprat_shared.ids import new_id

CHANNEL: Final = "sprat_events"
KEPT: Final = timedelta(days=30)

KINDS: Final[Mapping[str, str]] = {
    "rollout.created": "A rollout was drafted.",
    "rollout.approved": "A person said that it may start.",
    "rollout.prefetch": "The devices of a draft fetch its release ahead.",
    "rollout.started": "A rollout began.",
    "rollout.paused": "It opens no further wave.",
    "rollout.resumed": "It goes on.",
    "rollout.promoted": "A person opened the next wave.",
    "rollout.held": "Nobody is awaited, and its gate neither opens nor halts; after a time it halts by itself.",
    "rollout.halted": "A gate stopped it; devices that had the release go back.",
    "rollout.aborted": "A person ended it.",
    "rollout.superseded": "A later rollout took its devices over.",
    "rollout.undone": "A person had its devices go back, after its end.",
    "rollout.succeeded": "It has reached everyone.",
    "device.joined": "A device joined, or took another's place.",
    "device.left": "A device was revoked or let go.",
    "device.distrusts": "A device was sent what it does not believe.",
    "drift.notify": "A model does worse in the field; somebody should know.",
    "drift.retrain": "A model is retrained because of its drift.",
    "drift.retrained": "That retrain ended; its outcome says how.",
    "release.published": "Devices can have a release.",
    "sharing.stale": "A plan to share layers rests on a release that is not the newest any more.",
    "sharing.lowered": "A device does not keep a level of a plan to share layers, and gets the next one, or none.",
    "site.held": "The devices of a site fetch and load what a plan has them hold; the one before still serves.",
    "site.switching": "All of them are ready: requests begin under that plan.",
    "site.serving": "It serves, and the one before is over; who has not said so yet stands beside it.",
    "site.failed": "It ended before it served: a device refused it, left, or was not ready in time.",
    "site.aborted": "A person ended it before it served.",
    "site.halted": "A plan that was to be applied by plans in between is not: one of these did not come to serve.",
    "site.lost": "A device of a plan that serves left, or will not serve by it any more.",
    "site.improvement-adopted": "The full plan behind a repair saves more than its bytes cost, and is applied.",
    "site.improvement-declined": "It does not, or a person is to apply it; what it would bring stands beside it.",
    "job.succeeded": "A job ended well.",
    "job.failed": "A job ended with an error.",
    "job.cancelled": "A job was cancelled.",
    "webhook.test": "Somebody tried a webhook.",
}
"""Every kind of event, and what it says."""

_WAITING: Final = "sprat.events"


class Event(ProjectOwned, Base):
    """Something that happened in a project. Added once, never changed, forgotten after `KEPT`."""

    __tablename__ = "event"
    __table_args__ = (
        in_project(),
        PrimaryKeyConstraint("project_id", "seq"),
        Index("uq_event_project_id_id", "project_id", "id", unique=True),
        CheckConstraint("char_length(kind) BETWEEN 1 AND 60", name="kind_is_short"),
    )

    seq: Mapped[int] = mapped_column(server_default=FetchedValue())  # in the order of commits, from 1 in each project
    id: Mapped[UUID] = mapped_column(default=new_id)
    kind: Mapped[str]
    subject: Mapped[str]  # what it is about, such as rollout:<id>
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    at: Mapped[datetime] = mapped_column(server_default=func.now())


@dataclass(frozen=True, slots=True)
class _Told:
    project_id: UUID
    kind: str
    subject: str
    data: Mapping[str, Any]
    within: SessionTransaction | None  # the savepoint in which it was told, and with which it is undone


def tell(
    session: Session,
    kind: str,
    subject: str,
    data: Mapping[str, Any] | None = None,
    *,
    project_id: UUID | None = None,
) -> None:
    """Have an event written when the caller's transaction commits, if it does.

    Args:
        session: the caller's transaction, in a project.
        kind: one of `KINDS`.
        subject: what it is about, such as `rollout:<id>`.
        data: JSON values; never secrets.
        project_id: in which it happened; None: the session's project.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not a kind of event")
    waiting: list[_Told] = session.info.setdefault(_WAITING, [])
    within = session.get_nested_transaction()
    waiting.append(_Told(project_id or project_of(session), kind, subject, dict(data or {}), within))


def after(session: Session, seq: int, *, kinds: Sequence[str] = (), limit: int) -> list[Event]:
    """Return the events of the session's project after a number, in order, at most `limit`."""
    query = select(Event).where(Event.seq > seq)
    if kinds:
        query = query.where(Event.kind.in_(kinds))
    return list(session.scalars(query.order_by(Event.seq).limit(limit)))


def newest_seq(session: Session) -> int:
    """Return the number of the newest event of the session's project; 0: there is none."""
    return session.scalar(select(func.max(Event.seq))) or 0


def forget_old(session: Session, now: datetime | None = None) -> None:
    """Drop events older than `KEPT`; the newest of each project stays, so that numbers go on."""
    newer = aliased(Event)
    there = select(newer.seq).where(newer.project_id == Event.project_id, newer.seq > Event.seq).exists()
    session.execute(
        delete(Event)
        .where(Event.at < (now or datetime.now(UTC)) - KEPT, there)
        .execution_options(synchronize_session=False)
    )


@event.listens_for(ProjectSession, "before_commit")
def _write(session: Session) -> None:
    if session.in_nested_transaction():  # a savepoint commits nothing yet
        return
    told: list[_Told] = session.info.pop(_WAITING, [])
    if told:
        session.flush()  # what happened comes first, and takes its locks before ours
        for one in sorted(told, key=lambda one: one.project_id):  # of one project in the order in which it was told
            session.add(Event(project_id=one.project_id, kind=one.kind, subject=one.subject, data=dict(one.data)))
            session.flush()


@event.listens_for(ProjectSession, "after_soft_rollback")
def _forget(session: Session, ended: SessionTransaction) -> None:
    if ended.nested:
        waiting: list[_Told] = session.info.get(_WAITING, [])
        waiting[:] = [one for one in waiting if not _is_inside(one.within, ended)]
    elif ended.parent is None:
        session.info.pop(_WAITING, None)


def _is_inside(transaction: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while transaction is not None and transaction is not outer:
        transaction = transaction.parent
    return transaction is outer
