"""/device/v1: what agents call besides the poll (`api.poll`), and the signed metadata files."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response

from sprat_server.api.auth import Reader, bearer
from sprat_server.api.ports import SettingsDep
from sprat_server.db.session import SessionDep
from sprat_server.fleet import service as fleet
from sprat_server.flows import enrolment, poll, rollout
from sprat_server.observe.actors import Actor
from sprat_server.publish import director, repository
from sprat_shared.errors import NotFound
from sprat_shared.protocol.enrol import EnrolRequest
from sprat_shared.protocol.report import SIGNATURE_HEADER, parse_signature

devices = APIRouter(tags=["agents"])
everyone = APIRouter(tags=["agents"])

_METADATA: Final = re.compile(r"(?:([1-9][0-9]{0,8})\.)?([a-z0-9.-]{1,80})\.json")
_JSON_BODY: Final = {"requestBody": {"required": True, "content": {"application/json": {}}}}


async def _body(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_body)]


@devices.post("/enrol", openapi_extra=_JSON_BODY, response_class=Response)
def enrol(request: Request, body: Body, session: SessionDep, settings: SettingsDep) -> Response:
    """Let a device join; it shows an enrolment token and the public half of the key it made."""
    shown = bearer(request)
    answer = enrolment.enrol(session, settings, EnrolRequest.from_json(body), shown)
    return Response(answer.to_json(), status_code=201, media_type="application/json")


@devices.post("/reports", status_code=204, openapi_extra=_JSON_BODY, response_class=Response)
def report(
    request: Request,
    body: Body,
    session: SessionDep,
    signature: Annotated[str, Header(alias=SIGNATURE_HEADER, description="Base64 of ed25519 over the body.")] = "",
) -> None:
    """Take a report, signed with the device's key."""
    device = fleet.authenticate_device(session, bearer(request))
    request.state.actor = Actor(kind="device", id=str(device.id), name=device.name)
    rollout.on_report(session, device, body, parse_signature(signature))


@everyone.get("/tuf/image/{file}", response_class=Response)
def get_metadata(file: str, session: SessionDep, _reader: Reader) -> Response:
    """Give a signed metadata file of the image repository, as in `timestamp.json` and `3.snapshot.json`."""
    asked = _asked(file)
    body: bytes | None = None
    if asked is not None:
        role, version = asked
        newest = repository.newest(session, role) if version is None else None
        if newest is not None:
            body = newest.body
        elif version is not None:
            body = repository.read_metadata(session, [(role, version)]).get((role, version))
    return _metadata("image", file, body)


@everyone.get("/tuf/director/{file}", response_class=Response)
def get_own_metadata(file: str, request: Request, session: SessionDep, settings: SettingsDep) -> Response:
    """Give a file of the director's metadata for the device that asks: what it should run, signed for it alone."""
    poller = poll.identify(session, bearer(request))
    request.state.actor = poller.actor
    asked = _asked(file)
    body: bytes | None = None
    if asked is not None:
        role, version = asked
        if version is None:
            version = poll.directed(session, settings, poller.device).versions[role]
        body = director.read_metadata(session, poller.device, [(role, version)]).get((role, version))
    return _metadata("director", file, body)


def _asked(file: str) -> tuple[str, int | None] | None:
    """Return role and version of a metadata file's name; only the timestamp, always the newest, has no version."""
    match = _METADATA.fullmatch(file)
    if match is None or (match[1] is None) != (match[2] == "timestamp"):
        return None
    return match[2], None if match[1] is None else int(match[1])


def _metadata(repository_name: str, file: str, body: bytes | None) -> Response:
    if body is None:
        raise NotFound(f"the {repository_name} repository has no file {file[:100]!r}", code="metadata.unknown")
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-cache"})
