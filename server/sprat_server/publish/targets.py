"""Files that are about to be signed, and the TUF targets they become."""

from dataclasses import dataclass

from tuf.api.metadata import TargetFile

from sprat_shared.ids import parse_digest
from sprat_shared.trust.targets import UpdateTarget, graph_path


@dataclass(frozen=True, slots=True)
class SignedFile:
    """A stored blob that a target stands for.

    Attributes:
        blob: its digest.
        length: its bytes.
    """

    blob: str
    length: int


def update_file_target(target: UpdateTarget, file: SignedFile) -> TargetFile:
    """Return the TUF target of an update file."""
    return TargetFile(file.length, _hashes(file), target.path, {"custom": target.to_custom()})


def graph_file_target(model: str, file: SignedFile) -> TargetFile:
    """Return the TUF target of a graph; its path holds the digest of its bytes."""
    return TargetFile(file.length, _hashes(file), graph_path(model, file.blob))


def _hashes(file: SignedFile) -> dict[str, str]:
    return {"sha256": parse_digest(file.blob).hex()}
