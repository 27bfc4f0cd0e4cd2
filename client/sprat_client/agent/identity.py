"""Who this device is: server, name, and the ed25519 key that was made here and never leaves.

agent.json and device.key are written once, by `enrol`, mode 0600. agent.json comes last: a folder with it is enrolled.
"""

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from sprat_client.agent.durable import Disk, make_folder, write_file, write_json
from sprat_client.agent.formats import FORMAT, check_format
from sprat_shared.errors import InvalidInput, NotFound
from sprat_shared.protocol.fields import Fields

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_FORMAT = 1
_ROOTS = ("image_root", "director_root")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What enrolment gave.

    Attributes:
        server_url: without a slash at its end.
        device: id of the device.
        name: what people call it.
        poll_interval_s: as the server wishes.
        image_root: signed root of the image repository, where all its trust starts, and
        director_root: of the director's.
        profile: the class of devices that it is of; None: none.
        ca_file: certificates to trust instead of the system's.
        insecure: plain HTTP to other machines is allowed.
    """

    server_url: str
    device: UUID
    name: str
    poll_interval_s: float
    image_root: bytes
    director_root: bytes
    profile: str | None = None
    ca_file: str | None = None
    insecure: bool = False

    def save(self, folder: Path, disk: Disk) -> None:
        """Write agent.json, durably."""
        roots = {name: base64.b64encode(getattr(self, name)).decode() for name in _ROOTS}
        write_json(disk, folder / "agent.json", {**asdict(self), **roots, "device": str(self.device), FORMAT: _FORMAT})

    @classmethod
    def load(cls, folder: Path) -> "Identity":
        """Read agent.json.

        Raises:
            NotFound: the folder is not enrolled.
            InvalidInput: the file is damaged.
            NewerFormat: a newer agent wrote it.
        """
        path = folder / "agent.json"
        try:
            value = json.loads(path.read_bytes())
            check_format(value, path, _FORMAT)
            fields = Fields(value, str(path))
        except FileNotFoundError:
            raise NotFound(
                f"{folder}: not enrolled; run `sprat-agent enrol --server URL --token T --dir {folder}` first",
                code="agent.not-enrolled",
            ) from None
        except ValueError as bad:
            raise InvalidInput(f"{path}: {bad}; enrol again into a new folder") from bad
        try:
            roots = {name: base64.b64decode(fields.text(name, max_length=1_000_000), validate=True) for name in _ROOTS}
        except ValueError as bad:
            raise InvalidInput(f"{path}: a root is not base64 ({bad}); enrol again into a new folder") from bad
        return cls(
            server_url=fields.text("server_url"),
            device=UUID(fields.text("device")),
            name=fields.text("name"),
            poll_interval_s=fields.number("poll_interval_s"),
            **roots,
            profile=fields.model("profile") if fields.has("profile") else None,
            ca_file=fields.text("ca_file") if fields.has("ca_file") else None,
            insecure=fields.flag("insecure"),
        )


def check_server_url(url: str, *, insecure: bool) -> str:
    """Return the URL without a slash at its end, if the agent may talk to it.

    Raises:
        InvalidInput: it is not HTTP(S), or plain HTTP to another machine.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise InvalidInput(f"--server {url!r}: write https://host[:port]")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not insecure:
        raise InvalidInput(
            f"--server {url!r}: plain HTTP shows the device's tokens to everyone on the way; use https://, "
            "or --insecure if the link is protected otherwise"
        )
    return url.rstrip("/")


def make_key(folder: Path, disk: Disk) -> Ed25519PrivateKey:
    """Make the device's key, or return the one that an interrupted enrolment left."""
    path = folder / "device.key"
    make_folder(disk, folder)
    if disk.exists(path):
        return load_key(folder)
    key = Ed25519PrivateKey.generate()
    write_file(disk, path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


def load_key(folder: Path) -> Ed25519PrivateKey:
    """Return the device's key.

    Raises:
        InvalidInput: the file is not an ed25519 key.
    """
    path = folder / "device.key"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as bad:
        raise InvalidInput(f"{path}: {bad}; enrol again into a new folder") from bad
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidInput(f"{path}: not an ed25519 key; enrol again into a new folder")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the raw 32 bytes of the public half."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
