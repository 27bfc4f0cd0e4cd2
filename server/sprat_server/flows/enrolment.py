"""Enrolment: a device joins the fleet, is assigned what the whole fleet runs, and takes the roots of trust with it."""

from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.db.projects import DEFAULT_PROJECT, enter
from sprat_server.fleet import enrolment as fleet
from sprat_server.fleet.models import Device
from sprat_server.flows import rollout_reports, rollout_steps, targeting
from sprat_server.observe import outbox
from sprat_server.observe.actors import Actor
from sprat_server.publish import director_root
from sprat_server.publish.repository import root_bytes
from sprat_server.settings import Settings
from sprat_shared.errors import Unauthenticated
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolPending, EnrolRequest, fingerprint

_ASK_AGAIN_S: Final = 10.0


def enrol(session: Session, settings: Settings, request: EnrolRequest, shown: str) -> EnrolAnswer:
    """Let a device join with a token; its signature was checked.

    Raises:
        Unauthenticated: the enrolment token is unknown, expired or used up.
        Conflict: another device has this name or this key, or the token is for a device of another name.
    """
    targeting.share(session)
    rollout_steps.share_moves(session)
    device = fleet.join_by_token(session, request, shown)
    _welcome(session, device)
    after = {"name": device.name, "group": device.device_group, "agent": device.agent, "key": _key_of(device)}
    replaced = fleet.retired_key(session, device)
    before = None if replaced is None else {"key": fingerprint(replaced)}
    audit.record(session, _actor(device), "device.enrol", f"device:{device.id}", before, after)
    return _answer(session, settings, device)


def ask(session: Session, settings: Settings, request: EnrolRequest, address: str) -> EnrolAnswer | EnrolPending:
    """Let a device without a token in if it was accepted, else have it wait; its signature was checked.

    The queue is that of the project `default`: who has no token says nothing of a project, and must learn of none.

    Raises:
        Unauthenticated: no device may wait here, or this one was revoked.
        AccessDenied: it was rejected.
        Conflict: its key belongs to a device of another name.
        TryLater: too many wait.
    """
    targeting.share(session)
    enter(session, DEFAULT_PROJECT)
    if (device := fleet.known_device(session, request)) is not None:
        targeting.look_again(session, device.id)
        return _answer(session, settings, device)
    if settings.enrolment_queue == 0:
        raise Unauthenticated("devices join here with an enrolment token only; ask an operator for one")
    row, is_new = fleet.queue_up(
        session,
        request,
        address=address,
        lives_s=settings.enrolment_queue_s,
        most=settings.enrolment_queue,
        most_of_address=settings.enrolment_queue_per_address,
    )
    seen = fingerprint(row.public_key)
    if is_new:
        actor = Actor(kind="device", id="", name=row.name)
        audit.record(session, actor, "enrolment.ask", f"enrolment:{row.id}", after={"name": row.name, "key": seen})
    return EnrolPending(fingerprint=seen, ask_again_s=_ASK_AGAIN_S)


def accept(session: Session, request_id: UUID, *, group: str, by: Actor) -> Device:
    """Let a device that waits join.

    Raises:
        NotFound: none of this id waits.
        Conflict: it was rejected, or another device has its name.
    """
    targeting.share(session)
    rollout_steps.share_moves(session)
    device = fleet.accept(session, request_id, group=group)
    _welcome(session, device)
    before = {"enrolment": str(request_id)}
    after = {"name": device.name, "group": group, "agent": device.agent, "key": _key_of(device)}
    audit.record(session, by, "device.accept", f"device:{device.id}", before, after)
    return device


def _welcome(session: Session, device: Device) -> None:
    outbox.tell(session, "device.joined", f"device:{device.id}", {"name": device.name, "group": device.device_group})
    if device.assignment_counter == 0:
        rollout_reports.on_device_joined(session, device.id)
    targeting.look_again(session, device.id)


def _answer(session: Session, settings: Settings, device: Device) -> EnrolAnswer:
    return EnrolAnswer(
        device=device.id,
        image_root=root_bytes(session),
        director_root=director_root.newest(session).body,
        poll_interval_s=settings.poll_interval_s,
        report_sequence=device.report_sequence,
    )


def _actor(device: Device) -> Actor:
    return Actor(kind="device", id=str(device.id), name=device.name)


def _key_of(device: Device) -> str:
    return fingerprint(device.public_key)
