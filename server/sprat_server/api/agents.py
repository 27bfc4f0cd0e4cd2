"""/device/v1: what agents call besides the poll (`api.poll`), and the signed metadata files."""

import re
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response

from sprat_server.api.auth import Reader, bearer
from sprat_server.api.ports import SettingsDep
from sprat_server.db.session import SessionDep
from sprat_server.fleet import service as fleet
from sprat_server.flows import enrolment, rollout
from sprat_server.observe.actors import Actor
from sprat_server.publish import repository
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
    match = _METADATA.fullmatch(file)
    body: bytes | None = None
    if match is not None and (match[1] is None) == (match[2] == "timestamp"):
        role = match[2]
        if match[1] is None:
            row = repository.newest(session, role)
            body = None if row is None else row.body
        else:
            body = repository.read_metadata(session, [(role, int(match[1]))]).get((role, int(match[1])))
    if body is None:
        raise NotFound(f"the image repository has no file {file[:100]!r}", code="metadata.unknown")
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-cache"})
