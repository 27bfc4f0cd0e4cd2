"""Private keys by URI: files here, everything else through securesystemslib's registry of signers."""

from pathlib import Path

import pytest
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, SecretsHandler, Signature, Signer

from sprat_client.cli import private_keys
from sprat_client.cli.private_keys import KeyUnusable
from sprat_shared.errors import InvalidInput


class Vault(Signer):
    """A key management service in memory: keys by name, behind a PIN."""

    keys: dict[str, CryptoSigner] = {}  # noqa: RUF012 - the service's own store

    def __init__(self, inside: CryptoSigner) -> None:
        self.inside = inside

    @property
    def public_key(self) -> Key:
        return self.inside.public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "Vault":
        if secrets_handler is None or secrets_handler("pin") != "1234":
            raise ValueError("wrong pin")
        inside = cls.keys[priv_key_uri.removeprefix("vault:")]
        assert inside.public_key.keyid == public_key.keyid
        return cls(inside)

    def sign(self, payload: bytes) -> Signature:
        return self.inside.sign(payload)


@pytest.fixture
def vault(monkeypatch: pytest.MonkeyPatch) -> Key:
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "vault", Vault)
    Vault.keys["mine"] = CryptoSigner.generate_ed25519()
    return Vault.keys["mine"].public_key


def test_a_scheme_of_the_registry_signs_with_its_secret(vault: Key) -> None:
    signer = private_keys.open_signer("vault:mine", {vault.keyid: vault}, b"1234")
    vault.verify_signature(signer.sign(b"payload"), b"payload")


def test_what_a_backend_refuses_names_the_key(vault: Key) -> None:
    with pytest.raises(KeyUnusable, match="vault:mine cannot be used: wrong pin"):
        private_keys.open_signer("vault:mine", {vault.keyid: vault}, b"0000")


def test_of_several_keys_a_backend_is_told_which_one_it_is(vault: Key) -> None:
    other = CryptoSigner.generate_ed25519().public_key
    with pytest.raises(InvalidInput, match="say with --keyid which key vault:mine is"):
        private_keys.open_signer("vault:mine", {vault.keyid: vault, other.keyid: other}, b"1234")


@pytest.mark.parametrize("uri", ["hsm:", "awskms:alias/root", "azurekms://vault.vault.azure.net/keys/root/1"])
def test_a_backend_whose_library_is_not_installed_says_which(uri: str) -> None:
    with pytest.raises(KeyUnusable, match="install what securesystemslib asks for"):
        private_keys.public_half(uri, "bob", None)


def test_a_scheme_without_public_halves_asks_for_a_file() -> None:
    with pytest.raises(InvalidInput, match="bring it as a file"):
        private_keys.public_half("tkey:", "bob", None)


@pytest.mark.parametrize("passphrase", [None, b"secret"])
def test_a_key_file_signs_by_uri_and_by_path_and_its_public_half_reads_back(
    tmp_path: Path, passphrase: bytes | None
) -> None:
    key = private_keys.generate(tmp_path / "alice.pem", "alice", passphrase)
    private_keys.write_public(tmp_path / "alice.pub.json", key)
    read = private_keys.read_public(tmp_path / "alice.pub.json")
    assert (read.keyid, private_keys.holder_of(read)) == (key.keyid, "alice")
    for uri in (f"file2:{tmp_path / 'alice.pem'}", str(tmp_path / "alice.pem")):
        signer = private_keys.open_signer(uri, {read.keyid: read}, passphrase)
        read.verify_signature(signer.sign(b"payload"), b"payload")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"", "no key that signs"), (b"not a key", "no key that signs")]
)
def test_a_file_that_is_no_private_key_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyUnusable, match=f"{path}.*{message}"):
        private_keys.open_signer(str(path), {}, None)


def test_an_encrypted_key_without_a_passphrase_says_how_to_give_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private_keys.generate(tmp_path / "alice.pem", "alice", b"secret")
    with Path("/dev/null").open() as no_terminal, monkeypatch.context() as patched:
        patched.setattr("sys.stdin", no_terminal)
        with pytest.raises(KeyUnusable, match="give --passphrase-file"):
            private_keys.open_signer(str(tmp_path / "alice.pem"), {}, None)


def test_nobody_calls_a_key_of_theirs_the_servers(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="stands for keys that the server holds"):
        private_keys.generate(tmp_path / "server.pem", "server", None)


@pytest.mark.parametrize("content", ["", "{}", '{"keyid": "ab", "key": {}}', "[1]"])
def test_a_file_that_is_no_public_key_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.pub.json"
    path.write_text(content)
    with pytest.raises(InvalidInput, match="is not a public key"):
        private_keys.read_public(path)
