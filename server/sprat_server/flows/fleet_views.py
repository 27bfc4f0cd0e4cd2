"""What is on devices, by model name: fleet rows joined with the registry."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device
from sprat_server.fleet.schemas import DeviceModelView, DeviceView
from sprat_server.registry.models import Model, Release


def device_views(session: Session, devices: Sequence[Device]) -> list[DeviceView]:
    """Return devices as they are shown."""
    on_devices = models_on(session, [device.id for device in devices])
    return [DeviceView.of(device, on_devices[device.id]) for device in devices]


def models_on(session: Session, device_ids: Sequence[UUID]) -> dict[UUID, list[DeviceModelView]]:
    """Return for each device its models, by name: what it should run and what it said it runs."""
    wishes = {(a.device_id, a.model_id): a for a in fleet.current_assignments(session, device_ids=device_ids)}
    held = fleet.slots(session, device_ids=device_ids)
    names = dict(session.execute(select(Model.id, Model.name)).all())
    local = {
        (release.model_id, release.number): release.local_names
        for release in session.scalars(
            select(Release).where(
                Release.local_tensors.is_not(None), Release.model_id.in_({slots.model_id for slots in held.values()})
            )
        )
    }
    shown: dict[UUID, list[DeviceModelView]] = {device_id: [] for device_id in device_ids}
    for device_id, model_id in sorted(set(wishes) | set(held), key=lambda pair: names[pair[1]]):
        slots = held.get((device_id, model_id))
        computed = [] if slots is None or slots.active is None else local.get((model_id, slots.active), [])
        wish = wishes.get((device_id, model_id))
        shown[device_id].append(DeviceModelView.of(names[model_id], wish, slots, computed))
    return shown
