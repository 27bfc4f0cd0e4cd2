"""The private keys that this server holds for the image repository: a folder of files, each named for its purpose.

Which of them are used is not said by the folder but by the signed metadata, by key id. So a key is replaced without
replacing a file: the new one is on the disk before anything names it, the old one stays until nothing does.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Key
from sqlalchemy.orm import Session

from sprat_server.db.projects import DEFAULT_PROJECT, project_of
from sprat_server.settings import Settings
from sprat_shared.errors import SpratError

# `auto` signs the delegated roles of the models that the server signs for by itself.
PURPOSES: Final = ("root", "targets", "snapshot", "timestamp", "auto")
SERVER: Final = "server"
"""The holder of keys whose private half this server has."""

_HOLDER: Final = "x-sprat-holder"
_MAX_HOLDER: Final = 80
_ID_CHARACTERS: Final = 16  # of a key id, in the name of its file

_log = structlog.get_logger(__name__)


class KeysUnusable(SpratError):
    """A signing key is missing, unreadable, or not the one that devices trust."""

    code = "publish.keys-unusable"
    exit_code = 78  # EX_CONFIG: a person has to put it right


def keys_folder(session: Session, settings: Settings) -> Path:
    """Return the folder of the keys of the session's project. Each has its own: they vouch for nothing of another."""
    project = project_of(session)
    return settings.keys_dir if project == DEFAULT_PROJECT else settings.keys_dir / "projects" / str(project)


def key_path(folder: Path, purpose: str) -> Path:
    """Return the file of the first key for a purpose."""
    return folder / f"image-{purpose}.pem"


def holder_of(key: Key) -> str:
    """Return who has the private half of a key, as its signed public half says; empty where it does not."""
    return str(key.unrecognized_fields.get(_HOLDER, ""))[:_MAX_HOLDER]


def held_by(key: Key, holder: str) -> Key:
    """Note in a public key who has its private half, and return it."""
    key.unrecognized_fields[_HOLDER] = holder
    return key


class KeyRing:
    """The keys in one folder, by key id; all are ed25519, in files that only their owner may read.

    Raises:
        KeysUnusable: a file is there and is not an ed25519 private key.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._signers: dict[str, CryptoSigner] = {}
        for path in sorted(folder.glob("image-*.pem")):
            if (signer := read_key(path)) is not None:
                self._add(path, signer)

    def __contains__(self, keyid: str) -> bool:
        return keyid in self._signers

    def __iter__(self) -> Iterator[str]:
        return iter(self._signers)

    def signers(self, keyids: Iterable[str]) -> list[CryptoSigner]:
        """Return the signers of those of `keyids` that are held, in that order."""
        return [self._signers[keyid] for keyid in keyids if keyid in self._signers]

    def was_rotated(self, keyid: str) -> bool:
        """Tell whether `make` made a key, so that its file is named for its id."""
        return self._files[keyid].stem.endswith(keyid[:_ID_CHARACTERS])

    def first(self, purpose: str) -> CryptoSigner:
        """Return the key in the first file for `purpose`, made if it is not there."""
        path = key_path(self._folder, purpose)
        for keyid, file in self._files.items():
            if file == path:
                return self._signers[keyid]
        return self._make(path, CryptoSigner.generate_ed25519())

    def make(self, purpose: str) -> CryptoSigner:
        """Make another key for `purpose`; it is on the disk when this returns."""
        signer = CryptoSigner.generate_ed25519()
        return self._make(self._folder / f"image-{purpose}-{signer.public_key.keyid[:_ID_CHARACTERS]}.pem", signer)

    def drop(self, keyid: str) -> Path:
        """Delete the file of a key; return where it was."""
        path = self._files.pop(keyid)
        del self._signers[keyid]
        path.unlink(missing_ok=True)
        _sync_folder(self._folder)
        return path

    def _make(self, path: Path, signer: CryptoSigner) -> CryptoSigner:
        write_key(path, signer)
        self._add(path, signer)
        _log.warning("publish.key-made", file=str(path), advice="whoever holds it can sign for devices: back it up")
        return signer

    def _add(self, path: Path, signer: CryptoSigner) -> None:
        held_by(signer.public_key, SERVER)
        self._files[signer.public_key.keyid], self._signers[signer.public_key.keyid] = path, signer


def read_key(path: Path) -> CryptoSigner | None:
    """Read one key; None where there is no such file.

    Raises:
        KeysUnusable: the file is there and is not an ed25519 private key.
    """
    try:
        private = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as bad:
        raise KeysUnusable(f"signing key {path} cannot be read ({bad}); restore it from a backup") from bad
    if not isinstance(private, Ed25519PrivateKey):
        raise KeysUnusable(f"signing key {path} is not an ed25519 key; restore it from a backup")
    return CryptoSigner(private)


def write_key(path: Path, signer: CryptoSigner) -> None:
    """Write a key that only its owner reads; it is on the disk when this returns."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(signer.private_bytes)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
