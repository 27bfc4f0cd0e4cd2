"""Lists in pages: a cursor names the last row that was seen, so rows added meanwhile shift nothing."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import Select, SQLColumnExpression, tuple_
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


@dataclass(frozen=True, slots=True)
class Order(Generic[T]):
    """One order that a list can have.

    Attributes:
        name: as it is asked for, such as `-last_seen`.
        column: what it goes by, never NULL.
        of: what a row has there, as a text that `parse` turns back.
        parse: turns that text into what `column` is compared with.
        descending: the largest first.
    """

    name: str
    column: SQLColumnExpression[Any]
    of: Callable[[T], str]
    parse: Callable[[str], Any]
    descending: bool


def take_sorted_page(
    session: Session,
    query: Select[T],
    *,
    order: Order[Any],
    key: InstrumentedAttribute[UUID],
    cursor: str | None,
    limit: int,
) -> tuple[Sequence[T], str | None]:
    """Return a page as `take_page`, by an order in which rows may be equal; those are in the order of their ids.

    Raises:
        InvalidInput: the cursor was not made here, or for another order.
    """
    if cursor is not None:
        last = tuple_(*_decode(cursor, lambda text: _position(text, order)))
        at = tuple_(order.column, key)
        query = query.where(at < last if order.descending else at > last)
    by = (order.column.desc(), key.desc()) if order.descending else (order.column, key)
    rows = session.scalars(query.order_by(*by).limit(limit + 1)).all()
    more = len(rows) > limit
    rows = rows[:limit]
    following = json.dumps([order.name, order.of(rows[-1]), str(getattr(rows[-1], key.key))]) if more else None
    return rows, None if following is None else _encode(following)


def _position(text: str, order: Order[Any]) -> tuple[Any, UUID]:
    said = json.loads(text)
    if not isinstance(said, list) or len(said) != 3 or said[0] != order.name:  # noqa: PLR2004 - order, value, id
        raise ValueError(text)
    return order.parse(str(said[1])), UUID(str(said[2]))


def _encode(value: Any) -> str:
    return base64.urlsafe_b64encode(str(value).encode()).decode().rstrip("=")


def _decode(cursor: str, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode())
    except ValueError:
        raise InvalidInput(f"cursor {cursor[:60]!r} was not made by this list; begin without one") from None
