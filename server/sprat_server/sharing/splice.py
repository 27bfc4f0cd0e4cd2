"""Splices: the first part of a donor, an affine map, and the rest of a recipient, as one ONNX graph.

    input -> donor's nodes up to its cut -> map -> recipient's nodes after its cut -> recipient's outputs

The map is folded into what follows it where that is exact: into a norm (which then goes away), into a matrix product
or a 1 x 1 convolution without padding where the product of both takes fewer bytes. A map before a padded convolution
stays, because its bias does not reach the padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from sprat_server.sharing.cuts import Cut, counts_samples
from sprat_server.sharing.derived import (
    DONOR_PREFIX,
    MAP_PREFIX,
    Derived,
    From,
    derive,
    initialisers_of,
    new_part,
    part_of,
    placeholder,
)
from sprat_server.sharing.maps import AffineMap, Form, resampling
from sprat_server.sharing.releases import NotShareable, Release, attribute, needed_for, reads
from sprat_shared.wire.tensors import Array

_WEIGHT: Final = f"{MAP_PREFIX}weight"
_BIAS: Final = f"{MAP_PREFIX}bias"
_HEIGHT: Final = f"{MAP_PREFIX}height"
_WIDTH: Final = f"{MAP_PREFIX}width"


@dataclass(frozen=True, slots=True, eq=False)
class Splice:
    """Where a recipient goes on from a donor's activations, and the map between them.

    Attributes:
        donor: whose layers come first.
        donor_cut: after which its activations are taken.
        affine: from these to the recipient's.
        recipient: whose layers follow.
        recipient_cut: whose tensor the map gives.
    """

    donor: Release
    donor_cut: Cut
    affine: AffineMap
    recipient: Release
    recipient_cut: Cut

    def derived(self) -> Derived:
        """Return it as a derived release (`compose`)."""
        return compose(self.donor, self.donor_cut, self.affine, self.recipient, self.recipient_cut)


def rest_of(release: Release, cut: Cut) -> onnx.ModelProto:
    """Return what follows a cut as a model of its own, its weights inside: the cut's tensor is its input."""
    whole = release.filled()
    nodes = [_copy(node) for node in needed_for(whole.graph.node, release.outputs, [cut.tensor])]
    for node in nodes:
        if counts_samples(node, release.input):
            node.input[0] = cut.tensor
    used = {name for node in nodes for name in reads(node)}
    rest = _model(whole, nodes, [one for one in whole.graph.initializer if one.name in used])
    rest.graph.input.append(onnx.helper.make_tensor_value_info(cut.tensor, TensorProto.FLOAT, None))
    rest.graph.output.extend(whole.graph.output)
    return rest


def compose(donor: Release, donor_cut: Cut, affine: AffineMap, recipient: Release, recipient_cut: Cut) -> Derived:
    """Return the splice as a derived release, the map folded where that is exact and saves bytes.

    Raises:
        NotShareable: the two graphs are in other versions of ONNX's operators, or one brings functions of its own.
    """
    _check_alike(donor, recipient)

    def renamed(name: str) -> str:
        return name if name == donor.input or not name else f"{DONOR_PREFIX}{name}"

    prefix = [_copy(node) for node in needed_for(donor.model.graph.node, [donor_cut.tensor], ())]
    for node in prefix:
        node.name = renamed(node.name)
        _rename(node, {donor.input: recipient.input}, renamed)
    rest = [_copy(node) for node in needed_for(recipient.model.graph.node, recipient.outputs, [recipient_cut.tensor])]
    fold = _Fold(affine, recipient, recipient_cut.tensor, rest)
    nodes = [*prefix, *_map_nodes(fold.affine, renamed(donor_cut.tensor), fold.output), *fold.rest]
    used = {name for node in nodes for name in reads(node)}

    donors = initialisers_of(donor, renamed)
    initialisers = {**recipient_initialisers(recipient), **donors, **_constants(fold.affine)}
    parts = {
        **{name: part_of(recipient, name, From.RECIPIENT) for name in recipient.bound if name in used},
        **{renamed(name): part_of(donor, name, From.DONOR) for name in donor.bound if renamed(name) in used},
    }
    for name, array in _tensors(fold.affine).items():
        initialisers[name] = placeholder(name, array)
        parts[name] = new_part(name, array)
    kept = [initialiser for name, initialiser in initialisers.items() if name in used]
    model = _model(recipient.model, nodes, kept)
    model.graph.input.append(next(port for port in recipient.model.graph.input if port.name == recipient.input))
    model.graph.output.extend(recipient.model.graph.output)
    return derive(model, parts)


