"""Roles of the image repository, their keys, and what waits for signatures of people."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sprat_client.api.transport import Transport
from sprat_client.api.views import CustodyView, SignedView


class Keys:
    """Keys and signatures. Private keys never pass through here."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def show(self) -> CustodyView:
        """Return every role, and what waits for signatures."""
        return cast("CustodyView", self._transport.get("/keys"))

    def rotate(self, roles: Sequence[Mapping[str, Any]]) -> SignedView:
        """Ask for other keys of roles, which take effect together once enough have signed.

        Args:
            roles: each {"role", "keys": [{"keyid", "key"}] or None for one of the server's, "threshold"}.
        """
        return cast("SignedView", self._transport.post("/keys/rotate", {"roles": list(roles)}))

    def add_signature(self, digest: str, *, keyid: str, signature: str) -> SignedView:
        """Bring a signature (hex) over the draft with this digest."""
        body = {"keyid": keyid, "signature": signature}
        return cast("SignedView", self._transport.post(f"/keys/drafts/{digest}/signatures", body))

    def withdraw(self, digest: str) -> SignedView:
        """Drop a draft."""
        return cast("SignedView", self._transport.post(f"/keys/drafts/{digest}/withdraw"))

    def draft_release(self, name: str, number: int) -> SignedView:
        """Have what must be signed for a release wait for signatures; `waiting` holds it unless it was published."""
        return cast("SignedView", self._transport.post(f"/models/{name}/releases/{number}/draft"))
