"""One TUF repository as this device trusts it: python-tuf's client workflow over durable files and marks.

Where python-tuf would write, what it accepted is collected; at the end of a refresh, also of one that failed on the
way, the marks become durable first and the files after them, root first. A cut in between leaves files older than the
marks, which are then fetched again: never a mark that is older than a file, so no version that was seen is forgotten.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote, unquote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile

from sprat_client.agent.durable import Disk, make_folder, remove, write_file
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.marks import Marks
from sprat_client.agent.trust.workflow import HISTORY, TIMESTAMP_FILE, Offer, OfferFetcher, Workflow
from sprat_shared.errors import TryLater, UntrustedUpdate
from sprat_shared.protocol.poll import TOP_ROLES, HeldMetadata

T = TypeVar("T")
_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)


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
        """Return when the first of the files that are held expires; long ago, where that cannot be read."""
        return min((_expiry_of(data) for _, data in self.held()), default=_LONG_AGO)

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

        def read(workflow: Workflow) -> dict[str, TrustedTarget]:
            found = {path: workflow.get_targetinfo(path) for path in _wanted(paths, workflow)}
            return {path: TrustedTarget.of(target) for path, target in found.items() if target is not None}

        return self._refresh(offer or Offer(), read) or {}

    def look_around(self, role: str, path: str) -> list[TrustedTarget]:
        """Return all that a role signs, by what is held; it is trusted for them as far as for the target `path`.

        Raises:
            TryLater, UntrustedUpdate: as `look_up`.
        """
        return self._refresh(Offer(), lambda flow: list(map(TrustedTarget.of, flow.targets_of(role, path)))) or []

    def _refresh(self, offer: Offer, read: Callable[[Workflow], T]) -> T | None:
        """Return what `read` finds after a refresh; None where nothing is held and nothing offered."""
        unchanged = self._unchanged(offer)
        if unchanged is None and not offer.parts and offer.source is None:
            return None
        marks = self._keeper.marks(self.name)
        fetcher = OfferFetcher(self.name, offer, marks.versions.get("root", 0))
        with _named(self.name):
            workflow = Workflow(
                self._folder,
                self._bootstrap,
                marks,
                self._clock,
                fetcher=fetcher,
                unchanged=unchanged,
                tells_time=self._tells_time,
            )
            try:
                workflow.refresh()
                return read(workflow)
            finally:
                self._keep(marks, workflow)

    def let_go(self, wanted: Collection[str]) -> None:
        """Remove the files of delegated roles that are not wanted any more; their marks stay."""
        for role in self._files():
            if role not in wanted and role not in TOP_ROLES:
                remove(self._disk, self._folder / f"{quote(role, '')}.json")

    def _unchanged(self, offer: Offer) -> bytes | None:
        """Return the timestamp that is held, where no newer one is to be had: the poll brought none, or nobody can."""
        path = self._folder / TIMESTAMP_FILE
        if TIMESTAMP_FILE in offer.parts or (offer.source is not None and not offer.polled):
            return None
        return self._disk.read(path) if self._disk.exists(path) else None

    def _keep(self, before: Marks, workflow: Workflow) -> None:
        """Make durable what was seen, then what was accepted."""
        if workflow.marks != before:
            self._keeper.keep_marks(self.name, workflow.marks)
        make_folder(self._disk, self._folder / HISTORY)
        history = {f"{HISTORY}/{version}.root.json": workflow.history[version] for version in sorted(workflow.history)}
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


def _wanted(paths: Sequence[str] | None, workflow: Workflow) -> Sequence[str]:
    return workflow.top_targets() if paths is None else paths


def _signed_part(data: bytes | None) -> Mapping[str, Any]:
    """Return what a file says, unverified; nothing where it cannot be read, because a disk lost or zeroed it."""
    try:
        signed = json.loads(data or b"")["signed"]
    except (ValueError, TypeError, KeyError):
        return {}
    return signed if isinstance(signed, dict) else {}


def _expiry_of(data: bytes) -> datetime:
    try:
        return datetime.fromisoformat(_signed_part(data)["expires"]).astimezone(UTC)
    except (ValueError, TypeError, KeyError, OverflowError):
        return _LONG_AGO


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