def recipient_initialisers(recipient: Release) -> dict[str, Any]:
    """Return a model's own initialisers by name."""
    return dict(initialisers_of(recipient, lambda name: name))


class _Fold:
    """A map, and the rest of the recipient after as much of it as can be was taken into the map.

    Attributes:
        affine: the map that is left.
        rest: the nodes that are left.
        output: the tensor that the map gives.
    """

    def __init__(self, affine: AffineMap, recipient: Release, tensor: str, rest: list[Any]) -> None:
        self.affine, self.rest, self.output, self._recipient = affine, rest, tensor, recipient
        while self._step():
            pass

    def _step(self) -> bool:
        readers = [node for node in self.rest if self.output in reads(node)]
        if len(readers) != 1 or list(readers[0].input).count(self.output) != 1:
            return False
        (node,) = readers
        folded = {"BatchNormalization": self._norm, "Gemm": self._product, "Conv": self._convolution}
        then = folded[node.op_type](node) if node.op_type in folded and not node.domain else None
        if then is None or node.input[0] != self.output:
            return False
        self.affine = replace(self.affine, weight=then[0].astype(np.float32), bias=then[1].astype(np.float32))
        self.rest = [other for other in self.rest if other is not node]
        self.output = node.output[0]
        wanted = needed_for(self.rest, self._recipient.outputs, [self.output])
        self.rest = wanted
        return True

    def _own(self, name: str) -> Array | None:
        return self._recipient.read(name).astype(np.float64) if name in self._recipient.bound else None

    def _norm(self, node: Any) -> tuple[Array, Array] | None:
        scale, shift, mean, variance = (self._own(name) for name in node.input[1:5])
        if scale is None or shift is None or mean is None or variance is None or self.affine.form is Form.TOKENS:
            return None
        gain = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return gain[:, None] * self.affine.weight, gain * (self.affine.bias - mean) + shift

    def _product(self, node: Any) -> tuple[Array, Array] | None:
        plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0 and not attribute(
            node, "transA", 0
        )
        matrix, bias = self._own(node.input[1]), self._bias(node)
        if matrix is None or bias is None or not plain or self.affine.form not in {Form.DENSE, Form.POOLED}:
            return None
        return self._through(matrix if attribute(node, "transB", 0) else matrix.T, bias)

    def _convolution(self, node: Any) -> tuple[Array, Array] | None:
        kernel, bias = self._own(node.input[1]), self._bias(node)
        if kernel is None or bias is None or self.affine.form is not Form.CHANNELS or kernel.shape[2:] != (1, 1):
            return None
        plain = (
            attribute(node, "group", 1) == 1
            and not any(attribute(node, "pads", ()))
            and set(attribute(node, "strides", (1, 1))) == {1}
            and attribute(node, "auto_pad", b"NOTSET") in {b"NOTSET", b"VALID"}
        )
        return self._through(kernel[:, :, 0, 0], bias) if plain else None

    def _bias(self, node: Any) -> Array | None:
        """Return a bias of the release, 0 where there is none, None where it is computed."""
        return np.zeros(()) if len(node.input) < 3 or not node.input[2] else self._own(node.input[2])  # noqa: PLR2004

    def _through(self, matrix: Array, bias: Array) -> tuple[Array, Array] | None:
        """Return the product of both if it is smaller than the two."""
        if matrix.shape[0] * self.affine.weight.shape[1] > self.affine.weight.size + matrix.size:
            return None
        return matrix @ self.affine.weight, matrix @ self.affine.bias + bias


