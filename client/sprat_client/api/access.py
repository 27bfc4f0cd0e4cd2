"""Who may do what, and who did: enrolment tokens, operators' tokens, the audit log."""

from collections.abc import Iterator, Sequence
from typing import cast
from urllib.parse import quote

from sprat_client.api.access_views import AuditView, EnrolmentTokenView, ProjectView, TokenView
from sprat_client.api.naming import is_full_id, unique_match
from sprat_client.api.transport import Transport


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

    def create(
        self, name: str, *, scopes: Sequence[str], expires_s: int | None = None, whole_server: bool = False
    ) -> TokenView:
        """Make a token; it is shown in this answer only. Scopes: viewer, operator, releaser, admin."""
        body = {"name": name, "scopes": list(scopes), "expires_s": expires_s, "whole_server": whole_server}
        return cast("TokenView", self._transport.post("/tokens", body))

    def list(self, *, of_server: bool = False) -> list[TokenView]:
        """Return all tokens of the project, or of the whole server, without their secrets."""
        return list(self._transport.pages("/tokens", of_server=of_server or None))

    def revoke(self, token_id: str) -> None:
        """End a token at once."""
        self._transport.delete(f"/tokens/{token_id}")

    def resolve(self, wanted: str, *, of_server: bool = False) -> str:
        """Return the id of the token that `wanted` names, is, or uniquely starts or ends."""
        if is_full_id(wanted):
            return wanted
        tokens = self.list(of_server=of_server)
        named = [token["id"] for token in tokens if token["name"] == wanted]
        return named[0] if len(named) == 1 else unique_match("token", wanted, [one["id"] for one in tokens])


class Audit:
    """The append-only log of every change."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self, *, limit: int | None = None, of_server: bool = False, **said: str | None) -> list[AuditView]:
        """Return entries of the project, or of the server itself, newest first, at most `limit` of them.

        Args:
            limit: the most.
            of_server: of the server itself.
            said: `subject`, `action`, `actor`, `since` or `until`, as the API takes them.
        """
        return list(self._transport.pages("/audit", limit=limit, of_server=of_server or None, **said))

    def chain(self, *, of_server: bool = False) -> Iterator[AuditView]:
        """Iterate all entries, oldest first: what `audit_chain.check_chain` takes."""
        return self._transport.pages("/audit", sort="created", of_server=of_server or None)


class Projects:
    """What keeps the models, devices and all else of different people apart."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, name: str, *, title: str = "") -> ProjectView:
        """Make a project; needs an admin's token of the whole server."""
        return cast("ProjectView", self._transport.post("/projects", {"name": name, "title": title}))

    def list(self) -> list[ProjectView]:
        """Return the projects that the token may act in."""
        return list(self._transport.pages("/projects"))

    def get(self, name: str) -> ProjectView:
        """Return a project."""
        return cast("ProjectView", self._transport.get(f"/projects/{quote(name, safe='')}"))

    def change(self, name: str, *, title: str) -> ProjectView:
        """Give a project another title; needs an admin's token of the whole server."""
        return cast("ProjectView", self._transport.patch(f"/projects/{quote(name, safe='')}", {"title": title}))
