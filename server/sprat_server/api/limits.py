"""What is refused before a route is looked for: calls without credentials, and bodies larger than a route takes.

Bodies are counted while they arrive, whatever Content-Length says.
"""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sprat_server.api.problems import answer_of
from sprat_shared.errors import Unauthenticated

TOO_LARGE: Final = 413


class CredentialsFirst:
    """Answers 401 below `prefix` where no credentials are shown at all: nothing of such a request is read."""

    def __init__(self, app: ASGIApp, *, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, or refuse it."""
        if (
            scope["type"] == "http"
            and scope["path"].startswith(self._prefix)
            and not any(name == b"authorization" for name, _ in scope["headers"])
        ):
            missing = Unauthenticated("this needs a token: send the header `Authorization: Bearer <token>`")
            await answer_of(missing)(scope, receive, send)
            return
        await self._app(scope, receive, send)


class BodyLimit:
    """Refuses bodies above `max_bytes`, except on `unlimited` paths, which count for themselves."""

    def __init__(self, app: ASGIApp, *, max_bytes: int, unlimited: frozenset[str]) -> None:
        self._app, self._max_bytes, self._unlimited = app, max_bytes, unlimited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through with its body counted."""
        if scope["type"] != "http" or scope["path"] in self._unlimited:
            await self._app(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_bytes:
                raise HTTPException(TOO_LARGE, f"the body has more than {self._max_bytes} bytes, the most taken here")
            return message

        await self._app(scope, counted, send)
