"""HTTPS by the server itself, a CA that the agent pins, and proxies that are believed only where they are trusted."""

import datetime as dt
import ipaddress
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fastapi import FastAPI
from fleet_calls import published
from http_calls import Api

from sprat_client.agent.commands import main as sprat_agent
from sprat_server.cli.supervisor import check_address
from sprat_server.settings import Settings, load_settings
from sprat_shared.errors import InvalidInput

KEY_FORM = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """A certificate authority of our own, in a folder: `ca.pem`, and a certificate for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        ca = self._certificate("the works", "the works", ca_key.public_key(), ca_key, is_ca=True)
        cert = self._certificate("sprat", "the works", key.public_key(), ca_key, is_ca=False)
        self.ca.write_bytes(ca.public_bytes(Encoding.PEM))
        self.cert.write_bytes(cert.public_bytes(Encoding.PEM))
        self.key.write_bytes(key.private_bytes(*KEY_FORM))

    @staticmethod
    def _certificate(
        subject: str, issuer: str, public: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePrivateKey, *, is_ca: bool
    ) -> x509.Certificate:
        now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
        here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(here, critical=False)
            .sign(signer, hashes.SHA256())
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "works")


@contextmanager
def serving(settings: Settings, log: Path, *options: str | Path, **more: str) -> Iterator[str]:
    """Run `sprat-server serve` on the test's database; yield its URL."""
    assert settings.database_url is not None
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SPRAT_")}
    where = {"SPRAT_DATABASE_URL": settings.database_url, "SPRAT_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, "-m", "sprat_server.cli", "serve", "--port", "0", "--json", *options]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=kept | where | more)
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], 60)
        line = process.stdout.readline() if ready else ""
        assert line, log.read_text()
        yield json.loads(line)["url"]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def enrol(url: str, token: str, folder: Path, *options: str) -> int:
    return sprat_agent(["enrol", "--server", url, "--token", token, "--dir", str(folder), *options])


def test_an_agent_that_pins_the_ca_joins_over_https_and_no_other_certificate_will_do(
    app: FastAPI, operator: Api, settings: Settings, authority: Authority, tmp_path: Path
) -> None:
    published(app)
    token = operator.post("/api/v1/enrolment-tokens", json={}).json()["token"]
    other = Authority(tmp_path / "other-works")
    options = ("--tls-cert", authority.cert, "--tls-key", authority.key)
    with serving(settings, tmp_path / "log", *options) as url:
        assert url.startswith("https://127.0.0.1:")
        assert enrol(url, token, tmp_path / "a") == 75, "the system's authorities do not vouch for it"
        assert enrol(url, token, tmp_path / "b", "--ca", str(other.ca)) == 75
        assert enrol(url, token, tmp_path / "c", "--ca", str(authority.ca)) == 0
        assert sprat_agent(["run", "--once", "--dir", str(tmp_path / "c")]) == 0, "and works on, pinned"
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http") + "/healthz")
    assert json.loads((tmp_path / "c" / "agent.json").read_text())["ca_file"] == str(authority.ca)


def forwarded(url: str, api: Api, by: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {api.token}", "X-Forwarded-For": by, "X-Forwarded-Proto": "https"}
    body = {"name": f"bot-{by.count(',')}", "scopes": ["viewer"]}
    return httpx.post(f"{url}/api/v1/tokens", json=body, headers=headers)


@pytest.mark.parametrize(
    ("trusted", "by", "seen"),
    [
        ("", "203.0.113.9", "127.0.0.1"),
        ("10.0.0.0/8", "203.0.113.9", "127.0.0.1"),
        ("127.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("127.0.0.0/8, 10.0.0.0/8", "203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("127.0.0.1", "1.1.1.1, 203.0.113.9", "203.0.113.9"),  # what the client itself made up stands first
    ],
)
def test_a_forwarded_address_is_believed_from_trusted_peers_only(  # noqa: PLR0917 - a row of the table
    settings: Settings, admin: Api, viewer: Api, tmp_path: Path, trusted: str, by: str, seen: str
) -> None:
    with serving(settings, tmp_path / "log", SPRAT_TRUSTED_PROXIES=trusted) as url:
        assert forwarded(url, admin, by).status_code == 201
    (newest,) = viewer.get("/api/v1/audit", params={"limit": 1}).json()["items"]
    assert newest["address"] == seen


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "sprat.example"])
def test_plain_http_to_other_machines_is_refused_unless_it_is_asked_for(host: str, tmp_path: Path) -> None:
    settings = Settings(host=host, data_dir=tmp_path)
    with pytest.raises(InvalidInput, match="--insecure") as refused:
        check_address(settings)
    assert refused.value.code == "settings.plain-http"
    check_address(settings.model_copy(update={"insecure": True}))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_plain_http_on_loopback_is_fine(host: str, tmp_path: Path) -> None:
    check_address(Settings(host=host, data_dir=tmp_path))


def test_a_certificate_allows_any_address_and_must_fit_its_key(authority: Authority, tmp_path: Path) -> None:
    fitting = Settings(host="0.0.0.0", data_dir=tmp_path, tls_cert=authority.cert, tls_key=authority.key)
    check_address(fitting)
    other = Authority(tmp_path / "other-works")
    for change in ({"tls_key": other.key}, {"tls_key": tmp_path / "none"}, {"tls_cert": authority.key}):
        with pytest.raises(InvalidInput, match="no certificate with its key"):
            check_address(fitting.model_copy(update=change))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tls_cert": Path("cert.pem")}, "SPRAT_TLS_CERT and SPRAT_TLS_KEY go together"),
        ({"trusted_proxies": "proxy.example"}, "SPRAT_TRUSTED_PROXIES"),
        ({"oidc_issuer": "http://issuer.example"}, "plain HTTP"),
        ({"oidc_issuer": "https://issuer.example"}, "SPRAT_OIDC_AUDIENCE"),
        ({"oidc_scopes": "admins"}, "value=scope"),
        ({"oidc_scopes": "admins=god"}, "SPRAT_OIDC_SCOPES"),
    ],
)
def test_settings_that_do_not_go_together_are_named(given: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        load_settings(**given)


def test_no_settings_error_or_repr_shows_the_databases_password() -> None:
    url = "postgresql://sprat:hunter2@db/sprat"
    assert "hunter2" not in repr(load_settings(database_url=url))
    with pytest.raises(InvalidInput) as refused:
        load_settings(database_url=url, tls_cert=Path("cert.pem"))
    assert "hunter2" not in str(refused.value)
