"""Operators by OpenID Connect, against a local issuer with real keys that rotates them, is slow, and is attacked."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import FastAPI
from http_calls import Api

from sprat_server.access import oidc
from sprat_server.app import create_app
from sprat_server.settings import Settings

AUDIENCE = "sprat"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Issuer:
    """An OpenID Connect issuer on loopback: discovery, a key set, and tokens."""

    def __init__(self) -> None:
        self.keys: dict[str, PrivateKey] = {"first": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.asked: list[str] = []
        self.answers = True
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                """Stay quiet."""

            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                body = json.dumps(issuer.answer(self.path)).encode()
                self.send_response(200 if issuer.answers else 500)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/realm"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})

    def answer(self, path: str) -> dict[str, Any]:
        """Return what stands at a path."""
        if path == "/realm/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        return {"keys": [self._jwk(kid, key) for kid, key in self.keys.items()]}

    @staticmethod
    def _jwk(kid: str, key: PrivateKey) -> dict[str, Any]:
        kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
        return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}  # type: ignore[arg-type]

    def token(self, kid: str = "first", *, key: PrivateKey | None = None, alg: str = "RS256", **changes: Any) -> str:
        """Return a token of mara's; a claim that is changed to None is left out."""
        now_s = int(time.time())
        claims = {
            "iss": self.url,
            "sub": "u-17",
            "aud": AUDIENCE,
            "iat": now_s,
            "exp": now_s + 300,
            "preferred_username": "mara",
            "groups": ["staff", "sprat-operators"],
        }
        claims = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(claims, key or self.keys[kid], algorithm=alg, headers={"kid": kid})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A running issuer."""
    made = Issuer()
    made.thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    made.thread.join()


@pytest.fixture
def app(settings: Settings, issuer: Issuer) -> Iterator[FastAPI]:
    """The application that trusts the issuer."""
    trusting = settings.model_copy(
        update={
            "oidc_issuer": issuer.url,
            "oidc_audience": AUDIENCE,
            "oidc_scopes": {"staff": "viewer", "sprat-operators": "operator", "sprat-admins": "admin"},
        }
    )
    made = create_app(trusting)
    yield made
    made.state.database.close()


def asks(app: FastAPI, token: str) -> tuple[int, str | None]:
    """Return status and code of a viewer's question."""
    answer = Api(app, token).get("/api/v1/jobs")
    return answer.status_code, answer.json().get("code")


def test_an_operator_of_the_issuer_gets_the_highest_scope_of_the_claim_and_stands_in_the_audit_log(
    app: FastAPI, issuer: Issuer
) -> None:
    mara = Api(app, issuer.token())
    assert mara.post("/api/v1/enrolment-tokens", json={}).status_code == 201
    assert mara.get("/api/v1/tokens").json()["code"] == "access.scope", "an admin's"
    (record,) = mara.get("/api/v1/audit").json()["items"]
    assert (record["actor"], record["actor_id"]) == ("operator:oidc/mara", "oidc:u-17")
    assert issuer.asked == ["/realm/.well-known/openid-configuration", "/realm/keys"], "once for many calls"


def test_an_admin_of_the_issuer_makes_tokens_of_ours(app: FastAPI, issuer: Issuer) -> None:
    admin = Api(app, issuer.token(groups="staff sprat-admins"))
    made = admin.post("/api/v1/tokens", json={"name": "ci", "scopes": ["admin"]})
    assert asks(app, made.json()["token"]) == (200, None)


@pytest.mark.parametrize("groups", [[], ["other"], None, 7, {"staff": True}, [["staff"]], "staffed"])
def test_a_valid_token_whose_claim_gives_no_scope_is_denied(app: FastAPI, issuer: Issuer, groups: Any) -> None:
    assert asks(app, issuer.token(groups=groups)) == (403, "oidc.no-scope")


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another"},
        {"aud": None},
        {"iss": "http://127.0.0.1:1/realm"},
        {"iss": None},
        {"sub": None},
        {"exp": None},
        {"iat": None},
        {"nbf": 2**40},
        {"iat": 2**40},
        {"sub": 7},
    ],
)
def test_a_token_with_a_wrong_claim_is_refused(app: FastAPI, issuer: Issuer, changes: dict[str, Any]) -> None:
    assert asks(app, issuer.token(**changes)) == (401, "access.unauthenticated")


