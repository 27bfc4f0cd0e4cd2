"""Proof of possession: the device signs an assertion with its key and gets a bearer token that ends soon (RFC 7523).

The token lives in memory only: it is asked for when there is none, when its time is over, and once after a 401. A
server whose time is another says so, and the next assertion is dated by that; nothing else believes that time.
"""

import base64
import json
import time
from collections.abc import Generator, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sprat_client.agent.version import VERSION
from sprat_shared.errors import InvalidInput
from sprat_shared.ids import new_id
from sprat_shared.protocol.token import (
    ALGORITHM,
    ASSERTION_TYPE,
    AUDIENCE,
    GRANT_TYPE,
    SERVER_TIME,
    TOKEN_PATH,
    TokenAnswer,
)

_ASSERTION_S: Final = 60
_MAX_ANSWER_BYTES: Final = 64 << 10
_ENDS_EARLY_S: Final = 5.0  # a token that ends on the way costs a round trip


def signed_claims(claims: Mapping[str, Any], key: Ed25519PrivateKey) -> str:
    """Return a JWT of the claims (RFC 7519), signed with EdDSA (RFC 8037), in compact form (RFC 7515, section 3.1).

    Signing is this and no more; a library that reads tokens as well would take 2 MB of the device's memory.
    """
    parts = [_base64url(json.dumps(part).encode()) for part in ({"alg": ALGORITHM, "typ": "JWT"}, claims)]
    signed = b".".join(parts)
    return (signed + b"." + _base64url(key.sign(signed))).decode("ascii")


def _base64url(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class DeviceAuth(httpx.Auth):
    """Shows the device's bearer token with each request, and gets one where there is none.

    A token that the server refuses to give ends the request with the server's answer to that.

    Args:
        server_url: without a slash at its end.
        device: the device's id.
        key: its private key.
    """

    def __init__(self, server_url: str, device: UUID, key: Ed25519PrivateKey) -> None:
        self._url, self._device, self._key = server_url + TOKEN_PATH, str(device), key
        self._token: str | None = None
        self._ends_s = 0.0  # on the monotonic clock
        self._told: tuple[float, float] | None = None  # the server's time, and the monotonic clock's then

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with a token (httpx's protocol)."""
        fresh = self._token is None or time.monotonic() >= self._ends_s
        if fresh and not (yield from self._get_token(request)):
            return
        response = yield self._with_token(request)
        if response.status_code != HTTPStatus.UNAUTHORIZED or fresh:
            return
        _read(response)
        if (yield from self._get_token(request)):
            yield self._with_token(request)

    def _with_token(self, request: httpx.Request) -> httpx.Request:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _get_token(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, bool]:
        """Ask for a token, once more where the server told its time; return whether there is one."""
        self._token = None
        for _ in range(2):
            response = yield self._token_request(request)
            _read(response)
            if response.status_code == HTTPStatus.OK:
                answer = TokenAnswer.from_json(response.content)
                self._token = answer.access_token
                self._ends_s = time.monotonic() + answer.expires_in - _ENDS_EARLY_S
                return True
            if response.is_success or response.status_code == HTTPStatus.NOT_MODIFIED:
                raise InvalidInput(f"{TOKEN_PATH}: the server answers {response.status_code}; is it a sprat-server?")
            told = _server_time(response)
            if told is None:
                return False
            self._told = told, time.monotonic()
        return False

    def _token_request(self, request: httpx.Request) -> httpx.Request:
        now_s = int(self._now_s())
        claims = {
            "iss": self._device,
            "sub": self._device,
            "aud": AUDIENCE,
            "iat": now_s,
            "exp": now_s + _ASSERTION_S,
            "jti": new_id().hex,
        }
        form = {
            "grant_type": GRANT_TYPE,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": signed_claims(claims, self._key),
        }
        headers = {"User-Agent": f"sprat-agent/{VERSION}", "Accept-Encoding": "identity"}
        timeout = {"timeout": request.extensions["timeout"]}
        return httpx.Request("POST", self._url, data=form, headers=headers, extensions=timeout)

    def _now_s(self) -> float:
        """Return the time for an assertion: the device's own, until a server told another."""
        if self._told is None:
            return time.time()
        told, then_s = self._told
        return told + time.monotonic() - then_s


class _Capped(httpx.SyncByteStream):
    """A body of which so many bytes are taken."""

    def __init__(self, stream: httpx.SyncByteStream, max_bytes: int) -> None:
        self._stream, self._left = stream, max_bytes

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            self._left -= len(piece)
            if self._left < 0:
                raise InvalidInput(f"{TOKEN_PATH}: the server sends too many bytes", code="link.too-long")
            yield piece

    def close(self) -> None:
        self._stream.close()


def _read(response: httpx.Response) -> None:
    """Read a short body whole; httpx reads what it is handed here, and no more than the cap."""
    assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - the agent's client is no asynchronous one
    response.stream = _Capped(response.stream, _MAX_ANSWER_BYTES)
    response.read()


def _server_time(response: httpx.Response) -> float | None:
    """Return the time that the server names in a problem, seconds since 1970; None where it names none."""
    try:
        told = response.json().get(SERVER_TIME)
    except (ValueError, AttributeError):
        return None
    plausible = isinstance(told, (int, float)) and not isinstance(told, bool) and 0 < told < 2**40
    return float(told) if plausible else None
