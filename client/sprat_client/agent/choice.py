"""Which way an update takes to its release, and payloads that need not be fetched for it."""

import contextlib
import logging
from collections.abc import Mapping
from types import MappingProxyType

from sprat_client.agent.bundle_file import BundleFile
from sprat_client.agent.desired import Desired
from sprat_client.agent.durable import finish_appends, make_folder, remove
from sprat_client.agent.journal import Work
from sprat_client.agent.releases import Shelf, Slot
from sprat_client.agent.room import require_space
from sprat_client.agent.steps import Workshop, find_targets, needed
from sprat_client.agent.store import StoreCorrupted
from sprat_client.agent.trust.repository import TrustedTarget
from sprat_client.agent.ways import FILE_BYTES, Step, cheapest_way
from sprat_shared.errors import TryLater, UntrustedUpdate
from sprat_shared.ids import digest_text

_log = logging.getLogger(__name__)


def choose_steps(
    shop: Workshop, shelf: Shelf, wish: Desired, *, at_hand: Mapping[bytes, int] = MappingProxyType({})
) -> tuple[str, ...]:
    """Return the target paths to apply: of all that is signed the way with the fewest bytes that are not here yet.

    It starts from a slot whose files have their bytes, or from nothing. The director's path says what it sends along,
    as far as it knows what is held here; the slots decide. Payloads `at_hand`, by SHA-256, cost nothing.

    Raises:
        UntrustedUpdate: nothing is signed that leads there, or the metadata are refused.
        TryLater: link or server are not ready.
    """
    find_targets(shop, [wish.full])  # the metadata are here now, or nothing can be chosen
    steps = [
        Step(
            path=target.path,
            base=target.base_weights,
            weights=target.weights,
            release=target.release,
            cost=_left_of(shop, trusted, at_hand),
        )
        for target, trusted in shop.trust.updates(wish)
    ]
    slots = shelf.slots()
    held = {slot.weights: slot for slot in (slots.previous, slots.active) if slot is not None}
    while way := cheapest_way(steps, held, release=wish.release, weights=wish.weights):
        start = way[0].base
        if start is None or _is_usable(shelf, held[start]):
            return tuple(step.path for step in way)
        del held[start]
    return (wish.full,)  # whatever is wrong with it, verification says it


def still_signed(shop: Workshop, work: Work) -> bool:
    """Return whether all steps that were chosen are signed by what is held; pruned ones are chosen anew."""
    with contextlib.suppress(TryLater, UntrustedUpdate):  # they are asked for once more, and then it is said
        return len(shop.trust.find(work.steps)) == len(set(work.steps))
    return True


def stock(shop: Workshop, shelf: Shelf, wish: Desired, bundle: BundleFile) -> None:
    """Copy out of a bundle what an assignment needs, so that nothing has to be fetched for it.

    Raises:
        NoSpace: there is no room; nothing was copied.
        TryLater: (`bundle.incomplete`) a payload is neither here nor in the bundle.
        UntrustedUpdate: nothing is signed that leads there.
    """
    work = Work(wish=wish, started_at=0.0, steps=choose_steps(shop, shelf, wish, at_hand=bundle.payloads))
    targets, graphs = needed(shop, work)
    targets += [graph for graph in graphs if not shop.store.holds(graph.sha256, graph.length)]
    lacking = [target for target in targets if _left_of(shop, target, {})]
    for target in lacking:
        if bundle.payloads.get(target.sha256) != target.length:
            raise TryLater(
                f"{target.path} is not in the bundle: this device holds something else than the server believes; "
                "export the bundle with --full",
                code="bundle.incomplete",
            )
    size = sum(target.length for target in lacking)
    require_space(shop.settings.folder, size, margin=shop.settings.space_margin_bytes)
    make_folder(shop.disk, shop.downloads)
    for target in lacking:
        file = shop.downloads / target.sha256.hex()
        remove(shop.disk, file)
        shop.disk.append(file, b"")
        for piece in bundle.payload(target.sha256):
            shop.disk.append(file, piece)
            shop.watchdog.beat()
        finish_appends(shop.disk, file)


def _left_of(shop: Workshop, target: TrustedTarget, at_hand: Mapping[bytes, int]) -> int:
    """Return how many bytes of a payload, and of asking for it, are still to be read."""
    if digest_text(target.sha256) in shop.blobs or at_hand.get(target.sha256) == target.length:
        return 0
    file = shop.downloads / target.sha256.hex()
    here = file.stat().st_size if file.exists() else 0
    return 0 if here == target.length else target.length - min(here, target.length) + FILE_BYTES


def _is_usable(shelf: Shelf, slot: Slot) -> bool:
    """Return whether a release's files still have their bytes, so that an update can start from them."""
    try:
        shelf.check(shelf.manifest(slot.release_id))
    except StoreCorrupted as bad:
        _log.error(
            "a release to start from is damaged; another way will be taken",
            extra={"code": bad.code, "detail": str(bad)},
        )
        return False
    return True
