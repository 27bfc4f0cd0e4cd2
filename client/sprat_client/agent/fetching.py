"""The download of one update as a whole: chooses the steps, fetches them while it looks up, and keeps what was read."""

from collections.abc import Callable
from dataclasses import replace

from sprat_client.agent import choice, steps
from sprat_client.agent.giving_way import GiveWay, Watch
from sprat_client.agent.journal import Work
from sprat_client.agent.progress import Progress
from sprat_client.agent.releases import Shelf
from sprat_client.agent.states import State
from sprat_client.agent.steps import Workshop


def fetch_update(shop: Workshop, shelf: Shelf, progress: Progress, arrived: Callable[[], None]) -> Work:
    """Bring what the update under way needs onto the disk; return its work, with what was read.

    Args:
        shop: what the agent works with.
        shelf: the model's releases and slots.
        progress: the model's record.
        arrived: told whenever bytes arrived.

    Raises:
        GiveWay: it ends here for now; the journal knows what was read.
        NoSpace, UntrustedUpdate, LinkDown: see `steps.fetch`.
    """
    received = 0

    def count(size: int) -> None:
        nonlocal received
        received += size
        arrived()
        shop.reserve.spend(size)
        shop.watchdog.beat()

    def superseded() -> bool:  # a poll in between brought something newer, or took the work away
        return progress.record.pending is not None or progress.state is not State.FETCHING

    work = replace(progress.work, waiting=None)
    if not work.steps or not choice.still_signed(shop, work):
        work = replace(work, steps=choice.choose_steps(shop, shelf, work.wish))
        progress.keep_work(work)
    try:
        steps.fetch(shop, shelf, work, Watch(shop, work.wish, count, superseded))
    finally:
        if received and progress.state is State.FETCHING:
            work = replace(work, received_bytes=work.received_bytes + received)
            progress.keep(replace(progress.record, work=work, resumes=0))  # it got further: no crash loop
    return work


__all__ = ["GiveWay", "fetch_update"]
