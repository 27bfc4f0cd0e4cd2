"""`SpratClient`: the operators' API by resource, `client.models`, `client.rollouts` and so on."""

from collections.abc import Callable
from pathlib import Path
from typing import Self, cast

import httpx

from sprat_client.api.access import Audit, EnrolmentTokens, Projects, Tokens
from sprat_client.api.bundles import Bundles
from sprat_client.api.custody import Keys
from sprat_client.api.drift import Drift
from sprat_client.api.events import Events, Webhooks
from sprat_client.api.fleet import Devices
from sprat_client.api.jobs import Jobs
from sprat_client.api.placements import Placements
from sprat_client.api.registry import Datasets, Models
from sprat_client.api.reports import Reports
from sprat_client.api.rollouts import Rollouts
from sprat_client.api.sharing import Sharing
from sprat_client.api.sites import Sites, Tasks
from sprat_client.api.targeting import Groups
from sprat_client.api.transport import Transport
from sprat_client.api.views import BlobRef


class SpratClient:
    """The operators' API of one server.

    Args:
        server_url: `http(s)://host:port`, without a path.
        token: the operator's token.
        project: the project to act in; None: the token's, or the default one.
        timeout_s: of one connect, one read, one write; not of a whole transfer.
        transport: httpx's seam, for tests.
    """

    def __init__(
        self,
        server_url: str,
        token: str,
        *,
        project: str | None = None,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(server_url, token, project=project, timeout_s=timeout_s, transport=transport)
        self.models = Models(self._transport)
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.rollouts = Rollouts(self._transport)
        self.devices = Devices(self._transport)
        self.groups = Groups(self._transport)
        self.drift = Drift(self._transport)
        self.sharing = Sharing(self._transport)
        self.placements = Placements(self._transport)
        self.tasks = Tasks(self._transport)
        self.sites = Sites(self._transport)
        self.reports = Reports(self._transport)
        self.enrolment_tokens = EnrolmentTokens(self._transport)
        self.tokens = Tokens(self._transport)
        self.audit = Audit(self._transport)
        self.keys = Keys(self._transport)
        self.events = Events(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.projects = Projects(self._transport)
        self.bundles = Bundles(self._transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def upload_blob(self, source: Path, progress: Callable[[int, int], None] | None = None) -> BlobRef:
        """Store a file's bytes on the server under their digest; the file is streamed, never held in memory."""
        return cast("BlobRef", self._transport.upload("/blobs", source, progress))

    def download_blob(self, digest: str, to: Path, progress: Callable[[int, int], None] | None = None) -> int:
        """Write the blob of `digest` to `to`, checked against it; returns its bytes."""
        return self._transport.download(digest, to, progress)