def _map_nodes(affine: AffineMap, tensor: str, output: str) -> list[Any]:
    """Return the nodes that compute a map."""
    make, nodes = onnx.helper.make_node, []
    for axis in _constants(affine):
        inputs = [axis, tensor] if axis == _HEIGHT else [tensor, axis]
        tensor = f"{axis}-resampled"
        nodes.append(make("MatMul", inputs, [tensor], name=f"{axis}-resampling"))
    if affine.form is Form.POOLED:
        nodes.append(make("Flatten", [tensor], [f"{MAP_PREFIX}flat"], name=f"{MAP_PREFIX}flatten"))
        tensor = f"{MAP_PREFIX}flat"
    if affine.form is Form.TOKENS:
        product = f"{MAP_PREFIX}product"
        nodes.append(make("MatMul", [tensor, _WEIGHT], [product], name=f"{MAP_PREFIX}matmul"))
        nodes.append(make("Add", [product, _BIAS], [output], name=f"{MAP_PREFIX}add"))
    elif affine.form is Form.CHANNELS:
        nodes.append(make("Conv", [tensor, _WEIGHT, _BIAS], [output], name=f"{MAP_PREFIX}conv", kernel_shape=[1, 1]))
    else:
        nodes.append(make("Gemm", [tensor, _WEIGHT, _BIAS], [output], name=f"{MAP_PREFIX}gemm", transB=1))
    return nodes


def _tensors(affine: AffineMap) -> Mapping[str, Array]:
    """Return a map's two tensors as its nodes read them."""
    weight: Array = affine.weight
    if affine.form is Form.CHANNELS:
        weight = weight[:, :, None, None]
    elif affine.form is Form.TOKENS:
        weight = np.ascontiguousarray(weight.T)
    return {_WEIGHT: weight, _BIAS: affine.bias}


def _constants(affine: AffineMap) -> Mapping[str, Any]:
    """Return the matrices that bring feature maps to another height and width; none where they are equal."""
    if affine.form not in {Form.CHANNELS, Form.POOLED}:
        return {}
    (_, high, wide), found = affine.donor, {}
    to_high, to_wide = affine.recipient[1:] if affine.form is Form.CHANNELS else (affine.grid, affine.grid)
    if high != to_high:
        found[_HEIGHT] = resampling(high, to_high)
    if wide != to_wide:
        found[_WIDTH] = np.ascontiguousarray(resampling(wide, to_wide).T)
    return {name: numpy_helper.from_array(matrix, name) for name, matrix in found.items()}


def _check_alike(donor: Release, recipient: Release) -> None:
    versions = [{entry.domain: entry.version for entry in one.model.opset_import} for one in (donor, recipient)]
    if versions[0].get("") != versions[1].get(""):
        raise NotShareable(f"{donor.name} and {recipient.name} are in versions {versions} of ONNX; export both anew")
    if donor.model.functions or recipient.model.functions:
        raise NotShareable(f"{donor.name} or {recipient.name} has functions of its own; export it without")


def _model(like: onnx.ModelProto, nodes: Sequence[Any], initialisers: Sequence[Any]) -> onnx.ModelProto:
    """Return a model of nodes and initialisers in the versions of another; ports are still to come."""
    graph = onnx.GraphProto(name="spliced")
    graph.node.extend(nodes)
    graph.initializer.extend(initialisers)
    model = onnx.ModelProto(ir_version=like.ir_version, graph=graph)
    model.opset_import.extend(like.opset_import)
    return model


def _copy(node: Any) -> Any:
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    return copied


def _rename(node: Any, fixed: Mapping[str, str], renamed: Any) -> None:
    """Rename what a node reads and gives, in the graphs within it too."""
    for names in (node.input, node.output):
        for position, name in enumerate(names):
            names[position] = fixed.get(name) or renamed(name)
    for one in node.attribute:
        if one.HasField("g"):
            for inner in one.g.node:
                _rename(inner, fixed, renamed)
