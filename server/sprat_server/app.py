"""The HTTP application: made by `create_app`, holding one database engine, one blob store, and no other state."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Final

from anyio import to_thread
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from sprat_server.access.limits import Lockout, RateLimit
from sprat_server.access.oidc import OidcVerifier
from sprat_server.api import blobs as blob_routes
from sprat_server.api import problems, repeats, routers
from sprat_server.api.described import with_problem
from sprat_server.api.event_hub import EventHub
from sprat_server.api.limits import BodyLimit, CredentialsFirst
from sprat_server.api.poll import Poll, PollApp
from sprat_server.db.blobs import Blobs
from sprat_server.db.migrate import require_newest
from sprat_server.db.session import Database
from sprat_server.flows import upkeep
from sprat_server.observe import tracing
from sprat_server.observe.requests import ObservedRequests
from sprat_server.settings import Settings
from sprat_shared.errors import InvalidInput

_ASKS_A_MINUTE: Final = 10  # of one device that waits to be accepted; told to ask every ten seconds, it needs six


def create_app(settings: Settings) -> FastAPI:
    """Return the application for these settings. Its database is opened and checked when it starts.

    Raises:
        InvalidInput: no database URL is set, or a URL cannot be used; traces are asked for and cannot be exported.
    """
    if settings.database_url is None:
        raise InvalidInput("SPRAT_DATABASE_URL is not set; set it, or use `sprat-server up` for a private PostgreSQL")
    tracing.configure("api")
    database = Database(
        settings.database_url,
        pool_size=settings.db_pool_size,
        statement_timeout_s=settings.db_statement_timeout_s,
    )
    tracing.watch(database.engine)

    blobs = Blobs.open(settings.blobs)
    lockout = Lockout(settings.auth_failures_per_minute)
    poll = Poll(database, blobs, settings, lockout)
    hub = EventHub(database, most_streams=settings.event_streams)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await to_thread.run_sync(check, app)
        chores = [
            upkeep.keep_signed(database, settings),
            upkeep.keep_direct(database),
            upkeep.keep_small(database),
            upkeep.keep_rolling(database, settings),
            upkeep.keep_groups(database),
            upkeep.keep_watching(database, settings),
            upkeep.keep_delivering(database),
        ]
        kept = [asyncio.create_task(chore) for chore in chores]
        try:
            async with poll.running(), hub.running():
                yield
        finally:
            for chore in kept:
                chore.cancel()
            await to_thread.run_sync(database.close)

    app = _App(
        poll,
        title="sprat",
        version=version("sprat"),
        lifespan=lifespan,
        openapi_url=None,  # served by api/health.py, to callers with a token
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.settings = settings
    app.state.database = database
    app.state.blobs = blobs
    app.state.lockout = lockout
    app.state.queue_rate = RateLimit(_ASKS_A_MINUTE * settings.enrolment_queue_per_address)
    app.state.poll = poll
    app.state.event_hub = hub
    app.state.oidc = _oidc_verifier(settings)
    problems.install(app)
    repeats.install(app)
    for router in routers.OPERATORS:
        app.include_router(router, prefix="/api/v1")
    for router in routers.DEVICES:
        app.include_router(router, prefix="/device/v1")
    for router in routers.ROOT:
        app.include_router(router)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, unlimited=frozenset({blob_routes.UPLOAD_PATH}))
    app.add_middleware(CredentialsFirst, prefix="/api/v1/")
    app.add_middleware(PollApp, poll=poll)
    app.add_middleware(ObservedRequests, failed=problems.bug)
    return app


class _App(FastAPI):
    """The application, with a door before it where polls that find nothing new are answered from memory."""

    def __init__(self, poll: Poll, **how: Any) -> None:
        super().__init__(**how)
        self._poll = poll

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI description, with the schema of problems."""
        return with_problem(super().openapi())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._poll.answered_at_once(scope, send):
            await super().__call__(scope, receive, send)


def _oidc_verifier(settings: Settings) -> OidcVerifier | None:
    if settings.oidc_issuer is None:
        return None
    return OidcVerifier(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience or "",
        claim=settings.oidc_claim,
        scopes=settings.oidc_scopes,
    )


def check(app: FastAPI) -> None:
    """Return if the application can serve; make the signing keys and the first signed metadata if there are none.

    Raises:
        SchemaMismatch: the database has another schema.
        KeysUnusable: a signing key is missing, unreadable, or not the one that devices trust.
    """
    require_newest(app.state.database.engine)
    upkeep.prepare(app.state.database, app.state.settings)
