"""The trust store by itself, on any TUF repository: what the TUF conformance suite drives and judges.

Store, marks, fetcher and downloader are the agent's own; only where the root and the files come from differs.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, Root, TargetFile

from sprat_client.agent.durable import PosixDisk, make_folder, remove, write_file
from sprat_client.agent.fetcher import Fetcher
from sprat_client.agent.journal import Journal
from sprat_client.agent.settings import LinkSettings
from sprat_client.agent.transfer import RemoteFile, fetch_file
from sprat_client.agent.trust.clock import Clock
from sprat_client.agent.trust.repository import TrustedRepository, TrustedTarget, check_root
from sprat_client.agent.trust.workflow import Offer
from sprat_shared.errors import InvalidInput, UntrustedUpdate

_NAME: Final = "conformance"
_MAX_METADATA_BYTES: Final = 8 << 20


class _UrlSource:
    """Metadata below a URL (`trust.workflow.MetadataSource`)."""

    def __init__(self, url: str) -> None:
        self._fetcher = Fetcher(url.rstrip("/"), LinkSettings())

    def metadata(self, _repository: str, name: str) -> Iterator[bytes]:
        with self._fetcher.ask("GET", f"/{name}") as response:
            yield from self._fetcher.body(response, _MAX_METADATA_BYTES)


class ConformanceClient:
    """A TUF client on one folder, which lists the trusted metadata as `<role>.json`.

    Args:
        folder: of the metadata; the root that trust starts from and the journal lie in folders of their own below.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._disk = folder, PosixDisk()
        self._bootstrap = folder / "agent" / "root"

    def init(self, root: bytes) -> None:
        """Take a root as the start of trust.

        Raises:
            UntrustedUpdate: it does not sign itself.
        """
        make_folder(self._disk, self._bootstrap.parent)
        write_file(self._disk, self._bootstrap, check_root(_NAME, root))
        write_file(self._disk, self._folder / "root.json", root)

    def refresh(self, url: str) -> None:
        """Bring the metadata up to date."""
        self._repository().look_up([], Offer(source=_UrlSource(url)))

    def download(self, url: str, names: Sequence[str], base_url: str, folder: Path) -> None:
        """Bring the metadata up to date and fetch targets, in order, until one fails.

        Raises:
            UntrustedUpdate: a target is not signed, or what arrives is not what was signed.
        """
        repository, source, targets = self._repository(), _UrlSource(url), Fetcher(base_url.rstrip("/"), LinkSettings())
        for name in names:
            found = repository.look_up([name], Offer(source=source))
            if name not in found:
                raise UntrustedUpdate(f"target {name} is not signed for")
            file = folder / quote(name, "")
            if not _is(file, found[name]):
                self._fetch(targets, found[name], file)

    def _fetch(self, targets: Fetcher, target: TrustedTarget, file: Path) -> None:
        part = file.with_name(f".{file.name}.part")
        fetch_file(targets, RemoteFile(self._path_of(target), target.length, part), self._disk, lambda _: None)
        if not _is(part, target):
            remove(self._disk, part)
            raise UntrustedUpdate(f"target {target.path}: what arrived is not what was signed")
        self._disk.rename(part, file)
        self._disk.sync_folder(file.parent)

    def _path_of(self, target: TrustedTarget) -> str:
        """Return where a target is: its file's name begins with a hash in repositories of consistent snapshots."""
        folder, slash, name = target.path.rpartition("/")
        if Metadata[Root].from_file(str(self._folder / "root.json")).signed.consistent_snapshot:
            name = f"{next(iter(target.hashes.values()))}.{name}"
        return "/" + quote(f"{folder}{slash}{name}")

    def _repository(self) -> TrustedRepository:
        if not self._disk.exists(self._bootstrap):
            raise InvalidInput(f"{self._folder}: no root to start from; say `init ROOT` first")
        return TrustedRepository(
            _NAME,
            self._folder,
            self._disk,
            bootstrap=self._disk.read(self._bootstrap),
            keeper=Journal(self._bootstrap.parent / "journal", self._disk),
            clock=Clock(),
        )


def _is(file: Path, target: TrustedTarget) -> bool:
    """Return whether a file has the length and all hashes that were signed."""
    try:
        with file.open("rb") as data:
            TargetFile(target.length, dict(target.hashes), target.path).verify_length_and_hashes(data)
    except (OSError, LengthOrHashMismatchError):
        return False
    return True
