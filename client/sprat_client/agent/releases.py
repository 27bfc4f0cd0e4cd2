"""Release folders and slots: what of the store belongs together, which release serves, which one waits.

    models/<name>/releases/<first 16 hex of the release id>/
        graph.onnx      hard link into the store
        t/<index>       hard link into the store; for bfloat16 a float32 copy, which is what the graph reads
        manifest.json   release, digests, tensor table, which tensors are local, of what it is a near copy
    models/<name>/slots.json            {active, previous}
A folder appears under its name whole or not at all. Swap and rollback replace `slots.json` and nothing else.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from sprat_client.agent.bfloat16 import are_exact, narrowed, widened
from sprat_client.agent.desired import Desired
from sprat_client.agent.durable import (
    Disk,
    building_folder,
    make_folder,
    publish_folder,
    remove_folder,
    write_file,
    write_json,
)
from sprat_client.agent.formats import FORMAT, check_format
from sprat_client.agent.store import StoreCorrupted, TensorStore, damaged, file_sha256, map_file
from sprat_shared.errors import InvalidInput
from sprat_shared.ids import digest_text, parse_digest
from sprat_shared.protocol.fields import Fields
from sprat_shared.trust.targets import LocalStatistics, Shares, graph_path, update_path
from sprat_shared.wire.tensors import LOCAL_SHA256, TensorSpec, TensorTable, weights_digest

MANIFEST: Final = "manifest.json"
GRAPH: Final = "graph.onnx"
_TENSORS: Final = "t"
_BFLOAT16: Final = "BF16"
_T = TypeVar("_T")
_SLOTS: Final = "slots.json"
_SLOTS_FORMAT: Final = 1
_MANIFEST_FORMAT: Final = 1


def tensors_as_json(table: TensorTable, sha256s: Sequence[bytes]) -> dict[str, Any]:
    """Return a tensor table with the digest of each tensor, as members of a JSON object."""
    return {
        "tensors": [
            [spec.name, spec.dtype, list(spec.shape), digest_text(sha256)]
            for spec, sha256 in zip(table.specs, sha256s, strict=True)
        ],
        "aliases": table.aliases,
    }


def tensors_of_json(fields: Fields) -> tuple[TensorTable, tuple[bytes, ...]]:
    """Read what `tensors_as_json` wrote.

    Raises:
        InvalidInput: a field is missing or wrong.
    """
    try:
        entries = [
            (TensorSpec(name, dtype, tuple(shape)), parse_digest(digest))
            for name, dtype, shape, digest in fields.list_of("tensors")
        ]
    except (TypeError, ValueError) as bad:
        raise InvalidInput(f"the tensor table cannot be read: {bad}") from bad
    entries.sort(key=lambda entry: entry[0].name.encode())
    table = TensorTable((spec for spec, _ in entries), fields.mapping("aliases"))
    return table, tuple(sha256 for _, sha256 in entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a release folder holds.

    Attributes:
        model: name of the model.
        release: number of the release when it was installed.
        release_id: digest of graph and weights.
        graph: digest of the graph.
        weights: weights digest.
        table: the tensor table.
        sha256s: digest of each tensor, by index; of a local one that of this device's own.
        local: which tensors this device computed; None where all were sent.
        shares: of which release it is a near copy that shares layers; None of a release by itself.
    """

    model: str
    release: int
    release_id: str
    graph: str
    weights: str
    table: TensorTable
    sha256s: tuple[bytes, ...]
    local: LocalStatistics | None = None
    shares: Shares | None = None

    @property
    def files(self) -> set[bytes]:
        """The digests of the store's files that the release needs, now or as a base."""
        graphs = [self.graph] if self.local is None else [self.graph, self.local.graph]
        return {*self.sha256s, *map(parse_digest, graphs)}

    @property
    def mapped_bytes(self) -> int:
        """How many bytes of tensors a loaded session maps; of bfloat16 ones the float32 copies."""
        return sum(spec.nbytes * (2 if spec.dtype == _BFLOAT16 else 1) for spec in self.table.specs)

    @property
    def local_names(self) -> list[str]:
        """The names of the tensors that this device computed."""
        return [] if self.local is None else [self.table.specs[index].name for index in self.local.tensors]

    def weights_of(self, sha256s: Sequence[bytes]) -> str:
        """Return the weights digest of tensors with these digests: local ones do not count."""
        local = () if self.local is None else self.local.tensors
        sent = [LOCAL_SHA256 if index in local else sha256 for index, sha256 in enumerate(sha256s)]
        return weights_digest(self.table, sent)

    def as_wish(self, release: int, assignment: int) -> Desired:
        """Return the wish for this release, by the number that it has now, as a fulfilled assignment would say it."""
        return Desired(
            model=self.model,
            release=release,
            weights=self.weights,
            assignment=assignment,
            graph=graph_path(self.model, self.graph),
            path=(),
            full=update_path(self.model, release, None),
        )

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            FORMAT: _MANIFEST_FORMAT,
            "model": self.model,
            "release": self.release,
            "release_id": self.release_id,
            "graph": self.graph,
            "weights": self.weights,
            **tensors_as_json(self.table, self.sha256s),
            "local": None if self.local is None else self.local.as_json(),
            "shares": None if self.shares is None else self.shares.as_json(),
        }

    @classmethod
    def of(cls, value: Any) -> "Manifest":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong.
            NewerFormat: a newer agent wrote it.
        """
        check_format(value, Path(MANIFEST), _MANIFEST_FORMAT)
        fields = Fields(value, "manifest")
        table, sha256s = tensors_of_json(fields)
        return cls(
            model=fields.model("model"),
            release=fields.integer("release"),
            release_id=fields.digest("release_id"),
            graph=fields.digest("graph"),
            weights=fields.digest("weights"),
            table=table,
            sha256s=sha256s,
            local=_said(LocalStatistics.of, fields, "local"),
            shares=_said(Shares.of, fields, "shares"),
        )


def _said(read: Callable[[Any], _T], fields: Fields, name: str) -> _T | None:
    """Return a part of the signed description that the manifest keeps; None where there is none."""
    if not fields.has(name):
        return None
    try:
        return read(fields.mapping(name))
    except (KeyError, TypeError, ValueError) as bad:
        raise InvalidInput(f"manifest: {name!r} cannot be read: {bad!r}") from bad


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One release that a device holds. `release` is the number under which the server last asked for it."""

    release: int
    release_id: str
    weights: str

    @classmethod
    def of(cls, value: Any) -> "Slot":
        """Read the JSON object."""
        fields = Fields(value, "slots")
        return cls(
            release=fields.integer("release"), release_id=fields.digest("release_id"), weights=fields.digest("weights")
        )

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {"release": self.release, "release_id": self.release_id, "weights": self.weights}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The pointer: the release that serves, and the one to go back to."""

    active: Slot | None = None
    previous: Slot | None = None


class Shelf:
    """The release folders and slots of one model.

    Args:
        model: its name.
        folder: `models/<name>` in the agent folder.
        store: the tensor store.
        disk: where it is written.
    """

    def __init__(self, model: str, folder: Path, store: TensorStore, disk: Disk) -> None:
        self._model, self.folder, self._store, self._disk = model, folder, store, disk

    @property
    def _releases(self) -> Path:
        return self.folder / "releases"

    def folder_of(self, release_id: str) -> Path:
        """Return the folder of a release."""
        return self._releases / parse_digest(release_id).hex()[:16]

    def slots(self) -> Slots:
        """Return the slots; both empty before the first release.

        Raises:
            StoreCorrupted: the file cannot be read.
            NewerFormat: a newer agent wrote it.
        """
        path = self.folder / _SLOTS
        if not self._disk.exists(path):
            return Slots()
        try:
            value = json.loads(self._disk.read(path))
            check_format(value, path, _SLOTS_FORMAT)
            fields = Fields(value, "slots")
            return Slots(
                active=Slot.of(fields.mapping("active")) if fields.has("active") else None,
                previous=Slot.of(fields.mapping("previous")) if fields.has("previous") else None,
            )
        except (ValueError, InvalidInput) as bad:
            raise StoreCorrupted(f"{path}: {bad}") from bad

    def slots_or_none(self) -> Slots | None:
        """Return the slots; None where they cannot be read."""
        try:
            return self.slots()
        except (StoreCorrupted, OSError):
            return None

    def point(self, slots: Slots) -> None:
        """Replace the slots, durably."""
        with contextlib.suppress(StoreCorrupted):  # it is replaced, whatever it was
            if slots == self.slots():
                return
        make_folder(self._disk, self.folder)
        content = {
            name: None if slot is None else slot.as_json()
            for name, slot in (("active", slots.active), ("previous", slots.previous))
        }
        write_json(self._disk, self.folder / _SLOTS, {FORMAT: _SLOTS_FORMAT, **content})

    def manifest(self, release_id: str) -> Manifest:
        """Return what a release folder holds.

        Raises:
            StoreCorrupted: the folder or its manifest is not there or cannot be read.
        """
        path = self.folder_of(release_id) / MANIFEST
        try:
            manifest = Manifest.of(json.loads(self._disk.read(path)))
        except OSError as bad:
            raise damaged(bad, str(path)) from bad
        except (ValueError, TypeError, InvalidInput) as bad:
            raise StoreCorrupted(f"{path}: {bad}") from bad
        if manifest.release_id != release_id:
            raise StoreCorrupted(f"{path}: describes release {manifest.release_id[:23]}…")
        return manifest

    def holds(self, release_id: str) -> bool:
        """Return whether the release's folder is there."""
        return self._disk.exists(self.folder_of(release_id))

    def publish(self, manifest: Manifest) -> Path:
        """Make the release's folder from files that are in the store; return it. One that is there is replaced."""
        final = self.folder_of(manifest.release_id)
        building = building_folder(final)
        make_folder(self._disk, self._releases)
        remove_folder(self._disk, building, (_TENSORS,))
        remove_folder(self._disk, final, (_TENSORS,))
        self._disk.make_folder(building)
        self._disk.make_folder(building / _TENSORS)
        self._disk.link(self._store.path(parse_digest(manifest.graph)), building / GRAPH)
        for index, (spec, sha256) in enumerate(zip(manifest.table.specs, manifest.sha256s, strict=True)):
            link = building / _TENSORS / str(index)
            if spec.dtype == _BFLOAT16:
                self._disk.write(link, widened(map_file(self._store.path(sha256), spec)), 0o444)
                self._disk.sync(link)
            else:
                self._disk.link(self._store.path(sha256), link)
        write_file(self._disk, building / MANIFEST, json.dumps(manifest.as_json(), indent=1).encode(), mode=0o444)
        publish_folder(self._disk, building, final, (_TENSORS,))
        return final

    def digest_of_files(self, manifest: Manifest) -> str:
        """Recompute the weights digest from the very files that the runtime has mapped.

        Raises:
            StoreCorrupted: a file is gone or has another length.
        """
        folder = self.folder_of(manifest.release_id) / _TENSORS
        sha256s = [_mapped_sha256(folder / str(index), spec) for index, spec in enumerate(manifest.table.specs)]
        return manifest.weights_of(sha256s)

    def check(self, manifest: Manifest) -> None:
        """Check every file of a release before a session reads it.

        Raises:
            StoreCorrupted: the graph or a tensor has other bytes than the manifest says.
        """
        folder = self.folder_of(manifest.release_id)
        try:
            graph = digest_text(file_sha256(folder / GRAPH))
        except OSError as bad:
            raise damaged(bad, str(folder / GRAPH)) from bad
        if graph != manifest.graph:
            raise StoreCorrupted(f"{folder / GRAPH}: has the digest {graph[:23]}…; the disk is damaged")
        for index, (spec, sha256) in enumerate(zip(manifest.table.specs, manifest.sha256s, strict=True)):
            path = folder / _TENSORS / str(index)
            if (actual := _mapped_sha256(path, spec)) != sha256:
                raise StoreCorrupted(
                    f"tensor {spec.name!r} of {self._model}@{manifest.release}: {path} has the digest "
                    f"{actual.hex()[:16]}… instead of {sha256.hex()[:16]}…; the disk is damaged"
                )

    def discard_damaged(self, manifest: Manifest) -> None:
        """Remove a damaged release: its folder, and those of its store files that no longer have their bytes."""
        for sha256 in sorted(manifest.files):
            try:
                self._store.check(sha256, "")
            except StoreCorrupted:
                self._store.discard(sha256)
        self.discard(manifest.release_id)

    def discard(self, release_id: str) -> None:
        """Remove a release's folder."""
        remove_folder(self._disk, self.folder_of(release_id), (_TENSORS,))

    def found(self) -> list[Slot]:
        """Return the releases whose folders can be read, the newest number first: what is known without slots."""
        found = []
        for name in self._disk.names(self._releases) if self._disk.exists(self._releases) else []:
            try:
                manifest = Manifest.of(json.loads(self._disk.read(self._releases / name / MANIFEST)))
            except (OSError, ValueError, TypeError, InvalidInput):
                continue
            if self.folder_of(manifest.release_id).name == name:
                found.append(Slot(release=manifest.release, release_id=manifest.release_id, weights=manifest.weights))
        return sorted(found, key=lambda slot: slot.release, reverse=True)

    def collect(self, keep: Iterable[str]) -> Iterator[Manifest]:
        """Remove every release folder but those of the release ids in `keep`, whose manifests are yielded."""
        wanted = {self.folder_of(release_id).name: release_id for release_id in keep}
        if self._disk.exists(self._releases):
            for name in self._disk.names(self._releases):
                if name not in wanted:
                    remove_folder(self._disk, self._releases / name, (_TENSORS,))
        for release_id in sorted(wanted.values()):
            if self.holds(release_id):
                yield self.manifest(release_id)


def _mapped_sha256(path: Path, spec: TensorSpec) -> bytes:
    """Return the digest of a tensor file as it is mapped; a float32 copy is narrowed back to bfloat16 first."""
    if spec.dtype != _BFLOAT16:
        try:
            return file_sha256(path)
        except OSError as bad:
            raise damaged(bad, f"tensor {spec.name!r}: {path}") from bad
    wide = map_file(path, TensorSpec(spec.name, "F32", spec.shape))
    if not are_exact(wide):
        return bytes(32)  # no bfloat16 has this value: the copy was damaged
    return hashlib.sha256(narrowed(wide)).digest()
