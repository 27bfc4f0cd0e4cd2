"""Which direct updates are worth having: from releases that devices really hold, where no single small file leads on.

A direct update is found out about once (`registry.models.DirectBuild`) and published only if it saves its devices more
than its signed description costs the fleet: whatever is published makes every device fetch metadata.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.fleet.service import Holders
from sprat_server.jobs import service as jobs
from sprat_server.jobs.models import Job
from sprat_server.observe.actors import SYSTEM
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.registry.service import NewUpdate

JOB_KIND: Final = "direct-updates"

_PAUSE_S: Final = 6 * 3600.0  # after a job that failed or that someone cancelled

TARGET_BYTES: Final = 45
"""What one more signed target costs a device, in a poll's body packed with the version before."""

SIGNING_BYTES: Final = 265
"""What a new version of the metadata costs a device in a poll's body: three signatures and the digests between them."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A direct update that would help: the best way there is now is a chain, or the full update.

    Attributes:
        base: number of the release that devices hold.
        target: number of the release that they should or could come to.
        devices: how many hold it.
        present_bytes: what the best ways cost all of them together now.
    """

    base: int
    target: int
    devices: int
    present_bytes: int


def enqueue(session: Session, model: Model, groups: Iterable[Holders] | None = None) -> Job | None:
    """Have a worker build and publish direct updates of a model, where some are due and it is not asked already.

    Args:
        session: the caller's transaction.
        model: of the devices.
        groups: whose ways are looked at; None: those of all its devices.
    """
    if not unknown(session, model, groups) and (groups is not None or not worthwhile(session, model)):
        return None
    return jobs.enqueue_once(session, kind=JOB_KIND, args={"model": model.name}, by=SYSTEM, pause_s=_PAUSE_S)


def wanted(session: Session, model: Model, groups: Iterable[Holders] | None = None) -> list[Wanted]:
    """Return the direct updates that would help, those for most devices first."""
    release = registry.newest_published(session, model)
    if release is None:
        return []
    newest = release.number
    groups = fleet.holders(session, model.id) if groups is None else groups
    behind = [group for group in groups if group.active < newest]
    updates = registry.all_updates(session, model) if behind else []
    devices: Counter[tuple[int, int]] = Counter()
    present: Counter[tuple[int, int]] = Counter()
    for group in behind:
        held = [number for number in (group.active, group.previous) if number is not None]
        for target in {newest, group.assigned or newest}:
            if target <= group.active:
                continue
            way = paths.cheapest_from(updates, held, target)
            if len(way) > 1 or any(file.base_number is None for file in way):
                devices[group.active, target] += group.devices
                present[group.active, target] += group.devices * paths.cost(way)
    ordered = sorted(devices, key=lambda pair: (-devices[pair], -pair[1], -pair[0]))
    return [Wanted(base, target, devices[base, target], present[base, target]) for base, target in ordered]


def unknown(session: Session, model: Model, groups: Iterable[Holders] | None = None) -> list[Wanted]:
    """Return those of `wanted` of which nobody has found out yet what they take."""
    built = {(build.base_number, build.number) for build in registry.direct_builds(session, model)}
    return [one for one in wanted(session, model, groups) if (one.base, one.target) not in built]


def worthwhile(session: Session, model: Model) -> list[tuple[int, NewUpdate]]:
    """Return the builds whose publication saves the fleet bytes, the cost of their description included.

    Returns:
        The number of the release that each leads to, and the update.
    """
    builds = {(build.base_number, build.number): build for build in registry.direct_builds(session, model)}
    if not builds:
        return []
    fleet_size = len(fleet.live_devices(session))
    worth, gain = [], -SIGNING_BYTES * fleet_size
    for one in wanted(session, model):
        build = builds.get((one.base, one.target))
        if build is None or build.blob is None or build.bytes is None:
            continue
        spent = one.devices * (build.bytes + paths.FILE_BYTES) + fleet_size * TARGET_BYTES
        saved = one.present_bytes - spent
        if saved > 0:
            worth.append((one.target, NewUpdate(one.base, build.blob, build.bytes)))
            gain += saved
    return worth if gain > 0 else []
