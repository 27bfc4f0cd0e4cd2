"""The outbox: reports signed with the device's key, kept until the server took them, delivered in order."""

import base64
import json
import logging
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sprat_client.agent.durable import Disk, is_temporary, make_folder, remove, write_json
from sprat_client.agent.fetcher import ServerRefused
from sprat_client.agent.formats import FORMAT, NewerFormat, check_format
from sprat_client.agent.transfer import Link
from sprat_shared.errors import AccessDenied, InvalidInput, NotFound, Unauthenticated
from sprat_shared.protocol.report import parse_signature, read_report

_FORMAT = 1
_log = logging.getLogger(__name__)


class Outbox:
    """The reports of one device that are not delivered yet.

    Args:
        folder: `outbox` in the agent folder.
        disk: where it is written.
        key: the device's key.
    """

    def __init__(self, folder: Path, disk: Disk, key: Ed25519PrivateKey) -> None:
        self._folder, self._disk, self._key = folder, disk, key

    def put(self, body: bytes) -> None:
        """Sign one report and keep it, durably. The same report twice is one."""
        make_folder(self._disk, self._folder)
        sequence = read_report(body).sequence
        signature = base64.b64encode(self._key.sign(body)).decode()
        write_json(self._disk, self._path(sequence), {FORMAT: _FORMAT, "body": body.decode(), "signature": signature})

    def waiting(self) -> list[Path]:
        """Return the reports that wait, oldest first."""
        if not self._disk.exists(self._folder):
            return []
        return [self._folder / name for name in self._disk.names(self._folder) if not is_temporary(name)]

    def deliver(self, link: Link) -> int:
        """Deliver what waits, oldest first; return how many.

        A report that the server will never take is dropped with a warning, so that it does not hold up the others.

        Raises:
            LinkDown: try again later; what was delivered is gone from the outbox.
            Unauthenticated: the server does not know the device; everything waits.
            NewerFormat: a newer agent kept them; likewise.
        """
        delivered = 0
        for path in self.waiting():
            try:
                kept = json.loads(self._disk.read(path))
                check_format(kept, path, _FORMAT)
                body, signature = kept["body"].encode(), parse_signature(kept["signature"])
                link.report(body, signature)
                delivered += 1
            except (NewerFormat, Unauthenticated):
                raise  # this agent, or the server, does not know what to do with them just now: they wait
            except (ServerRefused, AccessDenied, NotFound, InvalidInput, ValueError, KeyError) as bad:
                _log.warning("report dropped", extra={"report": path.name, "reason": str(bad)})
            remove(self._disk, path)
        return delivered

    def _path(self, sequence: int) -> Path:
        return self._folder / f"{sequence:012d}.json"
