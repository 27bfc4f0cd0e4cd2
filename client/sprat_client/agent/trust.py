"""What this device trusts: the image repository's metadata, checked by python-tuf, kept durably.

python-tuf's client works in a scratch folder, because its own writes are not synced. What it accepted is then written
durably, root first, so a cut leaves a state that the client workflow (TUF specification, section 5) accepts and never
one in which a version that was seen is forgotten.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote

from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater

from sprat_client.agent.durable import Disk, make_folder, write_file
from sprat_client.agent.store import file_sha256
from sprat_client.agent.version import VERSION
from sprat_shared.errors import (
    BaseMismatch,
    DigestMismatch,
    NotFound,
    SpratError,
    TryLater,
    UntrustedUpdate,
    WireVersionUnsupported,
)
from sprat_shared.ids import parse_digest
from sprat_shared.protocol.poll import Desired, HeldMetadata
from sprat_shared.trust.targets import IMAGE_REPOSITORY, WIRE_VERSION, UpdateTarget, graph_path

_SEAL: Final = object()
_TOP_ROLES: Final = ("root", "timestamp", "snapshot", "targets")
_NO_SUCH_FILE: Final = 404
_UNUSED_URL: Final = "https://image.invalid/"


class MetadataSource(Protocol):
    """Where metadata come from that the poll did not bring."""

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of `/tuf/image/<name>`.

        Raises:
            NotFound: the server has no such file.
            TryLater: link or server are not ready.
        """


@dataclass(frozen=True, slots=True)
class TrustedTarget:
    """A target that the signed metadata vouch for: path, length in bytes, SHA-256."""

    path: str
    length: int
    sha256: bytes


