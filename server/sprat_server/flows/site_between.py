"""Plans in between for sites whose devices cannot hold two plans at once: looked for, and written down as plans."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sprat_server.flows.site_building import DeviceSize
from sprat_server.placement.memory import Held, lacking
from sprat_server.placement.plan import Plan, Wishes
from sprat_server.placement.program import Proven
from sprat_server.placement.sequence import Releases, between
from sprat_server.placement.site import Device, Module, Site
from sprat_server.sites.models import SitePlanRow

Content = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Servable:
    """What plans in between may serve, and how one is written down.

    Attributes:
        releases: as they can be placed.
        written: makes a plan of a placement.
    """

    releases: Releases
    written: Callable[[Plan], SitePlanRow]


def names_of(content: Content) -> dict[str, str]:
    """Return the releases of a plan's modules, by model."""
    return {model: said["id"] for model, said in content["modules"].items()}


def by_hand(content: Content, others: Sequence[Content], devices: Mapping[UUID, DeviceSize]) -> Releases:
    """Return how modules that people put by hand can be placed: each where it was put by one of some plans.

    Nothing is known of how long they take; so tasks bind nothing, and each module is on some device.

    Args:
        content: of a plan.
        others: of other plans.
        devices: of the site.
    """
    hosts: dict[str, set[str]] = {model: set() for model in content["modules"]}
    copies = 1
    for plan in (content, *others):
        for model, said in plan["modules"].items():
            mine = {devices[UUID(host)].name for host in said["hosts"] if UUID(host) in devices}
            hosts.get(model, set()).update(mine)
            copies = max(copies, len(mine))
    everything = sum(said["memory_bytes"] for said in content["modules"].values())
    site = Site(
        [
            Device(
                name=one.name,
                memory_bytes=everything if one.memory_bytes is None else one.memory_bytes,
                up=1.0,
                down=1.0,
            )
            for one in devices.values()
        ],
        [
            Module(
                name=model,
                memory_bytes=said["memory_bytes"],
                file_bytes=1,
                seconds=dict.fromkeys(sorted(hosts[model]), 0.0),
            )
            for model, said in sorted(content["modules"].items())
        ],
        [],
    )
    there = {
        model: frozenset(devices[UUID(host)].name for host in said["hosts"] if UUID(host) in devices)
        for model, said in content["modules"].items()
    }
    return Releases(site=site, wishes=Wishes(replicas=copies, second_per_byte=1.0, held=there), names=names_of(content))


def is_short(before: Content, after: Content, devices: Mapping[UUID, DeviceSize]) -> bool:
    """Return whether a device has no room for the modules of two plans at once."""
    return bool(lacking(_memory(devices), _sizes(before, after), _held(before, devices), _held(after, devices)))


def steps(
    before: Content,
    after: Content,
    devices: Mapping[UUID, DeviceSize],
    old: Servable | None,
    new: Servable,
    *,
    seconds: float,
) -> tuple[Proven, list[SitePlanRow]]:
    """Return the plans in between that lead from one plan to another, and what is proven of them; none: there are none.

    Args:
        before: what serves.
        after: what is to serve.
        devices: of the site.
        old: what plans in between may serve at first; None: only what comes,
        new: and then.
        seconds: that the solver may take.
    """
    found = between(
        _memory(devices),
        _sizes(before, after),
        _held(before, devices),
        _held(after, devices),
        None if old is None else old.releases,
        new.releases,
        seconds=seconds,
    )
    rows = [
        (old if old is not None and step.of is old.releases else new).written(step.plan) for step in found.steps or ()
    ]
    return found.proven, rows


def _memory(devices: Mapping[UUID, DeviceSize]) -> dict[str, int]:
    return {one.name: one.memory_bytes for one in devices.values() if one.memory_bytes is not None}


def _held(content: Content, devices: Mapping[UUID, DeviceSize]) -> Held:
    return {
        said["id"]: frozenset(devices[UUID(host)].name for host in said["hosts"] if UUID(host) in devices)
        for said in content["modules"].values()
    }


def _sizes(*plans: Content) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for said in (said for plan in plans for said in plan["modules"].values()):
        sizes[said["id"]] = max(sizes.get(said["id"], 0), int(said["memory_bytes"]))
    return sizes
