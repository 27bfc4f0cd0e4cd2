"""What an update says of one tensor, a module for each kind of record (docs/wire-format.md, section 4).

Every kind has `KIND`, its number in the file; `CLOSES`, whether it is its tensor's last; `check`, whether it fits a
tensor; `write` and `read`, the integers and frames that follow its kind in the file.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from sprat_shared.wire.records.coded import Coded
from sprat_shared.wire.records.dense import Dense
from sprat_shared.wire.records.held import Held
from sprat_shared.wire.records.lossless import Lossless
from sprat_shared.wire.records.low_rank import LowRank
from sprat_shared.wire.records.rows import Rows
from sprat_shared.wire.records.subspace import Subspace
from sprat_shared.wire.records.three_factors import Drawn, Identity, Side, ThreeFactors

__all__ = [
    "KINDS",
    "Coded",
    "Dense",
    "Drawn",
    "Edit",
    "Exact",
    "Held",
    "Identity",
    "Lossless",
    "LowRank",
    "Record",
    "Rows",
    "Side",
    "Subspace",
    "Sum",
    "ThreeFactors",
]

Sum = LowRank | Dense | Rows | ThreeFactors | Subspace  # exact integers times a step, added to the tensor
Exact = Lossless | Coded  # the tensor's last: every bit of it
Edit = Sum | Exact
Record = Held | Edit  # what is held is its tensor's first
_ALL = (LowRank, Dense, Lossless, Rows, ThreeFactors, Subspace, Coded, Held)
KINDS: Final[Mapping[int, type[Record]]] = MappingProxyType({kind.KIND: kind for kind in _ALL})
