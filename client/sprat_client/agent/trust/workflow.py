"""python-tuf's client workflow, with nothing written: what is offered, what was accepted, what marks and clock say.

This is the one module that overrides steps of python-tuf's `Updater` by their private names: its order of steps, its
verification and its caps are used as they are, and its writes, its clock and its memory are ours (docs/adr/0019).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater

from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.marks import ONLINE_ROLES, Marks, RoleKeys
from sprat_shared.errors import AccessDenied, NotFound, UntrustedUpdate
from sprat_shared.trust.signed_time import SignedTime

HISTORY: Final = "root_history"
TIMESTAMP_FILE: Final = "timestamp.json"
_NO_SUCH_FILE, _FORBIDDEN = 404, 403
_UNUSED_URL: Final = "https://repository.invalid/"


class MetadataSource(Protocol):
    """Where metadata come from that the poll did not bring."""

    def metadata(self, repository: str, name: str) -> Iterator[bytes]:
        """Yield the bytes of `/tuf/<repository>/<name>`.

        Raises:
            NotFound: the server has no such file.
            TryLater: link or server are not ready.
        """


@dataclass(frozen=True, slots=True)
class Offer:
    """Metadata that are on offer: the files that a poll brought, and whom to ask for those that it did not.

    Attributes:
        parts: files by name, such as `4.snapshot.json`.
        source: None: there is no network.
        polled: a poll was answered: what it did not bring did not change.
    """

    parts: Mapping[str, bytes] = field(default_factory=dict)
    source: MetadataSource | None = None
    polled: bool = False


class OfferFetcher(FetcherInterface):
    """Gives python-tuf the poll's files first, then those of the network, piece by piece, so that its caps hold.

    Args:
        repository: `image` or `director`.
        offer: what there is to give.
        known_root: highest version of the root that was ever trusted.
    """

    def __init__(self, repository: str, offer: Offer, known_root: int) -> None:
        self._repository, self._offer, self._known_root = repository, offer, known_root

    def _fetch(self, url: str) -> Iterator[bytes]:
        quoted = url.rpartition("/")[2]
        name = unquote(quoted)
        if name in self._offer.parts:
            yield self._offer.parts[name]
            return
        number, _, role = name.partition(".")
        newer_root = role == "root.json" and int(number) > self._known_root
        if self._offer.source is None or (newer_root and self._offer.polled):
            raise DownloadHTTPError(f"{name} is not on offer", _NO_SUCH_FILE)
        try:
            yield from self._offer.source.metadata(self._repository, quoted)
        except NotFound as missing:
            raise DownloadHTTPError(str(missing), _NO_SUCH_FILE) from missing
        except AccessDenied as denied:
            raise DownloadHTTPError(str(denied), _FORBIDDEN) from denied


class Workflow(Updater):
    """python-tuf's client workflow, whose writes are collected, held against marks, and judged at our time.

    Args:
        folder: with the files as they are held; only read.
        bootstrap: the root that the chain of roots starts from.
        marks: what was seen before.
        clock: the reference time.
        fetcher: gives newer files.
        unchanged: the timestamp that is held, where the server says that there is no newer one.
        tells_time: whether the timestamps set the clock.

    Attributes:
        marks: what was seen, raised by what this run accepted.
        history: accepted roots by version.
        accepted: accepted files by name; None: to be removed.
    """

    def __init__(
        self,
        folder: Path,
        bootstrap: bytes,
        marks: Marks,
        clock: Clock,
        *,
        fetcher: FetcherInterface,
        unchanged: bytes | None,
        tells_time: bool,
    ) -> None:
        self._folder, self._clock, self._tells_time = folder, clock, tells_time
        self._unchanged, self._delegators = unchanged, dict[str, str]()
        self._void = False
        self.marks = marks
        self.history: dict[int, bytes] = {}
        self.accepted: dict[str, bytes | None] = {}
        super().__init__(str(folder), _UNUSED_URL, fetcher=fetcher, bootstrap=bootstrap)
        # The cap is for new roots: those that were trusted before are walked again from enrolment's, every time.
        self.config.max_root_rotations += max(0, marks.versions.get(Root.type, 0) - self._trusted_set.root.version)

    def refresh(self) -> None:
        """Run the workflow of the four top roles."""
        try:
            self._load_root()
        finally:  # the last root of a chain may be bad, and those before it good
            root = self._trusted_set.root
            if root.version > self.marks.versions.get(Root.type, 0):
                self.marks = self.marks.seen(Root.type, root.version)
        self.marks.seen(Root.type, root.version)
        keys = {name: RoleKeys(frozenset(role.keyids), role.threshold) for name, role in root.roles.items()}
        self._void = self.marks.replaced_by(keys)
        self.marks = self.marks.under(keys)
        if self._void:  # section 5.3.11: both are deleted when the keys of either are replaced
            self.accepted |= {f"{role}.json": None for role in ONLINE_ROLES}
            if self._tells_time:
                self._clock.forget()
        self._trusted_set.reference_time = self._clock.now()
        self._load_timestamp()
        self._load_snapshot()
        self._load_targets(Targets.type, Root.type)

    def top_targets(self) -> list[str]:
        """Return the paths of the targets that the top role signs itself."""
        return list(self._trusted_set.targets.targets)

    def targets_of(self, role: str, path: str) -> list[TargetFile]:
        """Return all that a role signs, which the delegations on the way to the target `path` lead to."""
        self.get_targetinfo(path)
        signed = self._trusted_set.get(role)
        return list(signed.targets.values()) if isinstance(signed, Targets) else []

    # the workflow's steps, held against the marks ----------------------------------------------------------------

    def _load_timestamp(self) -> None:
        super()._load_timestamp()
        timestamp = self._trusted_set.timestamp
        if timestamp.is_expired(self._trusted_set.reference_time):  # one that did not change was let through
            raise ExpiredMetadataError("timestamp.json is expired")
        self._see(Timestamp.type, Timestamp.type, timestamp.version)
        self._see(Timestamp.type, Snapshot.type, timestamp.snapshot_meta.version)

    def _load_snapshot(self) -> None:
        super()._load_snapshot()
        offered = self._trusted_set.snapshot.meta
        for role in [role for role in self.marks.versions if role not in {Root.type, *ONLINE_ROLES}]:
            meta = offered.get(f"{role}.json")
            self._see(Snapshot.type, role, 0 if meta is None else meta.version)

    def _load_targets(self, role: str, parent_role: str) -> Targets:
        """Load a role; one that two others delegate to is refused, so that none inherits trust from another way."""
        if self._delegators.setdefault(role, parent_role) != parent_role:
            raise RepositoryError(f"{role} is delegated to by {self._delegators[role]} and by {parent_role}")
        try:
            targets = super()._load_targets(role, parent_role)
        except BadVersionNumberError as bad:  # the snapshot names another version: not a rollback of the whole
            raise LengthOrHashMismatchError(str(bad)) from bad
        self._see(role, role, targets.version)
        return targets

    def _see(self, file: str, role: str, version: int) -> None:
        try:
            self.marks = self.marks.seen(role, version)
        except UntrustedUpdate:
            self.accepted.pop(f"{file}.json", None)
            raise

    # where python-tuf reads and writes ---------------------------------------------------------------------------

    def _download_metadata(self, rolename: str, length: int, version: int | None = None) -> bytes:
        if rolename == Timestamp.type and self._unchanged is not None and not self._void:
            return self._unchanged
        data = super()._download_metadata(rolename, length, version)
        if rolename == Timestamp.type and self._tells_time:
            self._read_time(data)
        return data

    def _read_time(self, data: bytes) -> None:
        """Set the clock by an offered timestamp before it is judged by the clock."""
        metadata = Metadata[Timestamp].from_bytes(data)
        self._trusted_set.root.verify_delegate(Timestamp.type, metadata.signed_bytes, metadata.signatures)
        if (signed := SignedTime.from_fields(metadata.signed.unrecognized_fields)) is not None:
            self._clock.take(signed)
            self.marks = self.marks.seen_time(signed.at)
            self._trusted_set.reference_time = self._clock.now()

    def _load_local_metadata(self, rolename: str) -> bytes:
        if self._void and rolename in ONLINE_ROLES:
            raise FileNotFoundError(f"{rolename} is void: its keys were replaced")
        return super()._load_local_metadata(rolename)

    def _persist_file(self, filename: str, data: bytes) -> None:
        self.accepted[Path(filename).name] = data

    def _persist_root(self, version: int, data: bytes) -> None:
        self.history[version] = data

    def _update_root_symlink(self) -> None:
        version = self._trusted_set.root.version
        if version not in self.history:
            self.history[version] = (self._folder / HISTORY / f"{version}.root.json").read_bytes()
        self.accepted["root.json"] = self.history[version]
