"""The audit log: who did what to what, append-only and hash-chained by the database itself.

Each project has a chain of its own, so whoever may read one can check all of it, and learns nothing of another. What is
done to the server itself (projects, tokens of the whole server) is in the chain of `db.projects.SERVER`.

Each record's digest covers the digest before it, so a record that is changed or removed later breaks the chain from
there on (`verify`). What this does not show: the newest records cut off, or the whole log written anew, by someone
who owns the database; keep the newest digest elsewhere to see that too.
"""

from collections.abc import Mapping
from typing import Any, Final

import structlog
from sqlalchemy import Select, event, select, text
from sqlalchemy.orm import Session, undefer

from sprat_server.access.models import AuditRecord
from sprat_server.db.projects import ACROSS, SERVER, project_of
from sprat_server.observe.actors import Actor

_OWED: Final = "sprat.audit_owed"

_VERIFY: Final = text(
    "SELECT seq FROM ("
    " SELECT seq, previous, digest, audit_digest(audit) AS actual,"
    "  coalesce(lag(digest) OVER (ORDER BY seq), decode(repeat('00', 32), 'hex')) AS before_it,"
    "  coalesce(lag(seq) OVER (ORDER BY seq), 0) + 1 AS expected_seq"
    " FROM audit WHERE project_id = :project) AS links"
    " WHERE digest <> actual OR previous <> before_it OR seq <> expected_seq ORDER BY seq LIMIT 1"
)


def record(  # noqa: PLR0917 - reads as a sentence: who did what to what, before, after
    session: Session,
    actor: Actor,
    action: str,
    subject: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    *,
    of_server: bool = False,
) -> AuditRecord:
    """Append a record in the caller's transaction, to the chain of the session's project.

    Appending holds a lock until the transaction ends, so that the chain has one order: do it last, briefly.

    Args:
        session: the caller's transaction.
        actor: who does it.
        action: `thing.verb`, e.g. `rollout.start`.
        subject: what it is done to, e.g. `rollout:<id>`.
        before: what mattered before, JSON values; never secrets.
        after: what matters now, JSON values; never secrets.
        of_server: it was done to the server itself, not in a project.
    """
    request = structlog.contextvars.get_contextvars()  # bound by observe.requests
    entry = AuditRecord(
        project_id=SERVER if of_server else project_of(session),
        actor=str(actor),
        actor_id=actor.id,
        action=action,
        subject=subject,
        before=None if before is None else dict(before),
        after=None if after is None else dict(after),
        request_id=request.get("request_id"),
        address=request.get("address"),
    )
    session.add(entry)
    session.flush()
    session.info.pop(_OWED, None)
    return entry


def require_record(session: Session, call: str) -> None:
    """From now on `session` cannot commit changes without an audit record: a route that forgets it answers 500."""
    session.info[_OWED] = call
    event.listen(session, "before_commit", _refuse_unrecorded)


def verify(session: Session, *, of_server: bool = False) -> int | None:
    """Return the `seq` of the first record that does not fit its project's chain, or None when the chain is whole."""
    project = SERVER if of_server else project_of(session)
    seq: int | None = session.scalar(_VERIFY, {"project": project}, execution_options=ACROSS)
    return seq


def records(*, of_server: bool) -> Select[AuditRecord]:
    """Return the query of the records of a session's project, or of those of the server itself."""
    query = select(AuditRecord).options(undefer(AuditRecord.sealed))
    if not of_server:
        return query
    return query.where(AuditRecord.project_id == SERVER).execution_options(**ACROSS)


def _refuse_unrecorded(session: Session) -> None:
    call = session.info.get(_OWED)
    if call is not None and not session.in_nested_transaction():  # a savepoint commits nothing yet
        raise RuntimeError(f"{call} would change something without an audit record")