def test_an_expired_token_is_refused_by_name(app: FastAPI, issuer: Issuer) -> None:
    assert asks(app, issuer.token(exp=int(time.time()) - 31)) == (401, "oidc.expired")


def encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "HS512"])
def test_no_token_gets_in_without_the_issuers_private_key(app: FastAPI, issuer: Issuer, alg: str) -> None:
    """`none`, and the public key, which everybody may have, as the secret of an HMAC."""
    claims = issuer.token().split(".")[1]
    head = encoded(json.dumps({"alg": alg, "kid": "first", "typ": "JWT"}).encode())
    public = issuer.keys["first"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (public, public.strip()):
        mac = encoded(hmac.new(secret, f"{head}.{claims}".encode(), hashlib.sha256).digest())
        for signature in ("", mac):
            assert asks(app, f"{head}.{claims}.{signature}")[0] == 401


def test_a_key_of_another_is_refused_though_it_is_called_alike(app: FastAPI, issuer: Issuer) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert asks(app, issuer.token(key=other)) == (401, "access.unauthenticated")


def test_a_key_of_another_kind_than_the_algorithm_is_refused(app: FastAPI, issuer: Issuer) -> None:
    curve = ec.generate_private_key(ec.SECP256R1())
    assert asks(app, issuer.token(key=curve, alg="ES256")) == (401, "access.unauthenticated")


@pytest.mark.parametrize(
    "shown", ["a.b.c", "..", "eyJ.eyJ.x", "é.é.é".encode("latin-1").decode("latin-1"), "x" * 20_000 + ".a.b"]
)
def test_what_is_no_token_at_all_is_refused(app: FastAPI, shown: str) -> None:
    assert (
        Api(app, None).get("/api/v1/jobs", headers={"Authorization": f"Bearer {shown}".encode("latin-1")}).status_code
        == 401
    )


def test_rotated_keys_are_fetched_when_a_token_names_one(
    app: FastAPI, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_REST_S", 0.0)
    assert asks(app, issuer.token()) == (200, None)
    old = issuer.keys["first"]
    issuer.keys = {"second": ec.generate_private_key(ec.SECP256R1())}
    assert asks(app, issuer.token("second", alg="ES256")) == (200, None)
    assert asks(app, issuer.token("first", key=old)) == (401, "access.unauthenticated")


def test_made_up_key_ids_do_not_make_the_server_ask_the_issuer_each_time(app: FastAPI, issuer: Issuer) -> None:
    assert asks(app, issuer.token()) == (200, None)
    for number in range(10):
        assert asks(app, issuer.token(f"made-up-{number}", key=issuer.keys["first"]))[0] == 401
    assert len(issuer.asked) == 2, "the discovery and the keys, at the start"


def test_an_issuer_that_is_away_lets_nobody_in_and_does_not_concern_our_own_tokens(
    app: FastAPI, issuer: Issuer, viewer: Api
) -> None:
    issuer.answers = False
    for _ in range(3):
        assert asks(app, issuer.token()) == (503, "oidc.issuer-away")
    assert len(issuer.asked) == 1, "it is left alone for a while"
    assert viewer.get("/api/v1/jobs").status_code == 200


def test_keys_at_hand_serve_while_the_issuer_is_away(app: FastAPI, issuer: Issuer) -> None:
    assert asks(app, issuer.token()) == (200, None)
    issuer.answers = False
    assert asks(app, issuer.token()) == (200, None)


def test_without_an_issuer_no_jwt_gets_in(settings: Settings, issuer: Issuer) -> None:
    plain = create_app(settings)
    assert asks(plain, issuer.token()) == (401, "access.unauthenticated")
    plain.state.database.close()
