"""Which devices a rollout is for, and who is in which wave. Callers own the transaction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.flows import targeting
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.models import Rollout
from sprat_server.rollouts.plan import RolloutPlan
from sprat_server.rollouts.reaches import filter_of, held_back, is_filter, place_devices


@dataclass(frozen=True, slots=True)
class Layout:
    """Who is where.

    Attributes:
        reaches: of the waves.
        places: device to wave, counted from 1; None: no wave reaches it.
        controls: devices that are held back.
    """

    reaches: Sequence[str]
    places: dict[UUID, int | None]
    controls: set[UUID]


def cohort_of(session: Session, rollout: Rollout) -> set[UUID]:
    """Return the devices of a draft that are there now.

    Raises:
        BadFilter, NotFound: its filter cannot be read any more, or its group is gone.
    """
    if rollout.whole_fleet or rollouts.plan_of(rollout).says_devices:
        return meant(session, None, rollouts.plan_of(rollout))
    named = {device.device_id for device in rollouts.devices_of(session, rollout)}
    return set(fleet.live_devices(session)) & named


def meant(session: Session, devices: Collection[UUID] | None, plan: RolloutPlan) -> set[UUID]:
    """Return the devices that were named (None: that the plan says, or all that are there, but for played ones).

    Raises:
        BadFilter: the filter cannot be read, or names a model that does not exist.
        NotFound: there is no such group.
    """
    if devices is not None:
        return set(devices)
    if plan.where is not None:
        found = targeting.matching(session, plan.where)
    elif plan.group is not None:
        found = targeting.members(session, plan.group)
    else:
        found = set(fleet.live_devices(session))
    return found - fleet.played_devices(session)


def lay_out(
    session: Session, reaches: Sequence[str], plan: RolloutPlan, cohort: Collection[UUID], salt: bytes
) -> Layout:
    """Say who is in which wave, and who is held back.

    Args:
        session: the caller's transaction; only read.
        reaches: of the waves; made anew where the plan says how they grow.
        plan: of the rollout.
        cohort: its devices.
        salt: of its order.

    Raises:
        BadFilter: the filter of a wave cannot be read, or names a model that does not exist.
    """
    matching = {reach: targeting.matching(session, filter_of(reach)) for reach in reaches if is_filter(reach)}
    wanted = {device for devices in matching.values() for device in devices}
    controls = set() if plan.control is None else held_back(cohort, salt, plan.control, wanted=wanted)
    taking_part = set(cohort) - controls
    if plan.growth is not None:
        reaches = plan.growth.reaches(len(taking_part))
    return Layout(reaches, place_devices(reaches, taking_part, salt, matching), controls)
