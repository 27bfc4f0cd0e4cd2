"""The update that gives a release which uses another model's layers: what a device holds already is only named.

A tensor that the device has, of the donor or of the release that it starts from under another name, takes the eight
bytes of a *held* record (docs/wire-format.md, section 4, kind 7); what is new is said exactly. Nothing is assumed: the
file is applied as a device applies it, with the donor's tensors as what it holds.
"""

from collections.abc import Sequence
from typing import Final

from sprat_server.compress.direct import Nowhere
from sprat_shared.apply import apply_update, check_arithmetic
from sprat_shared.encode.exact import exact_record
from sprat_shared.wire.patch import PatchedTensors
from sprat_shared.wire.records import Held, Record
from sprat_shared.wire.records.held import PREFIX_BYTES
from sprat_shared.wire.tensors import Array, TensorSource, TensorSpec, digest_of
from sprat_shared.wire.update import encode_update

_NAMED: Final = 16
"""Bytes that a held record takes in the file, at most: what is no longer is said as it is."""


def held_update(base: TensorSource, target: TensorSource, donor: TensorSource) -> bytes:
    """Return an update that gives exactly `target` from `base` on a device that holds `donor` too.

    Args:
        base: the exact weights that devices have.
        target: the exact weights that they shall have.
        donor: the exact weights of another model that they have.

    Raises:
        LimitExceeded: the target has many times the base's bytes.
        UnsafeArithmetic: this process does not compute the format's bits.
        DigestMismatch, BaseMismatch: the file gives other weights, which no file made here does.
    """
    check_arithmetic()
    old, held = PatchedTensors(base, target.table), HeldIn(donor, base)
    records: list[Record] = []
    for index, spec in enumerate(target.table):
        sha256, kept = target.sha256(index), old.kept(index)
        if not spec.size or (kept is not None and base.sha256(kept) == sha256):
            continue
        prefix = sha256[:PREFIX_BYTES]
        if spec.nbytes > _NAMED and held.find(prefix, spec) is not None:
            records.append(Held(index, prefix))
        else:
            records.append(exact_record(index, spec, old.read(index), target.read(index)))
    data = encode_update(target.table, records, base_digest=digest_of(base), base_table=base.table)
    apply_update(memoryview(data), base, Nowhere(), expected=digest_of(target), held=held)
    return data


class HeldIn:
    """The tensors of some releases as what a device holds (`apply.HeldTensors`).

    Args:
        releases: their weights.
    """

    def __init__(self, *releases: TensorSource) -> None:
        self._found = {
            (release.sha256(index), spec.nbytes): (release, index)
            for release in releases
            for index, spec in enumerate(release.table)
        }

    def find(self, prefix: bytes, spec: TensorSpec) -> Array | None:
        """Return the tensor of this length whose SHA-256 begins so; None where there is none, or more than one."""
        there: Sequence[tuple[TensorSource, int]] = [
            place
            for (sha256, nbytes), place in self._found.items()
            if nbytes == spec.nbytes and sha256.startswith(prefix)
        ]
        if len(there) != 1:
            return None
        release, index = there[0]
        return release.read(index).view(spec.storage).reshape(spec.shape)
