"""What devices measured, as plans are placed by it and people see it: modules and links to the hub. Only reads."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.fleet.models import Device
from sprat_server.flows.site_addresses import ADDRESS
from sprat_server.flows.site_building import DeviceSize
from sprat_server.placement.star import parts_of
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release
from sprat_server.sites import measure_records, records
from sprat_server.sites.measure_schemas import (
    FigureView,
    LinkView,
    ModuleMeasureView,
    PairView,
    SiteMeasuresView,
)
from sprat_server.sites.measures import Figure, Origin, Seen, Wanted, memory_of, seconds_of
from sprat_server.sites.models import LinkMeasure, Site, SiteDevice
from sprat_server.sites.schemas import NewSitePlan, PlannedModule
from sprat_server.sites.states import PlanStatus
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.measures_report import Spread

_MBIT_OF_BYTE: Final = 8e-6
_MOST_MBIT: Final = 1e6
_ASSUMED: Final = {"up_mbit": 1000.0, "down_mbit": 1000.0, "delay_ms": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLink:
    """The link of a device to the hub of its site, each figure with where it is from."""

    up_mbit: Figure
    down_mbit: Figure
    delay_ms: Figure

    def as_json(self) -> dict[str, Any]:
        """Return what is kept of it."""
        return {name: getattr(self, name).as_json() for name in _ASSUMED}


@dataclass(frozen=True, slots=True)
class Filled:
    """What was asked of a site, with what was measured where people said nothing.

    Attributes:
        asked: it.
        figures: of each module that is placed: `seconds` by device, `memory_bytes`.
    """

    asked: NewSitePlan
    figures: dict[str, dict[str, Any]]


def links(session: Session, rows: Sequence[SiteDevice]) -> dict[UUID, SiteLink]:
    """Return the links of a site's devices: as people said, else solved from what devices measured, else assumed."""
    measured = measure_records.links_between(session, [row.device_id for row in rows])
    delays = _delays(rows, measured)
    bytes_s = _seconds_per_byte(rows, measured)
    found = {}
    for row in rows:
        figures = {
            "up_mbit": _mbit(bytes_s.get(("up", row.device_id))),
            "down_mbit": _mbit(bytes_s.get(("down", row.device_id))),
            "delay_ms": None if (delay_s := delays.get(row.device_id)) is None else 1000 * delay_s,
        }
        found[row.device_id] = SiteLink(
            **{name: _link_figure(getattr(row, name), value, _ASSUMED[name]) for name, value in figures.items()}
        )
    return found


def device_sizes(session: Session, rows: Sequence[SiteDevice]) -> dict[UUID, DeviceSize]:
    """Return the devices of a site as a placement sees them."""
    found, devices = links(session, rows), _devices(session, [row.device_id for row in rows])
    return {
        row.device_id: DeviceSize(
            name=devices[row.device_id].name,
            memory_bytes=row.memory_bytes,
            up_mbit=found[row.device_id].up_mbit.value,
            down_mbit=found[row.device_id].down_mbit.value,
            delay_ms=found[row.device_id].delay_ms.value,
            utilisation=row.utilisation,
        )
        for row in rows
    }


