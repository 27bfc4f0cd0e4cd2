"""One TUF repository as this device trusts it: python-tuf's client workflow over durable files and marks.

Where python-tuf would write, what it accepted is collected; at the end of a refresh, also of one that failed on the
way, the marks become durable first and the files after them, root first. A cut in between leaves files older than the
marks, which are then fetched again: never a mark that is older than a file, so no version that was seen is forgotten.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater

from sprat_client.agent.durable import Disk, make_folder, remove, write_file
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.marks import ONLINE_ROLES, Marks, RoleKeys
from sprat_shared.errors import AccessDenied, NotFound, TryLater, UntrustedUpdate
from sprat_shared.protocol.poll import TOP_ROLES, HeldMetadata
from sprat_shared.trust.signed_time import SignedTime

_HISTORY: Final = "root_history"
_NO_SUCH_FILE, _FORBIDDEN = 404, 403
_UNUSED_URL: Final = "https://repository.invalid/"
_TIMESTAMP_FILE: Final = "timestamp.json"


class MetadataSource(Protocol):
    """Where metadata come from that the poll did not bring."""

    def metadata(self, repository: str, name: str) -> Iterator[bytes]:
        """Yield the bytes of `/tuf/<repository>/<name>`.

        Raises:
            NotFound: the server has no such file.
            TryLater: link or server are not ready.
        """


class MarksKeeper(Protocol):
    """Where marks survive a power cut, apart from the metadata: the journal."""

    def marks(self, repository: str) -> Marks:
        """Return the marks of a repository; empty ones where it was never seen."""

    def keep_marks(self, repository: str, marks: Marks) -> None:
        """Make marks durable."""


@dataclass(frozen=True, slots=True)
class TrustedTarget:
    """A target that signed metadata vouch for.

    Attributes:
        path: under which it is signed.
        length: of the file, bytes.
        hashes: hex digests of the file, by algorithm.
        custom: what the signer says beside; None: nothing.
    """

    path: str
    length: int
    hashes: Mapping[str, str]
    custom: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, target: TargetFile) -> "TrustedTarget":
        """Return what python-tuf read."""
        return cls(target.path, target.length, dict(target.hashes), target.unrecognized_fields.get("custom"))

    @property
    def sha256(self) -> bytes:
        """Return the SHA-256 of the file.

        Raises:
            UntrustedUpdate: none is signed.
        """
        try:
            return bytes.fromhex(self.hashes["sha256"])
        except (KeyError, ValueError):
            raise UntrustedUpdate(f"target {self.path}: no SHA-256 is signed for it", code="trust.malformed") from None


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


class _Fetcher(FetcherInterface):
    """Gives python-tuf the poll's files first, then those of the network, piece by piece, so that its caps hold."""

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


class _Workflow(Updater):
    """python-tuf's client workflow, whose writes are collected, held against marks, and judged at our time.

    Attributes:
        marks: what was seen, raised by what this run accepted.
        history: accepted roots by version.
        accepted: accepted files by name; None: to be removed.
    """

    def __init__(
        self, folder: Path, bootstrap: bytes, marks: Marks, clock: Clock, *, fetcher: FetcherInterface, tells_time: bool
    ) -> None:
        self._folder, self._clock, self._tells_time = folder, clock, tells_time
        self._delegators: dict[str, str] = {}
        self._void = False
        self.marks = marks
        self.history: dict[int, bytes] = {}
        self.accepted: dict[str, bytes | None] = {}
        super().__init__(str(folder), _UNUSED_URL, fetcher=fetcher, bootstrap=bootstrap)

    def refresh(self) -> None:
        """Run the workflow of the four top roles."""
        self._load_root()
        root = self._trusted_set.root
        self.marks = self.marks.seen("root", root.version)
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

    # the workflow's steps, held against the marks ----------------------------------------------------------------

    def _load_timestamp(self) -> None:
        super()._load_timestamp()
        timestamp = self._trusted_set.timestamp
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
            self.history[version] = (self._folder / _HISTORY / f"{version}.root.json").read_bytes()
        self.accepted["root.json"] = self.history[version]