class VerifiedUpdate:
    """Metadata were signed, payload and chain were checked; `TrustStore.verify` is the only way to get one.

    Attributes:
        target: what the signer says.
        payload: the file with the update.
    """

    def __init__(self, target: UpdateTarget, payload: Path, *, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("only TrustStore.verify() makes a VerifiedUpdate")
        self.target, self.payload = target, payload


class _Fetcher(FetcherInterface):
    """Gives python-tuf the poll's bytes first, then those of the network, if it may be asked."""

    def __init__(self, held: Mapping[str, bytes], source: MetadataSource | None) -> None:
        self._held, self._source = held, source

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = unquote(url.rpartition("/")[2])
        if name in self._held:
            return iter([self._held[name]])
        if self._source is None or (self._held and name.endswith(".root.json")):
            raise DownloadHTTPError(f"{name} is not held", _NO_SUCH_FILE)  # the poll would have brought a newer root
        try:
            return iter(list(self._source.metadata(name)))
        except NotFound as missing:
            raise DownloadHTTPError(str(missing), _NO_SUCH_FILE) from missing


class TrustStore:
    """The trusted metadata of the image repository.

    Args:
        folder: `trust/image` in the agent folder.
        disk: where it is written.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self._work = folder.parent / "work"

    def bootstrap(self, root: bytes) -> None:
        """Store the first root; everything else is checked against it.

        Raises:
            UntrustedUpdate: the bytes are not a root that signs itself.
        """
        make_folder(self._disk, self._folder)  # durably, before the scratch folder beside it is made
        self._run(root, {}, None, [])
        write_file(self._disk, self._folder / "root.json", root)

    def held(self) -> list[tuple[HeldMetadata, bytes]]:
        """Return the trusted files with their versions, in the order in which a poll names them."""
        if not self._disk.exists(self._folder):
            return []
        delegated = sorted(
            name.removesuffix(".json") for name in self._disk.names(self._folder) if name.startswith("m.")
        )
        found = []
        for role in (*_TOP_ROLES, *delegated):
            if self._disk.exists(path := self._folder / f"{role}.json"):
                data = self._disk.read(path)
                version = json.loads(data)["signed"]["version"]
                found.append((HeldMetadata(IMAGE_REPOSITORY, role, version), data))
        return found

    def find(
        self, paths: Sequence[str], *, parts: Mapping[str, bytes] | None = None, source: MetadataSource | None = None
    ) -> dict[str, tuple[TrustedTarget, Mapping[str, object] | None]]:
        """Refresh the metadata and return what they say of the targets `paths`, with their custom fields.

        Without `source` and `parts` only what is held is asked. Targets that are not signed are left out.

        Args:
            paths: target paths.
            parts: metadata files by name, as a poll brought them.
            source: asked for what `parts` lack.

        Raises:
            TryLater: the metadata are expired, or link or server are not ready.
            UntrustedUpdate: signatures, versions or digests are wrong.
        """
        root = self._disk.read(self._folder / "root.json")
        held = dict(parts or {})
        timestamp = self._folder / "timestamp.json"
        if (held or source is None) and self._disk.exists(timestamp):
            held.setdefault("timestamp.json", self._disk.read(timestamp))
        found = self._run(root, held, source, paths)
        self._keep()
        return {
            path: (
                TrustedTarget(path, target.length, bytes.fromhex(target.hashes["sha256"])),
                target.unrecognized_fields.get("custom"),
            )
            for path, target in found.items()
            if "sha256" in target.hashes
        }

    def verify(
        self, wish: Desired, steps: Sequence[str], base_weights: str | None, payloads: Path
    ) -> list[VerifiedUpdate]:
        """Check payloads and chain against the metadata that are held, without the network.

        Args:
            wish: what the server asked for; it is believed only where the signed metadata agree.
            steps: target paths of the updates, in order.
            base_weights: weights digest of the release that the first step starts from; None: from nothing.
            payloads: folder with the payloads, named by the hex of their digests.

        Raises:
            UntrustedUpdate: a target is not signed, or is not the release that was wished.
            BaseMismatch: a step needs other weights than those before it.
            DigestMismatch: a payload or the graph is not the signed one.
            WireVersionUnsupported: it needs a newer agent.
            TryLater: the metadata are expired.
        """
        signed = self.find([*steps, wish.graph])
        verified = []
        weights = base_weights
        for path in steps:
            if path not in signed:
                raise UntrustedUpdate(f"target {path} is not signed for by the image repository")
            trusted, custom = signed[path]
            target = UpdateTarget.from_custom(path, custom)
            if target.model != wish.model:
                raise UntrustedUpdate(f"target {path} is of model {target.model!r}, not {wish.model!r}")
            if target.base_weights not in {None, weights}:
                raise BaseMismatch(f"target {path} needs the weights {target.base_weights}, this device has {weights}")
            _check_versions(target)
            weights = target.weights
            verified.append(VerifiedUpdate(target, payloads / trusted.sha256.hex(), seal=_SEAL))
            _check_payload(verified[-1].payload, trusted)
        last = verified[-1].target
        if (last.weights, last.release) != (wish.weights, wish.release):
            raise UntrustedUpdate(
                f"the assignment says {wish.model}@{wish.release} with weights {wish.weights[:23]}…, "
                f"the signed target says @{last.release} with {last.weights[:23]}…"
            )
        self._check_graph(wish.graph, last.graph, signed)
        if last.local is not None:
            path = graph_path(last.model, last.local.graph)
            self._check_graph(path, last.local.graph, self.find([path]))
        return verified

    @staticmethod
    def _check_graph(
        path: str, digest: str, signed: Mapping[str, tuple[TrustedTarget, Mapping[str, object] | None]]
    ) -> None:
        if path not in signed:
            raise UntrustedUpdate(f"target {path} is not signed for by the image repository")
        sha256 = signed[path][0].sha256
        if sha256 != parse_digest(digest):
            raise DigestMismatch(subject=path, expected=digest, actual=sha256.hex())

    def _run(
        self, root: bytes, held: Mapping[str, bytes], source: MetadataSource | None, paths: Sequence[str]
    ) -> dict[str, TargetFile]:
        """Run the client workflow in the scratch folder."""
        shutil.rmtree(self._work, ignore_errors=True)
        if self._folder.is_dir():
            shutil.copytree(self._folder, self._work)
        else:
            self._work.mkdir(parents=True)
        (self._work / "root.json").unlink(missing_ok=True)
        try:
            updater = Updater(str(self._work), _UNUSED_URL, fetcher=_Fetcher(held, source), bootstrap=root)
            if not held and source is None:
                return {}
            updater.refresh()
            found = {path: updater.get_targetinfo(path) for path in paths}
        except ExpiredMetadataError as bad:
            raise TryLater(
                f"the signed metadata are expired ({bad}); check this device's clock and the server's publishing",
                code="trust.expired",
            ) from bad
        except DownloadError as bad:
            if isinstance(bad.__cause__, TryLater):
                raise bad.__cause__ from bad
            raise TryLater(f"signed metadata could not be fetched: {bad}", code="trust.incomplete") from bad
        except RepositoryError as bad:
            raise UntrustedUpdate(f"signed metadata are refused: {bad}") from bad
        return {path: target for path, target in found.items() if target is not None}

    def _keep(self) -> None:
        """Write durably what the client workflow accepted, root first."""
        roots = sorted(self._work.glob("root_history/*.root.json"), key=lambda path: int(path.name.split(".")[0]))
        accepted = {"root.json": roots[-1]}
        for role in (*_TOP_ROLES[1:], *(path.stem for path in sorted(self._work.glob("m.*.json")))):
            accepted[f"{role}.json"] = self._work / f"{role}.json"
        for name, path in accepted.items():
            if not path.exists():
                continue
            data, kept = path.read_bytes(), self._folder / name
            if not self._disk.exists(kept) or self._disk.read(kept) != data:
                write_file(self._disk, kept, data)


def _check_payload(payload: Path, trusted: TrustedTarget) -> None:
    try:
        actual = file_sha256(payload)
    except OSError as bad:
        raise SpratError(f"the payload of {trusted.path} is not here ({bad.strerror})", code="fetch.missing") from bad
    if actual != trusted.sha256:
        raise DigestMismatch(subject=trusted.path, expected=trusted.sha256.hex(), actual=actual.hex())


def _check_versions(target: UpdateTarget) -> None:
    if target.wire != WIRE_VERSION:
        raise WireVersionUnsupported(
            f"target {target.path} is of wire version {target.wire}; this agent reads {WIRE_VERSION}: update the agent"
        )
    if _version(target.min_agent) > _version(VERSION):
        raise WireVersionUnsupported(
            f"target {target.path} needs agent {target.min_agent}; this is {VERSION}: update the agent"
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
