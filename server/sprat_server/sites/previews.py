"""What applying a plan of a site would do, as the API gives it."""

from typing import Any
from uuid import UUID

from pydantic import BaseModel


class FetchPreview(BaseModel):
    """A release that a device would fetch, in how many bytes, and from when to when by the links, in seconds."""

    model: str
    release: int
    bytes: int
    starts_s: float
    ends_s: float


class MemberPreview(BaseModel):
    """What a device would hold and fetch; while the plan before still serves it holds modules of both.

    `memory_bytes`: what it has for modules; null: nobody said.
    """

    device: UUID
    name: str
    memory_bytes: int | None
    holds_bytes: int
    while_replacing_bytes: int
    fetches: list[FetchPreview]


class SitePlanPreview(BaseModel):
    """What applying a plan would do; `obstacles` stand in the way.

    All is fetched `fetched_s` after it is applied, if links are as they were said to be and nothing else is on them;
    in no order it is before `fetched_bound_s`. Devices load it then, and the plan can begin to serve. `steps` are plans
    in between that are applied before, because a device cannot hold the modules of both at once. `figures` are those by
    which it was placed, each with where it is from; null: it was put by hand.
    """

    site: str
    number: int
    members: list[MemberPreview]
    figures: dict[str, Any] | None
    fetched_s: float
    fetched_bound_s: float
    steps: list[int]
    obstacles: list[str]
