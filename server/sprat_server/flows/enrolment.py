"""Enrolment: a device joins the fleet, is assigned what the whole fleet runs, and takes the roots of trust with it."""

from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.fleet import service as fleet
from sprat_server.flows import rollout
from sprat_server.observe.actors import Actor
from sprat_server.publish import director_root
from sprat_server.publish.repository import root_bytes
from sprat_server.settings import Settings
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolRequest


def enrol(session: Session, settings: Settings, request: EnrolRequest, shown: str) -> EnrolAnswer:
    """Let a device join.

    Raises:
        Unauthenticated: the enrolment token is unknown, expired or used up.
        Conflict: another device has this name or this key.
    """
    rollout.share_moves(session)
    device, token = fleet.enrol(session, request, shown)
    if device.assignment_counter == 0:
        rollout.on_device_joined(session, device.id)
    audit.record(
        session,
        Actor(kind="device", id=str(device.id), name=device.name),
        "device.enrol",
        f"device:{device.id}",
        after={"name": device.name, "group": device.device_group, "agent": device.agent},
    )
    return EnrolAnswer(
        device=device.id,
        token=token,
        image_root=root_bytes(session),
        director_root=director_root.newest(session).body,
        poll_interval_s=settings.poll_interval_s,
    )