def filled(
    session: Session, rows: Sequence[SiteDevice], asked: NewSitePlan, releases: Mapping[str, Release], *, repairs: bool
) -> Filled:
    """Return what was asked, where people said nothing of a module by what devices measured.

    Args:
        session: the caller's transaction.
        rows: the site's devices.
        asked: what people said.
        releases: of the plan's modules, by model.
        repairs: a module goes to no device of which nothing is known, where that would be refused else: nobody is there
            to say more.

    Raises:
        InvalidInput: nothing is known of how long a module runs on a device where it may be.
    """
    devices = _devices(session, [row.device_id for row in rows])
    may_hold = {
        one.name: one.profile
        for one in devices.values()
        if (one.name in asked.on if asked.on else one.attributes.get(ADDRESS) is not None)
    }
    wanted = [Wanted(model=name, release=one.number, graph=one.graph_digest) for name, one in sorted(releases.items())]
    seen = _seen(session, wanted, list(devices))
    seconds = {} if asked.hosts is not None else seconds_of(wanted, may_hold, seen)
    memory = memory_of(wanted, may_hold, seen)
    modules, figures = dict(asked.modules), {}
    for model in sorted(releases):
        said = asked.modules.get(model, PlannedModule())
        cells = _said_of(said) or seconds.get(model, {})
        if asked.hosts is None:
            _require_known(model, cells, [] if said.seconds else sorted(may_hold), repairs=repairs)
        bytes_ = _memory(said, memory[model], releases[model])
        taken = {device: figure.value for device, figure in cells.items()}
        modules[model] = said.model_copy(update={"memory_bytes": int(bytes_.value), "seconds": taken})
        figures[model] = {
            "seconds": {device: figure.as_json() for device, figure in sorted(cells.items())},
            "memory_bytes": bytes_.as_json(),
        }
    return Filled(asked.model_copy(update={"modules": modules}), figures)


def measures_view(session: Session, site: Site) -> SiteMeasuresView:
    """Return what is known of a site: the modules of its plan, and what its devices measured beside, on each device."""
    rows = records.devices_of(session, site)
    devices = _devices(session, [row.device_id for row in rows])
    names = _models(session, site, list(devices))
    releases = {name: registry.latest_release(session, registry.get_model(session, name)) for name in names}
    wanted = [Wanted(model=name, release=one.number, graph=one.graph_digest) for name, one in sorted(releases.items())]
    profiles = {one.name: one.profile for one in devices.values()}
    seen = _seen(session, wanted, list(devices))
    seconds, memory = seconds_of(wanted, profiles, seen), memory_of(wanted, profiles, seen)
    found = links(session, rows)
    return SiteMeasuresView(
        site=site.name,
        modules=[
            ModuleMeasureView(
                model=one.model,
                release=one.release,
                device=device,
                profile=profile,
                seconds=FigureView.of(seconds[one.model].get(device)),
                memory_bytes=FigureView.of(memory[one.model].get(device)),
            )
            for one in wanted
            for device, profile in sorted(profiles.items())
        ],
        links=sorted(
            (
                LinkView(
                    device=devices[device].name,
                    up_mbit=FigureView.shown(link.up_mbit),
                    down_mbit=FigureView.shown(link.down_mbit),
                    delay_ms=FigureView.shown(link.delay_ms),
                )
                for device, link in found.items()
            ),
            key=lambda one: one.device,
        ),
        ways=sorted(
            (
                PairView.of(row, devices[row.device_id].name, devices[row.peer_id].name)
                for row in measure_records.links_between(session, list(devices))
            ),
            key=lambda one: (one.device, one.to),
        ),
    )


def _require_known(model: str, cells: Mapping[str, Figure], devices: Collection[str], *, repairs: bool) -> None:
    """Return if a module's seconds are known on the devices, or on one of them where a site is repaired."""
    unknown = sorted(set(devices) - cells.keys())
    if repairs and cells:
        return
    if unknown:
        raise InvalidInput(
            f"modules: nothing is known of how long a run of {model} takes on {unknown[0]}: neither it nor a device of "
            "its class ran it, nor anything that a device ran as well which did; say so in --file, leave the device "
            "out by --on, or plan the module there once by --hosts, and it measures it",
            code="site.bad-plan",
        )
    if not cells:
        raise InvalidInput(
            f"modules: {model} can be on no device of the site: none says a {ADDRESS} (docs/site.md), or is left of "
            "those that were said",
            code="site.bad-plan",
        )


def _said_of(said: PlannedModule) -> dict[str, Figure]:
    return {device: Figure(value=value, origin=Origin.SAID) for device, value in said.seconds.items()}


