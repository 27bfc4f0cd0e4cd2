"""Devices that go down the ladder of a plan to share layers, by their own reports; who is where; what that teaches."""

from collections import Counter
from typing import Any, Final
from uuid import UUID

import structlog
from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.access.models import AuditRecord
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device, DeviceSlots
from sprat_server.flows import rollout_steps as steps
from sprat_server.observe import outbox
from sprat_server.observe.actors import SYSTEM
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.rollouts.models import Rollout, RolloutDevice
from sprat_server.sharing import records
from sprat_server.sharing.models import SharingPlan
from sprat_server.sharing.records import Rung
from sprat_server.sharing.schemas import SharingLevelView, SharingStandingView
from sprat_shared.protocol.report import Report

_TOLERATED: Final = 0.05  # share of the devices that tried a level which may leave it
_STEP: Final = "sharing.step-down"

_log = structlog.get_logger(__name__)


def rung_of(session: Session, model: Model, part: RolloutDevice) -> Rung | None:
    """Return on which level of a plan a device stands by its part in a rollout.

    None where its release is of no plan, the plan was undone, or another assignment has reached the device since.
    """
    running = {row.device_id: row for row in fleet.running_assignments(session, model.id, [part.device_id])}
    now = running.get(part.device_id)
    if now is None or now.number is None or now.counter != part.exposed_by:
        return None
    return records.rung(session, model.name, now.number)


def go_down(session: Session, rollout: Rollout, part: RolloutDevice, rung: Rung, report: Report) -> None:
    """Assign to a device the level below the one that it reported not to keep; after the last one what it had before.

    It goes no way up again by itself: whatever offers it the release of the rollout once more offers that level. Where
    its report ended the rollout, it goes back with all others.

    Args:
        session: the caller's transaction.
        rollout: whose lock the caller holds.
        part: the device's.
        rung: where it stands.
        report: why it leaves.
    """
    below = rung.below if part.returned_by is None else None
    if part.returned_by is None and below is None:
        steps.take_back(session, rollout, [part])
    elif below is not None:
        steps.offer_each(session, rollout, {part: below}, "step-down")
    device, model = fleet.get_device(session, part.device_id), steps.model_of(session, rollout).name
    to = part.previous if below is None else below
    left = {"device": str(device.id), "model": model, "release": report.release, "level": rung.level}
    taken = {"release": to, "level": None if below is None else rung.level + 1}
    why = {"code": report.error_code, "detail": report.error_detail}
    audit.record(session, SYSTEM, _STEP, f"sharing:{rung.plan.id}", left, taken | why)
    told = left | {"name": device.name, "to": to, "to_level": taken["level"]} | why
    outbox.tell(session, "sharing.lowered", f"sharing:{rung.plan.id}", told)
    _log.warning("sharing.lowered", plan=str(rung.plan.id), device=str(device.id), model=model, to=to, **why)


def standing(session: Session, plan: SharingPlan) -> list[SharingStandingView]:
    """Return for each model that shares by an applied plan how many devices serve each level, and how many none.

    Those of none are devices to which one was offered: they have not taken it yet, went back, or down to the end.
    """
    rollouts = [UUID(one) for one in (plan.applied or {}).get("rollouts", [])]
    shown = []
    for name, levels in records.levels_of(plan).items():
        model, numbers = registry.get_model(session, name), list(levels.values())
        serves = (
            select(DeviceSlots.active, func.count())
            .join(Device, Device.id == DeviceSlots.device_id)
            .where(DeviceSlots.model_id == model.id, DeviceSlots.active.in_(numbers), Device.revoked_at.is_(None))
            .group_by(DeviceSlots.active)
        )
        counts: dict[int | None, int] = dict(session.execute(serves).all())
        of_model = and_(DeviceSlots.device_id == RolloutDevice.device_id, DeviceSlots.model_id == model.id)
        nothing = (
            select(func.count())
            .select_from(RolloutDevice)
            .join(Rollout, Rollout.id == RolloutDevice.rollout_id)
            .join(Device, Device.id == RolloutDevice.device_id)
            .outerjoin(DeviceSlots, of_model)
            .where(Rollout.id.in_(rollouts), Rollout.model_id == model.id, RolloutDevice.exposed_by.is_not(None))
            .where(Device.revoked_at.is_(None), func.coalesce(DeviceSlots.active, 0).not_in(numbers))
        )
        rows = [SharingLevelView(level=level, release=one, devices=counts.get(one, 0)) for level, one in levels.items()]
        shown.append(SharingStandingView(model=name, levels=rows, nothing=session.scalar(nothing) or 0))
    return shown


def lessons(session: Session, plan: SharingPlan) -> dict[str, dict[str, Any]]:
    """Return for each model that shared by a plan what its devices teach of the budget that it was given.

    A level that more than a twentieth of the devices left which tried it, by their own data, was allowed too much: the
    budget comes down to the bound of the first level that devices keep, or below all of them where they keep none.
    Those that left are in the audit log, and stay there.

    Returns:
        model -> `budget` (that it should have next), `levels` (`level`, `bound`, `left`, `serve`); only of models of
        which a device left a level.
    """
    of_plan = (AuditRecord.action == _STEP, AuditRecord.subject == f"sharing:{plan.id}")
    steps_down = select(AuditRecord.before).where(*of_plan)
    left = Counter((before["model"], before["level"]) for before in session.scalars(steps_down) if before is not None)
    serve = {(one.model, level.level): level.devices for one in standing(session, plan) for level in one.levels}
    bounds = {one["recipient"]: [each["bound"] for each in one["levels"]] for one in plan.result["chosen"]}
    taught = {}
    for model in sorted({model for model, _ in left}):
        levels = [
            {"level": at, "bound": bound, "left": left[model, at], "serve": serve.get((model, at), 0)}
            for at, bound in enumerate(bounds[model], start=1)
        ]
        kept = [one["bound"] for one in levels if one["left"] <= _TOLERATED * (one["left"] + one["serve"])]
        tried = [one for one in levels if one["left"] + one["serve"]]
        if tried and tried[0]["bound"] not in kept:
            taught[model] = {"budget": max(kept, default=min(bounds[model]) / 2), "levels": levels}
    return taught
