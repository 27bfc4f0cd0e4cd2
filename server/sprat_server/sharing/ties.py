"""Ties between siblings of one base: the donor's tensor instead of one's own, with or without a residual.

A residual is a low-rank integer correction of the update format, W_B = W_A + decode(correction), so a device rebuilds
it to the same bits as an update. Held as two thin integer products it saves memory, and the graph adds what they give
to the donor's layer; rebuilt it is one more whole tensor, which saves bytes on the way only. Vectors (biases, norms)
stay the recipient's own: they are small, and what siblings differ in most.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from sprat_server.sharing.cuts import Cut
from sprat_server.sharing.derived import (
    DONOR_PREFIX,
    Derived,
    From,
    Origin,
    Part,
    derive,
    part_of,
    placeholder,
)
from sprat_server.sharing.releases import Release, attribute, reads
from sprat_shared.apply import rebuild_tensor
from sprat_shared.apply.arithmetic import widen
from sprat_shared.encode.candidates import Change, squares, ways_to_say
from sprat_shared.wire.records import LowRank
from sprat_shared.wire.scales import STEPS
from sprat_shared.wire.tensors import REBUILDABLE, Array

_THIN: Final = {"Conv", "Gemm", "MatMul"}
_MATRIX: Final = 2
_NAMES: Final = ("u", "v", "scale", "inner", "outer", "scaled", "plain", "sum")


@dataclass(frozen=True, slots=True, eq=False)
class Tie:
    """Which of a recipient's tensors are the donor's, and what corrects them.

    Attributes:
        donor: whose tensors are used.
        recipient: whose are given up.
        tied: initialisers, of the same name in both.
        residuals: initialiser -> what is added to the donor's tensor; none: the donor's is used as it is.
    """

    donor: Release
    recipient: Release
    tied: frozenset[str]
    residuals: Mapping[str, LowRank]

    @property
    def thin_bytes(self) -> int:
        """Return the bytes of the corrections as two integer factors each."""
        return sum(map(_factor_bytes, self.residuals.values()))

    @property
    def saved_bytes(self) -> int:
        """Return the bytes of the recipient's tensors that go, less those of the corrections, held thin."""
        return self.recipient.bytes_of(self.tied) - self.thin_bytes

    def replaced(self) -> dict[str, Array]:
        """Return the recipient's tied tensors as they become, by initialiser, rebuilt as a device rebuilds updates."""
        found = {}
        for name in self.tied:
            record, spec = self.residuals.get(name), self.donor.spec(name)
            array = self.donor.tensors.read(self.donor.bound[name])
            rebuilt = array if record is None else rebuild_tensor(array, spec, [record])
            found[name] = widen(rebuilt, spec.dtype)
        return found

    def derived(self) -> Derived:
        """Return the recipient as a derived release: the donor's tensors, corrections as thin products beside them."""
        model = onnx.ModelProto()
        model.CopyFrom(self.recipient.model)
        parts = {name: part_of(self.recipient, name, From.RECIPIENT) for name in self.recipient.bound}
        renamed = {name: f"{DONOR_PREFIX}{name}" for name in self.tied}
        for initialiser in model.graph.initializer:
            if initialiser.name in self.tied:
                parts.pop(initialiser.name)
                parts[renamed[initialiser.name]] = part_of(self.donor, initialiser.name, From.DONOR)
                initialiser.name = renamed[initialiser.name]
        nodes: list[Any] = []
        for node in model.graph.node:
            thin = next((name for name in node.input if name in self.residuals and node.op_type in _THIN), None)
            for position, name in enumerate(node.input):
                node.input[position] = renamed.get(name, name)
            nodes += [node] if thin is None else self._thin(model, parts, node, thin)
        kept = [_copied(node) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(kept)
        return derive(model, parts)

    def _thin(self, model: onnx.ModelProto, parts: dict[str, Part], node: Any, name: str) -> list[Any]:
        """Return a layer, and beside it the two thin ones of its correction, whose outputs are added."""
        record, shape, output = self.residuals[name], self.recipient.spec(name).shape, node.output[0]
        u, v = np.asarray(record.u), np.asarray(record.v)
        if node.op_type == "Conv":
            u, v = u.reshape(*u.shape, *(1 for _ in shape[2:])), v.reshape(len(v), *shape[1:])
        elif not attribute(node, "transB", 0):
            u, v = v, u  # x @ (U V) = (x @ U) @ V: U comes first
        names = {
            part: f"residual/{name}/{part}" for part in ("u", "v", "scale", "inner", "outer", "scaled", "plain", "sum")
        }
        for part, array in (("u", u), ("v", v)):
            integers = np.ascontiguousarray(array, np.int8)
            parts[names[part]] = Part("I8", integers, Origin(From.NEW, names[part]))
            model.graph.initializer.append(placeholder(names[part], integers))
        step = np.asarray(STEPS[record.scale], np.float32)
        model.graph.initializer.append(numpy_helper.from_array(step, names["scale"]))
        make = onnx.helper.make_node
        wide = {part: f"{names[part]}:f" for part in ("u", "v")}
        casts = [make("Cast", [names[p]], [wide[p]], name=wide[p], to=onnx.TensorProto.FLOAT) for p in ("u", "v")]
        first, second = _copied(node), _copied(node)
        del first.input[1:], second.input[1:]
        first.name, second.name = names["inner"], names["outer"]
        first.input.append(wide["v"])
        second.input.append(wide["u"])
        first.output[0], second.output[0], second.input[0] = names["inner"], names["outer"], names["inner"]
        if node.op_type == "Conv":
            rank_one = [1] * len(shape[2:])
            del second.attribute[:]
            second.attribute.append(onnx.helper.make_attribute("kernel_shape", rank_one))
        node.output[0] = names["plain"]
        return [
            node,
            *casts,
            first,
            second,
            make("Mul", [names["outer"], names["scale"]], [names["scaled"]], name=names["scaled"]),
            make("Add", [names["plain"], names["scaled"]], [output], name=names["sum"]),
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """One correction of a tensor: its bytes in memory, the squared error that it leaves, and its factors."""

    nbytes: int
    missed: float
    record: LowRank


class Siblings:
    """Two models of one base, and the ways to say each tensor of one as a correction of the other's.

    Args:
        donor: whose tensors are used.
        recipient: whose are given up.
    """

    def __init__(self, donor: Release, recipient: Release) -> None:
        self._donor, self._recipient = donor, recipient
        self._low_ranks: dict[str, list[_Way]] = {}
        self.alike = frozenset(
            name
            for name in recipient.bound
            if name in donor.bound and _kind(donor, name) == _kind(recipient, name) and _is_matrix(recipient, name)
        )
        self._thin = self._layers()
        self._sizes = {name: squares(self._change(name).delta()) for name in self.alike}

    def tie(self, cut: Cut, *, miss: float = 1.0) -> Tie:
        """Return the tie of all matrices before a cut.

        Args:
            cut: of the recipient.
            miss: how much of the norm of each difference may be left; 1: no correction at all.
        """
        tied, residuals = set(cut.before & self.alike), {}
        for name in sorted(tied) if miss < 1 else ():
            if not self._sizes[name]:
                continue  # nothing differs
            found = self._correction(name, miss)
            if found is None:
                tied.discard(name)
            else:
                residuals[name] = found
        return Tie(self._donor, self._recipient, frozenset(tied), residuals)

    def _correction(self, name: str, miss: float) -> LowRank | None:
        """Return the correction of fewest bytes that leaves so much of the norm, None where there is none worth it."""
        if name not in self._thin:
            return None
        allowed = miss * miss * self._sizes[name]
        best = min((way for way in self._ways(name) if way.missed <= allowed), key=lambda way: way.nbytes, default=None)
        return best.record if best and best.nbytes < self._recipient.spec(name).nbytes else None

    def _ways(self, name: str) -> list["_Way"]:
        """Return the low ranks that say a tensor's difference."""
        if name not in self._low_ranks:
            options = ways_to_say(self._change(name))
            found = []
            for way in options.ways:
                records = way.records() if way.squared_error < self._sizes[name] else ()
                if len(records) == 1 and isinstance(record := records[0], LowRank):
                    found.append(_Way(_factor_bytes(record), way.squared_error, record))
            self._low_ranks[name] = found
        return self._low_ranks[name]

    def _change(self, name: str) -> Change:
        old, new = (one.tensors.read(one.bound[name]) for one in (self._donor, self._recipient))
        return Change(self._donor.bound[name], self._donor.spec(name), old, new)

    def _layers(self) -> frozenset[str]:
        """Return the tensors whose one layer can have a thin one beside it."""
        nodes = self._recipient.model.graph.node
        return frozenset(
            name for name in self.alike if _can_be_thin([node for node in nodes if name in reads(node)], name)
        )


def _can_be_thin(readers: list[Any], name: str) -> bool:
    readers = [node for node in readers if node.op_type != "Shape"]
    return (
        len(readers) == 1
        and readers[0].op_type in _THIN
        and not readers[0].domain
        and readers[0].input[1] == name
        and attribute(readers[0], "group", 1) == 1
        and attribute(readers[0], "alpha", 1.0) == 1.0
        and not attribute(readers[0], "transA", 0)
    )


def _kind(release: Release, name: str) -> tuple[str, tuple[int, ...]]:
    spec = release.spec(name)
    return spec.dtype, spec.shape


def _is_matrix(release: Release, name: str) -> bool:
    spec = release.spec(name)
    return len(spec.shape) >= _MATRIX and spec.dtype in REBUILDABLE


def _factor_bytes(record: LowRank) -> int:
    return int(np.asarray(record.u).nbytes + np.asarray(record.v).nbytes)


def _copied(node: Any) -> Any:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied
