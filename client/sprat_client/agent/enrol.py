"""Enrolment: the device makes its key, shows a token or waits to be accepted, and gets identity and roots of trust.

What is asked is signed with the key, and asked again it is answered again: an enrolment that was cut is repeated.
"""

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sprat_client.agent.attributes import attributes_of, remember
from sprat_client.agent.durable import Disk
from sprat_client.agent.fetcher import LinkDown
from sprat_client.agent.identity import Identity, check_server_url, make_key, public_bytes
from sprat_client.agent.journal import Journal
from sprat_client.agent.lock import FolderLock
from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.transfer import Backoff, Link
from sprat_client.agent.trust.repository import check_root
from sprat_client.agent.version import VERSION
from sprat_shared.errors import Conflict
from sprat_shared.protocol.enrol import EnrolAnswer, EnrolPending, EnrolRequest
from sprat_shared.trust.assignments import DIRECTOR_REPOSITORY
from sprat_shared.trust.targets import IMAGE_REPOSITORY

_SHORTEST_WAIT_S: Final = 1.0
_LONGEST_WAIT_S: Final = 600.0


def enrol(
    folder: Path,
    disk: Disk,
    *,
    server_url: str,
    token: str | None,
    name: str | None = None,
    profile: str | None = None,
    ca_file: str | None = None,
    insecure: bool = False,
    waiting: Callable[[EnrolPending], None] | None = None,
) -> Identity:
    """Enrol this device; everything it needs is durably in `folder` at return.

    Args:
        folder: of the agent.
        disk: where durable writes go.
        server_url: of the server.
        token: enrolment token; None: the device waits until an operator accepts it.
        name: what people call it; the host's name when left out.
        profile: device profile, the class of devices that it is of; None: none.
        ca_file: certificates to trust instead of the system's.
        insecure: allows plain HTTP to other machines.
        waiting: told once, when the device waits for an operator's word.

    Raises:
        Conflict: the folder is enrolled already, or an agent runs on it.
        AccessDenied: the token is wrong, used up or expired, or an operator rejected the device.
        InvalidInput: the URL is not one the agent may talk to.
        UntrustedUpdate: a root that the server gives does not sign itself.
        LinkDown: the server is not ready; without a token only if it does not answer the first time.
    """
    url = check_server_url(server_url, insecure=insecure)
    key = make_key(folder, disk)
    with FolderLock(folder / "run.lock"):
        if disk.exists(folder / "agent.json"):
            raise Conflict(f"{folder}: already enrolled; use another --dir, or remove the folder to start over")
        name = name or socket.gethostname()
        attributes = attributes_of(folder)
        request = EnrolRequest(
            name=name, public_key=public_bytes(key), agent=VERSION, profile=profile, attributes=attributes
        )
        body = request.to_json()
        with Link(url, token, LinkSettings(), ca_file=ca_file) as link:
            answer = _ask(link, body, key.sign(body), waiting)
        Journal(folder / "journal.json", disk).begin_after(answer.report_sequence)
        identity = Identity(
            server_url=url,
            device=answer.device,
            name=name,
            poll_interval_s=answer.poll_interval_s,
            image_root=check_root(IMAGE_REPOSITORY, answer.image_root),
            director_root=check_root(DIRECTOR_REPOSITORY, answer.director_root),
            profile=profile,
            ca_file=None if ca_file is None else str(Path(ca_file).resolve()),
            insecure=insecure,
        )
        remember(folder, disk, attributes)
        identity.save(folder, disk)
    return identity


def _ask(link: Link, body: bytes, signature: bytes, waiting: Callable[[EnrolPending], None] | None) -> EnrolAnswer:
    """Ask until the server lets the device in, as seldom as it wishes."""
    backoff, told = Backoff(LinkSettings()), False
    while True:
        try:
            answer = link.enrol(body, signature)
        except LinkDown as bad:
            if not told:
                raise
            wait_s = backoff.next_s(bad)
        else:
            if isinstance(answer, EnrolAnswer):
                return answer
            if waiting is not None and not told:
                waiting(answer)
            told = True
            backoff.reset()
            wait_s = min(_LONGEST_WAIT_S, max(_SHORTEST_WAIT_S, answer.ask_again_s)) * random.uniform(1.0, 1.2)  # noqa: S311  # jitter
        time.sleep(wait_s)
