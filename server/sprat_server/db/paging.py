"""Lists in pages: a cursor names the last row that was seen, so rows added meanwhile shift nothing."""

import base64
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from sprat_shared.errors import InvalidInput

T = TypeVar("T")


def take_page(
    session: Session,
    query: Select[T],
    *,
    key: InstrumentedAttribute[Any],
    parse: Callable[[str], Any],
    cursor: str | None,
    limit: int,
    newest_first: bool = True,
) -> tuple[Sequence[T], str | None]:
    """Return up to `limit` rows of `query` after `cursor`, and the cursor of the next page (None: this was the last).

    Args:
        session: where to read.
        query: the list, without order; its rows have the attribute `key`.
        key: a unique column that gives the order (ids are UUIDv7: their order is that of making).
        parse: turns the text of a key back into its value, e.g. `UUID` or `int`.
        cursor: what the page before gave; None: from the start.
        limit: the most rows.
        newest_first: the largest key first.

    Raises:
        InvalidInput: the cursor was not made here.
    """
    if cursor is not None:
        last = _decode(cursor, parse)
        query = query.where(key < last if newest_first else key > last)
    rows = session.scalars(query.order_by(key.desc() if newest_first else key).limit(limit + 1)).all()
    more = len(rows) > limit
    rows = rows[:limit]
    return rows, _encode(getattr(rows[-1], key.key)) if more else None


def _encode(value: Any) -> str:
    return base64.urlsafe_b64encode(str(value).encode()).decode().rstrip("=")


def _decode(cursor: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode())
    except ValueError:
        raise InvalidInput(f"cursor {cursor[:60]!r} was not made by this list; begin without one") from None
