"""Calls to the application in this process, as an operator of a given scope; or over a real socket."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import uvicorn
from described_routes import require_described
from fastapi import FastAPI

from sprat_server.access import tokens
from sprat_server.access.tokens import Scope
from sprat_server.db.projects import DEFAULT_PROJECT

MADE = iter(range(1 << 62))
"""Numbers for names that must differ."""


@dataclass(frozen=True)
class Api:
    """Calls the application in this process, as whoever holds `token`."""

    app: FastAPI
    token: str | None

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Send one request and return its answer; errors of the application are answers, as from outside."""
        headers = dict(options.pop("headers", {}))
        if self.token is not None:
            headers.setdefault("Authorization", f"Bearer {self.token}")

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://sprat.test") as client:
                return await client.request(method, url, headers=headers, **options)

        answer = asyncio.run(send())
        require_described(self.app, answer)
        return answer

    def get(self, url: str, **options: Any) -> httpx.Response:
        """GET."""
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        """POST."""
        return self.request("POST", url, **options)

    def patch(self, url: str, **options: Any) -> httpx.Response:
        """PATCH."""
        return self.request("PATCH", url, **options)

    def delete(self, url: str, **options: Any) -> httpx.Response:
        """DELETE."""
        return self.request("DELETE", url, **options)


def as_scope(app: FastAPI, scope: Scope, project_id: UUID | None = DEFAULT_PROJECT) -> Api:
    """Return a client with a new token of this scope, of a project or (None) of the whole server."""
    with app.state.database.transaction(project_id or DEFAULT_PROJECT) as session:
        _, token = tokens.create(
            session,
            name=f"test-{next(MADE)}",
            scope=scope,
            expires_s=None,
            by=None,
            whole_server=project_id is None,
        )
    return Api(app, token)


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve the application on a free port of loopback."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, proxy_headers=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
