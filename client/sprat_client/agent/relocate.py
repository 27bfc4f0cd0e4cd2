"""A device asks its server at another address. It stays who it is, and what it fetched half stays where it is.

Trust does not come from an address: whoever answers there must show metadata that the roots of enrolment vouch for, and
take the device by its key.
"""

from dataclasses import replace
from pathlib import Path

from sprat_client.agent.control import give_order
from sprat_client.agent.durable import Disk
from sprat_client.agent.identity import Identity, check_server_url


def relocate(
    folder: Path, disk: Disk, *, server_url: str, ca_file: str | None = None, insecure: bool = False
) -> Identity:
    """Let the agent on `folder` ask at `server_url` from now on, durably; one that runs does so at once.

    Args:
        folder: of the agent.
        disk: where it is written.
        server_url: of the server.
        ca_file: certificates to trust instead of those trusted now.
        insecure: allows plain HTTP to other machines.

    Raises:
        NotFound: the folder is not enrolled.
        InvalidInput: the URL is not one the agent may talk to.
        TryLater: an agent runs and does not hear; it asks there from its next start on.
    """
    known = Identity.load(folder)
    insecure = insecure or known.insecure
    moved = replace(
        known,
        server_url=check_server_url(server_url, insecure=insecure),
        ca_file=known.ca_file if ca_file is None else str(Path(ca_file).resolve()),
        insecure=insecure,
    )
    moved.save(folder, disk)
    give_order(folder, {"do": "relocate"})
    return moved
