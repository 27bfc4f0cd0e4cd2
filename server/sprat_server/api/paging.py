"""Lists in answers: {"items": [...], "next": cursor|null}, asked for with `?limit=&cursor=`."""

from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """One page of a list; `next` is the cursor of the one after it, null on the last."""

    items: list[T]
    next: str | None


class PageAsked(BaseModel):
    """Which page is asked for."""

    limit: int
    cursor: str | None


def _page_asked(
    limit: Annotated[int, Query(ge=1, le=200, description="The most items of the page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> PageAsked:
    return PageAsked(limit=limit, cursor=cursor)


Paging = Annotated[PageAsked, Depends(_page_asked)]