def _memory(said: PlannedModule, measured: Mapping[str, Figure], release: Release) -> Figure:
    """Return the bytes of a module wherever it is: as said, else the most that was measured on one of the devices."""
    if said.memory_bytes is not None:
        return Figure(value=said.memory_bytes, origin=Origin.SAID)
    if measured:
        device, most = max(measured.items(), key=lambda one: (one[1].value, one[0]))
        return Figure(
            value=most.value, origin=most.origin, detail=f"on {device}, {most.detail}", p10=most.p10, p90=most.p90
        )
    return Figure(value=release.model_bytes, origin=Origin.WEIGHTS)


def _seen(session: Session, wanted: Sequence[Wanted], devices: Sequence[UUID]) -> list[Seen]:
    """Return what is known of the wanted models anywhere, and of all that these devices ran."""
    names = [one.model for one in wanted]
    models = {row.id: row.name for row in session.scalars(select(Model).where(among(Model.name, names)))}
    beside = measure_records.measured_on(session, devices)
    models |= {row.id: row.name for row in session.scalars(select(Model).where(among(Model.id, beside)))}
    query = select(Release.model_id, Release.number, Release.graph_digest).where(among(Release.model_id, models))
    graphs = {(model, number): graph for model, number, graph in session.execute(query)}
    return [
        Seen(
            device=device.name,
            profile=device.profile,
            model=models[row.model_id],
            release=row.number,
            graph=graphs[row.model_id, row.number],
            memory_bytes=row.memory_bytes,
            tried_s=row.tried_s,
            runs=None if row.runs is None else Spread.of(row.runs, "runs"),
        )
        for row, device in measure_records.of_models(session, models)
    ]


def _models(session: Session, site: Site, devices: Sequence[UUID]) -> list[str]:
    """Return the models of the plan that serves, and of those that the devices measured."""
    plan = records.in_state(session, site.id, PlanStatus.SERVING)
    beside = measure_records.measured_on(session, devices)
    measured = {row.name for row in session.scalars(select(Model).where(among(Model.id, beside)))}
    return sorted(measured | set({} if plan is None else plan.content["modules"]))


def _delays(rows: Sequence[SiteDevice], measured: Sequence[LinkMeasure]) -> dict[UUID, float]:
    """Return delays to the hub, seconds: those of two devices are half of what a round trip between them takes."""
    said = {row.device_id: row.delay_ms / 1000 for row in rows if row.delay_ms is not None}
    sums = [
        (one.device_id, one.peer_id, Spread.of(one.round_trip, "round trip").median / 2)
        for one in measured
        if one.round_trip is not None
    ]
    return parts_of(sums, said)


def _seconds_per_byte(rows: Sequence[SiteDevice], measured: Sequence[LinkMeasure]) -> dict[tuple[str, UUID], float]:
    """Return seconds per byte up to the hub and down from it: what is sent goes up from the one, down to the other."""
    said = {("up", row.device_id): _MBIT_OF_BYTE / row.up_mbit for row in rows if row.up_mbit is not None}
    said |= {("down", row.device_id): _MBIT_OF_BYTE / row.down_mbit for row in rows if row.down_mbit is not None}
    sums = []
    for one in measured:
        for source, target, spread in (
            (one.device_id, one.peer_id, one.sent),
            (one.peer_id, one.device_id, one.received),
        ):
            if spread is not None:
                sums.append((("up", source), ("down", target), Spread.of(spread, "bytes").median))
    return parts_of(sums, said)


def _mbit(seconds_per_byte: float | None) -> float | None:
    if seconds_per_byte is None:
        return None
    return min(_MOST_MBIT, _MBIT_OF_BYTE / max(seconds_per_byte, _MBIT_OF_BYTE / _MOST_MBIT))


def _link_figure(said: float | None, measured: float | None, assumed: float) -> Figure:
    if said is not None:
        return Figure(value=said, origin=Origin.SAID)
    if measured is not None:
        return Figure(value=measured, origin=Origin.MEASURED, detail="solved from the ways between devices")
    return Figure(value=assumed, origin=Origin.ASSUMED)


def _devices(session: Session, ids: Sequence[UUID]) -> dict[UUID, Device]:
    return {row.id: row for row in session.scalars(select(Device).where(among(Device.id, ids)))}
