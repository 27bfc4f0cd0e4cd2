"""/device/v1: what agents call besides the poll (`api.poll`), and the signed metadata files."""

import json
import re
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response

from sprat_server.api.auth import Caller, Reader, address_of, bearer, watched
from sprat_server.api.ports import SettingsDep
from sprat_server.db.session import SessionDep
from sprat_server.fleet import authentication
from sprat_server.fleet import enrolment as fleet_enrolment
from sprat_server.flows import enrolment, poll, rollout_reports
from sprat_server.observe.actors import Actor
from sprat_server.publish import director, repository
from sprat_shared.errors import InvalidInput, NotFound
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolPending, EnrolRequest
from sprat_shared.protocol.report import SIGNATURE_HEADER, Outcome, Report, parse_signature
from sprat_shared.protocol.token import ASSERTION_TYPE, GRANT_TYPE, TokenAnswer

devices = APIRouter(tags=["agents"])
everyone = APIRouter(tags=["agents"])

_METADATA: Final = re.compile(r"(?:([1-9][0-9]{0,8})\.)?([a-z0-9.-]{1,80})\.json")
_LONGEST_ASSERTION: Final = 4096
_TOKEN_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type", "client_assertion_type", "client_assertion"],
                    "properties": {
                        "grant_type": {"const": GRANT_TYPE},
                        "client_assertion_type": {"const": ASSERTION_TYPE},
                        "client_assertion": {"type": "string", "maxLength": _LONGEST_ASSERTION},
                    },
                },
                "example": {
                    "grant_type": GRANT_TYPE,
                    "client_assertion_type": ASSERTION_TYPE,
                    "client_assertion": "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiIwMWEyMjlkNyJ9.c2lnbmF0dXJl",
                },
            }
        },
    }
}
_DEVICE: Final = UUID("01a229d7-b64f-7047-a776-2de43df6354c")
_ENROLMENT: Final = EnrolRequest(
    name="press-3", public_key=bytes(32), agent="0.1.0", profile="pi-4", attributes={"machine": "aarch64"}
)
_REPORT: Final = Report(
    device=_DEVICE,
    sequence=18,
    model="pcb-defects",
    assignment=4,
    release=7,
    outcome=Outcome.COMMITTED,
    serving_release=7,
    serving_weights="sha256:" + "5c" * 32,
    error_code=None,
    error_detail=None,
    evidence=None,
    received_bytes=1061,
    seconds=4.2,
    agent="0.1.0",
)


def _json_body(example: EnrolRequest | Report) -> dict[str, Any]:
    shown = {"schema": {"type": "object"}, "example": json.loads(example.to_json())}
    return {"requestBody": {"required": True, "content": {"application/json": shown}}}


async def _body(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_body)]


Signature = Annotated[str, Header(alias=SIGNATURE_HEADER, description="Base64 of ed25519 over the body.")]


@devices.post(
    "/enrol", openapi_extra=_json_body(_ENROLMENT), response_class=Response, status_code=201, responses={202: {}}
)
def enrol(
    request: Request, body: Body, session: SessionDep, settings: SettingsDep, signature: Signature = ""
) -> Response:
    """Let a device join: with an enrolment token, or without one after an operator's word (202 until then)."""
    asked = EnrolRequest.from_json(body)
    answer: EnrolAnswer | EnrolPending
    has_token = "authorization" in request.headers
    if not has_token:
        request.app.state.queue_rate.spend(address_of(request.scope))
    with watched(request):
        fleet_enrolment.check_proof(asked, body, parse_signature(signature))
        if has_token:
            answer = enrolment.enrol(session, settings, asked, bearer(request))
        else:
            answer = enrolment.ask(session, settings, asked, address_of(request.scope))
    status = 201 if isinstance(answer, EnrolAnswer) else 202
    return Response(answer.to_json(), status_code=status, media_type="application/json")


@devices.post("/token", openapi_extra=_TOKEN_BODY, response_class=Response)
def issue_token(request: Request, body: Body, session: SessionDep, settings: SettingsDep) -> Response:
    """Give a device a bearer token for proving that it holds its key (private_key_jwt, RFC 7523)."""
    assertion = _assertion(body)
    with watched(request, authentication.claimed_device(assertion)):
        device, text = authentication.issue_token(session, assertion, lives_s=settings.device_token_s)
    request.state.actor = Actor(kind="device", id=str(device.id), name=device.name)
    answer = TokenAnswer(access_token=text, expires_in=settings.device_token_s)
    return Response(answer.to_json(), media_type="application/json", headers={"Cache-Control": "no-store"})


@devices.post("/reports", status_code=204, openapi_extra=_json_body(_REPORT), response_class=Response)
def report(body: Body, session: SessionDep, device: Caller, signature: Signature = "") -> None:
    """Take a report, signed with the device's key."""
    rollout_reports.on_report(session, device, body, parse_signature(signature))


def _assertion(body: bytes) -> str:
    """Read the form of a token request (RFC 6749, section 4.4; RFC 7523, section 2.2)."""
    try:
        form = dict(parse_qsl(body.decode("ascii"), strict_parsing=True, max_num_fields=20))
    except ValueError:
        form = {}
    said = (form.get("grant_type"), form.get("client_assertion_type"))
    assertion = form.get("client_assertion", "")
    if said != (GRANT_TYPE, ASSERTION_TYPE) or not 0 < len(assertion) <= _LONGEST_ASSERTION:
        raise InvalidInput(
            f"write a form with grant_type={GRANT_TYPE}, client_assertion_type={ASSERTION_TYPE} and client_assertion"
        )
    return assertion


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
def get_own_metadata(file: str, session: SessionDep, settings: SettingsDep, device: Caller) -> Response:
    """Give a file of the director's metadata for the device that asks: what it should run, signed for it alone."""
    asked = _asked(file)
    body: bytes | None = None
    if asked is not None:
        role, version = asked
        if version is None:
            version = poll.directed(session, settings, device.id).versions[role]
        body = director.read_metadata(session, device.id, [(role, version)]).get((role, version))
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
