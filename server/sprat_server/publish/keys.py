"""The signing keys of the image repository: ed25519, one file for each purpose, readable by their owner only."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from sprat_shared.errors import SpratError

# `models` signs the delegated role of every model: a key for each would cost every device its bytes.
PURPOSES: Final = ("root", "targets", "snapshot", "timestamp", "models")

_log = structlog.get_logger(__name__)


class KeysUnusable(SpratError):
    """A signing key is missing, unreadable, or not the one that devices trust."""

    code = "publish.keys-unusable"
    exit_code = 78  # EX_CONFIG: a person has to put it right


def key_path(folder: Path, purpose: str) -> Path:
    """Return the file of one key."""
    return folder / f"image-{purpose}.pem"


def load_keys(folder: Path) -> dict[str, CryptoSigner]:
    """Read the keys that lie in `folder`, by purpose; missing files are left out.

    Raises:
        KeysUnusable: a file is there and is not an ed25519 private key.
    """
    signers = {}
    for purpose in PURPOSES:
        signer = read_key(key_path(folder, purpose))
        if signer is not None:
            signers[purpose] = signer
    return signers


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


def make_missing_keys(folder: Path, present: Mapping[str, CryptoSigner]) -> dict[str, CryptoSigner]:
    """Return `present` with a new key for each purpose that has none; new ones are on the disk when this returns."""
    signers = dict(present)
    for purpose in PURPOSES:
        if purpose not in signers:
            signers[purpose] = CryptoSigner.generate_ed25519()
            write_key(key_path(folder, purpose), signers[purpose])
    if len(present) < len(signers):
        _log.warning(
            "signing keys were made; whoever holds them can update every device: back them up, and keep the root "
            "and targets keys where only you can read them",
            folder=str(folder),
            files=[key_path(folder, purpose).name for purpose in PURPOSES if purpose not in present],
        )
    return signers


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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
