"""No body larger than a route takes: counted while it arrives, whatever Content-Length says."""

from typing import Final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOO_LARGE: Final = 413


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
