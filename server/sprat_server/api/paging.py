"""Lists in answers: {"items": [...], "next": cursor|null}, asked for with `?limit=&cursor=`."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from sprat_server.db.paging import take_page

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """One page of a list; `next` is the cursor of the one after it, null on the last."""

    items: list[T]
    next: str | None


class PageAsked(BaseModel):
    """Which page is asked for."""

    limit: int
    cursor: str | None
    newest_first: bool = True

    def take(
        self, session: Session, query: Select[T], *, key: InstrumentedAttribute[Any], parse: Callable[[str], Any]
    ) -> tuple[Sequence[T], str | None]:
        """Return the rows of the page and the cursor of the next one, as `db.paging.take_page`."""
        return take_page(
            session,
            query,
            key=key,
            parse=parse,
            cursor=self.cursor,
            limit=self.limit,
            newest_first=self.newest_first,
        )


def _page_asked(
    limit: Annotated[int, Query(ge=1, le=200, description="The most items of the page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> PageAsked:
    return PageAsked(limit=limit, cursor=cursor)


Paging = Annotated[PageAsked, Depends(_page_asked)]


def _sorted_page_asked(
    page: Paging,
    sort: Annotated[
        Literal["created", "-created"], Query(description="With a hyphen before it, the newest first.")
    ] = "-created",
) -> PageAsked:
    return page.model_copy(update={"newest_first": sort == "-created"})


SortedPaging = Annotated[PageAsked, Depends(_sorted_page_asked)]
"""Of a list that goes by when its items were made."""