class TrustedRepository:
    """The trusted metadata of one repository.

    Args:
        name: `image` or `director`.
        folder: where its files are.
        disk: where they are written.
        bootstrap: the root that enrolment gave; the chain of roots starts from it every time.
        keeper: where marks survive.
        clock: the reference time.
        tells_time: whether its timestamps set the clock.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        disk: Disk,
        *,
        bootstrap: bytes,
        keeper: MarksKeeper,
        clock: Clock,
        tells_time: bool = False,
    ) -> None:
        self.name = name
        self._folder, self._disk, self._bootstrap = folder, disk, bootstrap
        self._keeper, self._clock, self._tells_time = keeper, clock, tells_time

    def held(self) -> list[tuple[HeldMetadata, bytes]]:
        """Return the trusted files with their versions, in the order of a poll's dictionary; unreadable ones left out.

        The root that enrolment gave is always held.
        """
        files = self._files()
        roles = [*TOP_ROLES, *sorted(role for role in files if role not in TOP_ROLES)]
        found = []
        for role in roles:
            for data in (files.get(role), self._bootstrap if role == Root.type else None):
                version = _signed_part(data).get("version")
                if data is not None and isinstance(version, int):
                    found.append((HeldMetadata(self.name, role, version), data))
                    break
        return found

    def fresh_until(self) -> datetime:
        """Return when the first of the files that are held expires; long ago, where none is held."""
        expiries = [_signed_part(data).get("expires", "") for _, data in self.held()]
        return min(
            (datetime.fromisoformat(text) for text in expiries if text), default=datetime.min.replace(tzinfo=UTC)
        )

    def _files(self) -> dict[str, bytes]:
        if not self._disk.exists(self._folder):
            return {}
        names = [name for name in self._disk.names(self._folder) if name.endswith(".json")]
        return {unquote(name.removesuffix(".json")): self._disk.read(self._folder / name) for name in names}

    def look_up(self, paths: Sequence[str] | None, offer: Offer | None = None) -> dict[str, TrustedTarget]:
        """Refresh the metadata and return what they say of targets. Those that are not signed are left out.

        Without an offer only what is held is asked.

        Args:
            paths: target paths; None: all that the top role signs.
            offer: newer metadata.

        Raises:
            TryLater: the metadata are expired, or link or server are not ready.
            UntrustedUpdate: signatures, versions or digests are wrong; the code says which.
        """
        offer = self._with_held(offer)
        if not offer.parts and offer.source is None:
            return {}
        marks = self._keeper.marks(self.name)
        fetcher = _Fetcher(self.name, offer, marks.versions.get("root", 0))
        with _named(self.name):
            workflow = _Workflow(
                self._folder, self._bootstrap, marks, self._clock, fetcher=fetcher, tells_time=self._tells_time
            )
            try:
                workflow.refresh()
                found = {path: workflow.get_targetinfo(path) for path in _wanted(paths, workflow)}
            finally:
                self._keep(marks, workflow)
        return {path: TrustedTarget.of(target) for path, target in found.items() if target is not None}

    def _with_held(self, offer: Offer | None) -> Offer:
        """Return the offer with timestamp and snapshot as they are held, where no newer ones are to be had.

        They are on offer like any others: void ones, after a change of keys, are verified as if they were new.
        """
        offer = offer or Offer()
        if offer.source is not None and not offer.polled:
            return offer
        held = {item.role: (item.version, data) for item, data in self.held()}
        ours = {
            _TIMESTAMP_FILE if role == Timestamp.type else f"{held[role][0]}.{role}.json": held[role][1]
            for role in ONLINE_ROLES
            if role in held
        }
        return replace(offer, parts={**ours, **offer.parts})

    def _keep(self, before: Marks, workflow: _Workflow) -> None:
        """Make durable what was seen, then what was accepted."""
        if workflow.marks != before:
            self._keeper.keep_marks(self.name, workflow.marks)
        make_folder(self._disk, self._folder / _HISTORY)
        history = {f"{_HISTORY}/{version}.root.json": workflow.history[version] for version in sorted(workflow.history)}
        for name, data in {**history, **workflow.accepted}.items():
            path = self._folder / name
            if data is None:
                remove(self._disk, path)
            elif not self._disk.exists(path) or self._disk.read(path) != data:
                write_file(self._disk, path, data)


def check_root(name: str, root: bytes) -> bytes:
    """Return the bytes of a root, if it signs itself.

    Raises:
        UntrustedUpdate: it does not, or is no root.
    """
    with _named(name):
        metadata = Metadata[Root].from_bytes(root)
        if metadata.signed.type != Root.type:
            raise RepositoryError(f"a root was expected, not {metadata.signed.type!r}")
        metadata.signed.verify_delegate(Root.type, metadata.signed_bytes, metadata.signatures)
    return root


def _wanted(paths: Sequence[str] | None, workflow: _Workflow) -> Sequence[str]:
    return workflow.top_targets() if paths is None else paths


def _signed_part(data: bytes | None) -> Mapping[str, Any]:
    """Return what a file says, unverified; nothing where it cannot be read, because a disk lost or zeroed it."""
    try:
        signed = json.loads(data or b"")["signed"]
    except (ValueError, TypeError, KeyError):
        return {}
    return signed if isinstance(signed, dict) else {}


@contextmanager
def _named(repository: str) -> Iterator[None]:
    """Turn python-tuf's errors into ours, each with the code of its cause."""
    where = f"{repository} repository"
    try:
        yield
    except ExpiredMetadataError as bad:
        raise TryLater(
            f"{where}: {bad}; somebody holds back newer metadata, the server does not publish, or the clock is wrong",
            code="trust.expired",
        ) from bad
    except DownloadLengthMismatchError as bad:
        raise UntrustedUpdate(f"{where}: endless metadata are refused: {bad}", code="trust.too-long") from bad
    except DownloadError as bad:
        raise TryLater(f"{where}: signed metadata could not be fetched: {bad}", code="trust.incomplete") from bad
    except UnsignedMetadataError as bad:
        raise UntrustedUpdate(f"{where}: not signed by enough of its keys: {bad}", code="trust.signature") from bad
    except BadVersionNumberError as bad:
        raise UntrustedUpdate(f"{where}: old metadata are refused: {bad}", code="trust.rollback") from bad
    except LengthOrHashMismatchError as bad:
        raise UntrustedUpdate(f"{where}: files that do not belong together: {bad}", code="trust.mixed") from bad
    except RepositoryError as bad:
        raise UntrustedUpdate(f"{where}: metadata are refused: {bad}", code="trust.malformed") from bad
