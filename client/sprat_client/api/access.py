"""Who may do what, and who did: enrolment tokens, operators' tokens, the audit log."""

from collections.abc import Iterator, Sequence
from typing import cast

from sprat_client.api.naming import is_full_id, unique_match
from sprat_client.api.transport import Transport
from sprat_client.api.views import AuditView, EnrolmentTokenView, TokenView


class EnrolmentTokens:
    """Tokens with which devices join the fleet."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, uses: int = 1, expires_s: int = 3600, group: str | None = None) -> EnrolmentTokenView:
        """Make a token for `uses` devices, valid for `expires_s` seconds; it is shown in this answer only."""
        body = {"uses": uses, "expires_s": expires_s, "group": group}
        return cast("EnrolmentTokenView", self._transport.post("/enrolment-tokens", body))


class Tokens:
    """Operators' tokens."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, *, scopes: Sequence[str], expires_s: int | None = None) -> TokenView:
        """Make a token; it is shown in this answer only. Scopes: viewer, operator, releaser, admin."""
        body = {"name": name, "scopes": list(scopes), "expires_s": expires_s}
        return cast("TokenView", self._transport.post("/tokens", body))

    def list(self) -> list[TokenView]:
        """Return all tokens, without their secrets."""
        return list(self._transport.pages("/tokens"))

    def revoke(self, token_id: str) -> None:
        """End a token at once."""
        self._transport.delete(f"/tokens/{token_id}")

    def resolve(self, wanted: str) -> str:
        """Return the id of the token that `wanted` names, is, or uniquely starts or ends."""
        if is_full_id(wanted):
            return wanted
        tokens = self.list()
        named = [token["id"] for token in tokens if token["name"] == wanted]
        return named[0] if len(named) == 1 else unique_match("token", wanted, [one["id"] for one in tokens])


class Audit:
    """The append-only log of every change."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None) -> list[AuditView]:
        """Return entries, newest first, at most `limit` of them."""
        return list(self._transport.pages("/audit", limit=limit))

    def chain(self) -> Iterator[AuditView]:
        """Iterate all entries, oldest first: what `audit_chain.check_chain` takes."""
        return self._transport.pages("/audit", oldest_first=True)
