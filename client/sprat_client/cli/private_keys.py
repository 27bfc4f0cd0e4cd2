"""Keys of people: made, read by URI, and used to sign. Nothing here talks to the server.

A private key is named by a URI of securesystemslib: `file2:PATH` (or the bare path) for a PEM file, which may be
encrypted, and whatever else its registry knows: `hsm:`, `awskms:`, `gcpkms:`, `azurekms:`, `hv:` …
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import (
    SIGNER_FOR_URI_SCHEME,
    AWSSigner,
    AzureSigner,
    CryptoSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signer,
)

from sprat_shared.errors import InvalidInput, SpratError

_FILE: Final = "file2"
_HOLDER: Final = "x-sprat-holder"


class KeyUnusable(SpratError):
    """A private key cannot be read or used: no such file, a wrong passphrase, a device that is not there."""

    code = "keys.unusable"
    exit_code = 78


def read_passphrase(file: Path | None) -> bytes | None:
    """Return the first line of a passphrase file; None without one.

    Raises:
        InvalidInput: the file cannot be read, is empty, or others may read it.
    """
    if file is None:
        return None
    try:
        mode, line = file.stat().st_mode, file.read_bytes().splitlines()[:1]
    except OSError as error:
        raise InvalidInput(f"passphrase file {file} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise InvalidInput(f"passphrase file {file} may be read by others; run: chmod 600 {file}")
    if not line or not line[0]:
        raise InvalidInput(f"passphrase file {file} is empty; its first line is the passphrase")
    return line[0]


def generate(path: Path, holder: str, passphrase: bytes | None) -> Key:
    """Make an ed25519 key in the new file `path`, encrypted if a passphrase is given; return its public half.

    Raises:
        InvalidInput: the file exists or cannot be written.
    """
    signer = CryptoSigner.generate_ed25519()
    private = load_pem_private_key(signer.private_bytes, password=None)
    secret = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be made: {error.strerror}; a key is never overwritten") from None
    with os.fdopen(fd, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    return _held_by(signer.public_key, holder)


def public_half(uri: str, holder: str, passphrase: bytes | None) -> Key:
    """Return the public half of the key that a URI names, marked with the name of its holder.

    Raises:
        KeyUnusable: the key cannot be reached.
        InvalidInput: keys of this scheme do not give their public half; it must come as a file.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == _FILE or scheme not in SIGNER_FOR_URI_SCHEME:
        return _held_by(_file_signer(uri, passphrase).public_key, holder)
    importers: Mapping[str, Callable[[], tuple[str, Key]]] = {
        "hsm": HSMSigner.import_,
        "awskms": lambda: AWSSigner.import_(rest),
        "gcpkms": lambda: GCPSigner.import_(rest),
        "azurekms": lambda: AzureSigner.import_(*_azure(rest)),
    }
    if scheme not in importers:
        raise InvalidInput(f"a key of {scheme}: does not give its public half here; bring it as a file")
    with _reaching(uri):
        return _held_by(importers[scheme]()[1], holder)


def open_signer(uri: str, allowed: Mapping[str, Key], passphrase: bytes | None) -> Signer:
    """Return a signer for the private key that a URI names; its public half is one of `allowed`, by key id.

    Raises:
        KeyUnusable: the key cannot be reached, or its passphrase is wrong.
        InvalidInput: it is none of `allowed`, or of a scheme that does not say which one it is.
    """
    scheme = uri.partition(":")[0]
    if scheme == _FILE or scheme not in SIGNER_FOR_URI_SCHEME:
        signer = _file_signer(uri, passphrase)
        if signer.public_key.keyid not in allowed:
            raise InvalidInput(
                f"key {signer.public_key.keyid[:12]} ({uri}) may not sign this; those that may: {named(allowed)}",
                code="signing.key",
            )
        return signer
    if len(allowed) != 1:
        raise InvalidInput(f"say with --keyid which key {uri} is; those that may sign: {named(allowed)}")
    with _reaching(uri):
        return Signer.from_priv_key_uri(uri, next(iter(allowed.values())), _secret(passphrase))


def write_public(path: Path, key: Key) -> None:
    """Write a public key with its id and holder as JSON."""
    try:
        path.write_text(json.dumps({"keyid": key.keyid, "key": key.to_dict()}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from None


def read_public(path: Path) -> Key:
    """Read what `write_public` wrote.

    Raises:
        InvalidInput: it is something else.
    """
    try:
        said: Any = json.loads(path.read_text(encoding="utf-8"))
        return Key.from_dict(said["keyid"], said["key"])
    except OSError as error:
        raise InvalidInput(f"public key {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as bad:
        raise InvalidInput(f"{path} is not a public key as `sprat keys generate` writes it ({bad!r})") from None


def holder_of(key: Key) -> str:
    """Return who has the private half of a key, as its public half says."""
    return str(key.unrecognized_fields.get(_HOLDER) or "unnamed")


def named(keys: Mapping[str, Key]) -> str:
    """Return keys as text: start of the id, and holder."""
    return ", ".join(f"{keyid[:12]} ({holder_of(key)})" for keyid, key in keys.items()) or "none"


def _held_by(key: Key, holder: str) -> Key:
    if holder == "server":
        raise InvalidInput("'server' stands for keys that the server holds; give the key another name")
    key.unrecognized_fields[_HOLDER] = holder
    return key


def _file_signer(uri: str, passphrase: bytes | None) -> CryptoSigner:
    path = Path(uri.removeprefix(f"{_FILE}:"))
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise KeyUnusable(f"private key {path} cannot be read: {error.strerror}") from None
    try:
        encrypted = b"ENCRYPTED" in pem.split(b"\n", 1)[0]
        secret = (passphrase or _ask(path)) if encrypted else None
        return CryptoSigner(load_pem_private_key(pem, secret))
    except (ValueError, TypeError, UnsupportedAlgorithm) as bad:
        raise KeyUnusable(f"private key {path}: the passphrase is wrong, or it is no key that signs ({bad})") from None


def _ask(path: Path) -> bytes:
    if not sys.stdin.isatty():
        raise KeyUnusable(f"private key {path} is encrypted; give --passphrase-file, or run this in a terminal")
    return str(typer.prompt(f"passphrase of {path}", hide_input=True, err=True)).encode()


def _secret(passphrase: bytes | None) -> Callable[[str], str]:
    def ask(what: str) -> str:
        return passphrase.decode() if passphrase is not None else str(typer.prompt(what, hide_input=True, err=True))

    return ask


def _azure(rest: str) -> tuple[str, str]:
    vault, _, name = rest.removeprefix("//").partition("/keys/")
    return vault.partition(".")[0], name.partition("/")[0]


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """Turn whatever the backend of a key raises into an error that names the key."""
    try:
        yield
    except UnsupportedLibraryError as missing:
        raise KeyUnusable(f"{uri}: {missing}; install what securesystemslib asks for") from missing
    except Exception as error:
        raise KeyUnusable(f"{uri} cannot be used: {error}") from error
