"""Blobs over HTTP: uploads of operators, and downloads (with ranges) of operators and devices."""

import re
from http import HTTPStatus
from typing import Final
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from sprat_server.access import audit
from sprat_server.access.tokens import Identity, Scope
from sprat_server.api.auth import Reader, bearer, identify_operator
from sprat_server.api.described import problems
from sprat_server.api.problems import problem
from sprat_server.api.routes import StreamedRoute
from sprat_server.db.blobs import CHUNK_BYTES, Blob, Blobs, BlobTooLarge, Upload
from sprat_server.db.projects import project_of
from sprat_server.db.session import Database, SessionDep
from sprat_server.registry import service as registry
from sprat_server.settings import Settings

UPLOAD_PATH: Final = "/api/v1/blobs"
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")
_CACHE_FOR_EVER: Final = "private, max-age=31536000, immutable"

operators = APIRouter(route_class=StreamedRoute, tags=["blobs"])
everyone = APIRouter(tags=["blobs"])


class BlobView(BaseModel):
    """A stored blob."""

    digest: str
    length: int


@operators.post(
    "/blobs",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": {}}}},
    response_model=BlobView,
    responses=problems({HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ["blob.too-large"]}),
)
async def upload_blob(request: Request) -> BlobView | Response:
    """Store the body. It is hashed as it arrives; storing what is stored already changes nothing."""
    state = request.app.state
    settings: Settings = state.settings
    blobs: Blobs = state.blobs
    who, project_id = await to_thread.run_sync(_identify, state.database, request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > settings.max_blob_bytes:
        raise BlobTooLarge(f"the upload has {declared} bytes; this server takes {settings.max_blob_bytes}")
    with blobs.upload(max_bytes=settings.max_blob_bytes) as upload:
        waiting = bytearray()
        try:
            async for piece in request.stream():
                waiting += piece
                if len(waiting) >= CHUNK_BYTES:
                    await to_thread.run_sync(upload.write, bytes(waiting))
                    waiting.clear()
        except ClientDisconnect:
            return problem(400, "the connection ended before the body did; nothing was stored", "blob.cut-off")
        await to_thread.run_sync(upload.write, bytes(waiting))
        blob = await to_thread.run_sync(_keep, state.database, upload, who, project_id)
    return BlobView(digest=blob.digest, length=blob.length)


@everyone.head("/blobs/sha256/{hex_digest}", response_class=Response, include_in_schema=False)
@everyone.get("/blobs/sha256/{hex_digest}", response_class=Response)
def get_blob(hex_digest: str, request: Request, session: SessionDep, _reader: Reader) -> Response:
    """Give the bytes of a blob, or the range that is asked for. A blob never changes, so caches may keep it."""
    blobs: Blobs = request.app.state.blobs
    digest = f"sha256:{hex_digest}"
    length = registry.owned_length(session, blobs, digest)
    etag = f'"{hex_digest}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": _CACHE_FOR_EVER}
    if _names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range")
    start, end, status = 0, length, 200
    if asked is not None and request.headers.get("if-range", etag) == etag:
        match = _RANGE.fullmatch(asked.strip())
        if match and any(match.groups()):  # several ranges, or other units: the whole, as RFC 9110 (14.2) allows
            start, end = _bounds(*match.groups(), length=length)
            if start >= end:
                headers["Content-Range"] = f"bytes */{length}"
                return problem(416, f"the blob has {length} bytes; {asked} lies outside", "blob.range", headers=headers)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{length}"
            status = 206
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type="application/octet-stream")
    body = (bytes(piece) for piece in blobs.stream(digest, start, end))
    return StreamingResponse(body, status, headers, media_type="application/octet-stream")


def _identify(database: Database, request: Request) -> tuple[Identity, UUID]:
    """Who uploads, and into which project, in a transaction of its own: an upload is long, and keeps none."""
    with database.transaction(None) as session:
        who = identify_operator(request, session, bearer(request))
        who.require(Scope.OPERATOR)
        return who, project_of(session)


def _keep(database: Database, upload: Upload, who: Identity, project_id: UUID) -> Blob:
    blob = upload.finish()
    with database.transaction(project_id) as session:
        registry.own_blob(session, blob.digest)
        audit.record(session, who, "blob.upload", f"blob:{blob.digest}", None, {"length": blob.length})
    return blob


def _names(header: str | None, etag: str) -> bool:
    return header is not None and (header.strip() == "*" or etag in {part.strip() for part in header.split(",")})


def _bounds(first: str, last: str, *, length: int) -> tuple[int, int]:
    """Return start and end (exclusive) of `first-last`, `first-` or `-last` (the last bytes) of `length` bytes."""
    if not first:
        return max(length - int(last), 0), length
    return int(first), min(int(last) + 1, length) if last else length
