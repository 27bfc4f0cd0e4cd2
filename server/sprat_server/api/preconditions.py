"""Entity tags of what operators read, and changes that hold only for what they have read (RFC 9110, section 13).

@router.put("/{name}")
def edit_group(name: Name, body: EditedGroup, session: SessionDep, operator: Operator, seen: Seen) -> GroupView:
seen.require(session, f"group:{name}", lambda: _view(session, groups.find(session, name)))
"""

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Any, Final

from fastapi import Depends, Header
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from sprat_server.db.projects import project_of
from sprat_shared.errors import Conflict

_TAG_BYTES: Final = 16
_ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)


class ChangedMeanwhile(Conflict):
    """What a change was for is not what its caller has seen (`If-Match`); nothing was changed."""

    code = "request.changed-meanwhile"


def entity_tag(shown: Any) -> str:
    """Return the strong entity tag of an answer, given as JSON values."""
    text = json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f'"{hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[: 2 * _TAG_BYTES]}"'


def tags_of(header: str) -> set[str]:
    """Return the entity tags that `If-Match` or `If-None-Match` lists. Tags hold no comma here."""
    return {tag.strip() for tag in header.split(",")}


class SeenState:
    """What the caller of a change says to have seen: the header `If-Match`, with the tag that a GET gave."""

    def __init__(
        self,
        if_match: Annotated[
            str | None,
            Header(description="The `ETag` of what is changed, as it was read; 412 if it has changed since."),
        ] = None,
    ) -> None:
        self._tags = None if if_match is None else tags_of(if_match)

    def require(self, session: Session, subject: str, show: Callable[[], BaseModel | dict[str, Any]]) -> None:
        """Return if the subject is still as the caller saw it; until the transaction ends nobody else changes it.

        Every route that changes a subject calls this first, so that changes of one subject come one after another.

        Args:
            session: the caller's transaction.
            subject: what is changed, as in the audit log.
            show: gives what a GET of it answers.

        Raises:
            ChangedMeanwhile: it is not.
        """
        name = func.hashtextextended(f"{project_of(session)} {subject}", 0)
        session.execute(select(func.pg_advisory_xact_lock(name)))
        if self._tags is None or "*" in self._tags:
            return
        now = entity_tag(_ANY.dump_python(show(), mode="json"))
        if now not in self._tags:
            raise ChangedMeanwhile(
                f"{subject} is not what you have seen: it was changed, and is {now} now; read it again, and decide anew"
            )


Seen = Annotated[SeenState, Depends(SeenState)]
"""What the caller of a change has seen of it."""
