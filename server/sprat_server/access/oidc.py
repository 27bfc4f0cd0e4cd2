"""Operators by OpenID Connect: a bearer token of the configured issuer, its scope read from a claim.

Keys come from the issuer's JWKS, kept for a while, and are fetched again when a token names one that is not there: so
the issuer may rotate them. That is done once in some seconds at most, whoever sends tokens with made-up key ids; what
the issuer does not answer in time is an error of ours (503), never a way in. Signatures are asymmetric only: `none`
and HMAC, with which a public key would be a secret, are not on the list.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import httpx
import jwt
from jwt import PyJWK, PyJWKClient, PyJWKClientConnectionError

from sprat_server.access.tokens import Identity, Scope
from sprat_shared.errors import AccessDenied, InvalidInput, TryLater, Unauthenticated

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_LEEWAY_S: Final = 30
_TIMEOUT_S: Final = 5.0
_KEYS_LIVE_S: Final = 300
_REST_S: Final = 10.0  # between two questions that made-up key ids, or an issuer that is away, cause
_LONGEST_TOKEN: Final = 16_384
_REQUIRED: Final = ("iss", "sub", "aud", "iat", "exp")


class IssuerAway(TryLater):
    """The OpenID Connect issuer does not tell its keys; tokens of sprat's own work meanwhile."""

    code = "oidc.issuer-away"


class OidcVerifier:
    """Reads tokens of one issuer. Safe between threads.

    Args:
        issuer: its URL, as the tokens' `iss` names it.
        audience: what their `aud` must name.
        claim: the claim that gives scopes.
        scopes: what its values give: a scope in the whole server, or `scope@project`.
        now_s: a monotonic clock.
    """

    def __init__(
        self,
        *,
        issuer: str,
        audience: str,
        claim: str,
        scopes: Mapping[str, str],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer, self._audience, self._claim, self._now_s = issuer, audience, claim, now_s
        self._grants = {value: _grant(text) for value, text in scopes.items()}
        self._lock = threading.Lock()
        self._client: PyJWKClient | None = None
        self._failed_s = -_REST_S

    def identify(self, shown: str, named: str | None = None) -> tuple[Identity, str | None]:
        """Return the operator that shows this token, and the project in which they act, None: the default one.

        Args:
            shown: the token.
            named: the project that they name.

        Raises:
            Unauthenticated: it is not a valid token of the issuer for us.
            AccessDenied: it is, and gives no scope here, or not in the project that is named.
            InvalidInput: it gives scopes in several projects, and none is named.
            IssuerAway: its keys cannot be had just now.
        """
        claims = self._verified(shown)
        subject = str(claims["sub"])
        name = str(claims.get("preferred_username") or claims.get("email") or subject)[:100]
        grants = [self._grants[value] for value in _words(claims.get(self._claim)) if value in self._grants]
        of_server = [scope for scope, project in grants if project is None]
        projects = sorted({project for _, project in grants if project is not None})
        if not of_server and named is None:
            if len(projects) > 1:
                raise InvalidInput(
                    f"{name!r} acts in the projects {', '.join(projects)}: name one (sprat --project, or the header "
                    "Sprat-Project)",
                    code="oidc.which-project",
                )
            named = next(iter(projects), None)
        scopes = [*of_server, *(scope for scope, project in grants if project is not None and project == named)]
        if not scopes:
            raise AccessDenied(
                f"claim {self._claim!r} of {name!r} gives no scope here; let an admin look at SPRAT_OIDC_SCOPES",
                code="oidc.no-scope",
            )
        whole = bool(of_server) and max(of_server) == max(scopes)
        # A slash is in no token's name: nobody is taken for one.
        identity = Identity(
            kind="operator", id=f"oidc:{subject[:255]}", name=f"oidc/{name}", scope=max(scopes), whole_server=whole
        )
        return identity, named

    def _verified(self, shown: str) -> Mapping[str, Any]:
        if len(shown) > _LONGEST_TOKEN:
            raise _refused()
        try:
            header = jwt.get_unverified_header(shown)
            if header.get("alg") not in ALGORITHMS:
                raise _refused()
            claims: Mapping[str, Any] = jwt.decode(
                shown,
                self._key(header.get("kid")),
                algorithms=list(ALGORITHMS),
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_S,
                options={"require": list(_REQUIRED)},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired; sign in again", code="oidc.expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, RecursionError):
            raise _refused() from None
        return claims

    def _key(self, kid: object) -> PyJWK:
        """Return the issuer's key of this id."""
        if not isinstance(kid, str):
            raise _refused()
        with self._lock:
            for key in self._at_hand():
                if key.key_id == kid:
                    return key
            if self._now_s() - self._failed_s < _REST_S:
                raise IssuerAway(f"{self._issuer} does not answer; try again in some seconds")
            try:
                if self._client is None:
                    self._client = PyJWKClient(
                        self._jwks_url(), lifespan=_KEYS_LIVE_S, timeout=_TIMEOUT_S, cooldown_duration=_REST_S
                    )
                return self._client.get_signing_key(kid)
            except (httpx.HTTPError, jwt.PyJWTError, ValueError, KeyError, TypeError) as bad:
                if self._at_hand() and not isinstance(bad, PyJWKClientConnectionError):
                    raise _refused() from None  # it answers, and has no such key
                self._failed_s = self._now_s()
                raise IssuerAway(
                    f"{self._issuer} does not tell its keys ({type(bad).__name__}); try again later"
                ) from bad

    def _at_hand(self) -> list[PyJWK]:
        """Return the signing keys that need no question."""
        kept = None
        if self._client is not None and self._client.jwk_set_cache is not None:
            kept = self._client.jwk_set_cache.get()
        return [key for key in kept.keys if key.public_key_use in {"sig", None}] if kept is not None else []

    def _jwks_url(self) -> str:
        """Ask where the keys are (OpenID Connect Discovery 1.0, section 4)."""
        url = self._issuer.rstrip("/") + "/.well-known/openid-configuration"
        said = httpx.get(url, timeout=_TIMEOUT_S).raise_for_status().json()
        if said["issuer"] != self._issuer:
            raise ValueError("it calls itself otherwise")
        return str(said["jwks_uri"])


def _grant(text: str) -> tuple[Scope, str | None]:
    """Read `scope` or `scope@project`."""
    scope, _, project = text.partition("@")
    return Scope.of(scope), project or None


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _refused() -> Unauthenticated:
    return Unauthenticated("the token is not one of the issuer that this server trusts, for this server; sign in again")
