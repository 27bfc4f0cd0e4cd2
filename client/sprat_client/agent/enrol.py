"""Enrolment: the device makes its key, shows a token once, and gets an identity and two roots of trust."""

import os
import platform
import socket
from pathlib import Path

from sprat_client.agent.durable import Disk
from sprat_client.agent.identity import Identity, check_server_url, make_key, public_bytes
from sprat_client.agent.lock import FolderLock
from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.transfer import Link
from sprat_client.agent.trust.repository import check_root
from sprat_client.agent.version import VERSION
from sprat_shared.errors import Conflict
from sprat_shared.protocol.enrol import EnrolRequest
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY
from sprat_shared.trust.targets import IMAGE_REPOSITORY


def enrol(
    folder: Path,
    disk: Disk,
    *,
    server_url: str,
    token: str,
    name: str | None = None,
    profile: str | None = None,
    ca_file: str | None = None,
    insecure: bool = False,
) -> Identity:
    """Enrol this device; everything it needs is durably in `folder` at return.

    Raises:
        Conflict: the folder is enrolled already, or an agent runs on it.
        AccessDenied: the token is wrong, used up or expired.
        InvalidInput: the URL is not one the agent may talk to.
        UntrustedUpdate: a root that the server gives does not sign itself.
        LinkDown: the server is not ready.
    """
    url = check_server_url(server_url, insecure=insecure)
    key = make_key(folder, disk)
    with FolderLock(folder / "run.lock"):
        if disk.exists(folder / "agent.json"):
            raise Conflict(f"{folder}: already enrolled; use another --dir, or remove the folder to start over")
        name = name or socket.gethostname()
        request = EnrolRequest(
            name=name, public_key=public_bytes(key), agent=VERSION, profile=profile, attributes=_attributes()
        )
        with Link(url, token, LinkSettings(), ca_file=ca_file) as link:
            answer = link.enrol(request)
        identity = Identity(
            server_url=url,
            device=answer.device,
            token=answer.token,
            name=name,
            poll_interval_s=answer.poll_interval_s,
            image_root=check_root(IMAGE_REPOSITORY, answer.image_root),
            director_root=check_root(DIRECTOR_REPOSITORY, answer.director_root),
            profile=profile,
            ca_file=None if ca_file is None else str(Path(ca_file).resolve()),
            insecure=insecure,
        )
        identity.save(folder, disk)
    return identity


def _attributes() -> dict[str, str]:
    """Return free facts about the device."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "cores": str(os.cpu_count() or 0),
        "memory_bytes": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    }
