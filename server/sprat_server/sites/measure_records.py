"""Keep what devices measured, the newest of each. Callers own the transaction."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sprat_server.db.sets import among
from sprat_server.fleet.models import Device
from sprat_server.registry.models import Model, Release
from sprat_server.sites.models import LinkMeasure, ModuleMeasure
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.enrol import PLAYED
from sprat_shared.protocol.measures_report import LinkFigures, MeasuresReport, ModuleFigures


def check_known(session: Session, report: MeasuresReport) -> dict[str, UUID]:
    """Return the ids of a report's models by name, if all releases and devices that it names are of this project.

    Raises:
        InvalidInput: one of them is not.
    """
    names = sorted({one.model for one in report.modules})
    models = {row.name: row.id for row in session.scalars(select(Model).where(among(Model.name, names)))}
    numbers = {one.release for one in report.modules}
    query = select(Release.model_id, Release.number).where(
        among(Release.model_id, list(models.values())), among(Release.number, numbers)
    )
    releases = {(model, number) for model, number in session.execute(query)}
    for one in report.modules:
        if one.model not in models or (models[one.model], one.release) not in releases:
            raise InvalidInput(f"report: there is no release {one.model}@{one.release}", code="report.unknown-release")
    others = [one.device for one in report.links]
    known = set(session.scalars(select(Device.id).where(among(Device.id, others))))
    for device in others:
        if device not in known:
            raise InvalidInput(f"report: there is no device {device}", code="report.unknown-device")
    return models


def keep(session: Session, report: MeasuresReport, models: Mapping[str, UUID]) -> None:
    """Keep a report's figures in the place of those before; what it does not say of something stays as it was."""
    now = datetime.now(UTC)
    for module in report.modules:
        _keep_module(session, report.device, models[module.model], module, now)
    for link in report.links:
        _keep_link(session, report.device, link, now)


def _keep_module(session: Session, device: UUID, model: UUID, said: ModuleFigures, now: datetime) -> None:
    runs = None if said.runs is None else said.runs.as_json()
    figures: dict[str, Any] = {"memory_bytes": said.memory_bytes, "tried_s": said.tried_s, "runs": runs}
    known = {name: value for name, value in figures.items() if value is not None} | {"said_at": now}
    row = insert(ModuleMeasure).values(device_id=device, model_id=model, number=said.release, **known)
    session.execute(row.on_conflict_do_update(index_elements=["device_id", "model_id", "number"], set_=known))


def _keep_link(session: Session, device: UUID, said: LinkFigures, now: datetime) -> None:
    spreads = {"round_trip": said.round_trip, "sent": said.sent, "received": said.received}
    known: dict[str, Any] = {name: one.as_json() for name, one in spreads.items() if one is not None}
    known |= {"said_at": now}
    row = insert(LinkMeasure).values(device_id=device, peer_id=said.device, **known)
    session.execute(row.on_conflict_do_update(index_elements=["device_id", "peer_id"], set_=known))


def of_models(session: Session, models: Collection[UUID]) -> Sequence[tuple[ModuleMeasure, Device]]:
    """Return what live devices that are no rehearsal's measured of some models, with the device, in one order."""
    rows = session.execute(
        select(ModuleMeasure, Device)
        .join(Device, Device.id == ModuleMeasure.device_id)
        .where(among(ModuleMeasure.model_id, models), Device.revoked_at.is_(None))
        .where(~Device.attributes.contains(PLAYED))
        .order_by(ModuleMeasure.model_id, ModuleMeasure.number, ModuleMeasure.device_id)
    )
    return [(measure, device) for measure, device in rows]


def measured_on(session: Session, devices: Collection[UUID]) -> set[UUID]:
    """Return the models that some devices measured."""
    return set(session.scalars(select(ModuleMeasure.model_id).where(among(ModuleMeasure.device_id, devices))))


def links_between(session: Session, devices: Collection[UUID]) -> Sequence[LinkMeasure]:
    """Return what devices measured of the ways to each other, in one order."""
    query = select(LinkMeasure).where(among(LinkMeasure.device_id, devices), among(LinkMeasure.peer_id, devices))
    return session.scalars(query.order_by(LinkMeasure.device_id, LinkMeasure.peer_id)).all()
