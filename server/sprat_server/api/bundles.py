"""/api/v1/bundles: what devices without a network should run, in one file."""

from typing import Annotated, Final
from uuid import UUID

from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from sprat_server.access import audit
from sprat_server.api.auth import Operator
from sprat_server.api.described import raises, together
from sprat_server.api.ports import BlobsDep, SettingsDep
from sprat_server.api.routes import StreamedRoute
from sprat_server.db.session import SessionDep
from sprat_server.flows import bundles as flow
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.bundle import CONTENT_TYPE, MOST_DEVICES

router = APIRouter(route_class=StreamedRoute, prefix="/bundles", tags=["bundles"])

VALID_UNTIL: Final = "Sprat-Valid-Until"


class NewBundle(BaseModel):
    """For which devices, or for those with which model, and for how long."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"model": "pcb-defects", "valid_days": 30}]}
    )

    devices: Annotated[list[UUID] | None, Field(min_length=1, max_length=MOST_DEVICES)] = None
    model: Annotated[str | None, Field(max_length=63)] = None
    valid_days: Annotated[int | None, Field(ge=1, le=flow.MOST_DAYS)] = None
    full: bool = False


@router.post(
    "",
    response_class=Response,
    responses=together(
        {200: {"content": {CONTENT_TYPE: {}}}},
        raises(not_found=["device.unknown", "model.unknown"], conflict=["device.revoked"], invalid=["bundle.empty"]),
    ),
)
def export_bundle(
    body: NewBundle, session: SessionDep, settings: SettingsDep, blobs: BlobsDep, operator: Operator
) -> Response:
    """Give one file with all that these devices need for what they should run, signed for them."""
    if (body.devices is None) == (body.model is None):
        raise InvalidInput("a bundle is for `devices`, or for all that have a `model`: name one of them")
    devices = body.devices if body.devices is not None else flow.devices_with(session, body.model or "")
    made = flow.export(session, settings, devices, valid_days=body.valid_days, full=body.full)
    made.require_payloads(blobs)
    after = body.model_dump(mode="json") | {
        "devices": [str(device) for device in made.head.devices],
        "valid_until": made.valid_until.isoformat(),
        "payloads": len(made.head.payloads),
    }
    audit.record(session, operator, "bundle.export", f"bundle:{made.digest}", after=after)
    headers = {"Content-Length": str(made.head.whole_bytes), VALID_UNTIL: made.valid_until.isoformat()}
    return StreamingResponse(made.stream(blobs), headers=headers, media_type=CONTENT_TYPE)
