"""Ties between siblings, with and without a residual."""

import numpy as np
import onnx
import pytest
from small_graphs import images, plain, tokens

from sprat_server.sharing.activations import Runner
from sprat_server.sharing.cuts import Cut, find_cuts
from sprat_server.sharing.derived import From
from sprat_server.sharing.releases import Release
from sprat_server.sharing.ties import Siblings
from sprat_shared.apply import rebuild_tensor
from sprat_shared.wire.tensors import ArrayTensors


def sibling_of(base: Release, *, size: float = 0.1, rank: int = 1, seed: int = 3) -> Release:
    """A model whose matrices differ from the base's by a low rank, its vectors by noise."""
    draw, arrays = np.random.default_rng(seed), {}
    for index, spec in enumerate(base.tensors.table):
        array, matrix = base.tensors.read(index), spec.matrix
        if matrix is None:
            change = 0.05 * draw.random(spec.shape)
        else:
            product = draw.normal(size=(matrix[0], rank)) @ draw.normal(size=(rank, matrix[1]))
            change = size * product.reshape(spec.shape)
        arrays[spec.name] = ("F32", (array + change).astype(np.float32))
    return Release("sibling", base.model.SerializeToString(), ArrayTensors(arrays))


def last_cut(release: Release) -> Cut:
    return find_cuts(release)[-1]


def test_a_plain_tie_takes_the_matrices_and_leaves_the_vectors() -> None:
    base = plain(width=16)
    sibling = sibling_of(base)
    tie = Siblings(base, sibling).tie(last_cut(sibling))
    assert tie.tied == {"c1.w", "c2.w"}
    assert tie.saved_bytes == base.bytes_of(["c1.w", "c2.w"])
    derived = tie.derived()
    donated = {name for name, origin in derived.origins.items() if origin.side is From.DONOR}
    assert donated == {"donor/c1.w", "donor/c2.w"}
    assert derived.own_bytes == sibling.nbytes - tie.saved_bytes
    tied = Runner(sibling.filled(tie.replaced())).answers(images(8))
    composed = Runner(Release("tied", derived.graph, derived.tensors).filled()).answers(images(8))
    np.testing.assert_allclose(composed, tied, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: plain(width=16), lambda: tokens(width=16)])
def test_a_residual_comes_nearer_and_thin_products_compute_it(make: "object") -> None:
    base = make()  # type: ignore[operator]
    sibling = sibling_of(base, rank=2)
    siblings = Siblings(base, sibling)
    inputs = images(8) if "c1.w" in base.bound else np.random.default_rng(1).normal(size=(8, 6, 5)).astype(np.float32)
    original = Runner(sibling.filled()).answers(inputs)
    off = []
    for miss in (1.0, 0.05):
        tie = siblings.tie(last_cut(sibling), miss=miss)
        rebuilt = Runner(sibling.filled(tie.replaced())).answers(inputs)
        off.append(np.abs(rebuilt - original).max())
        derived = tie.derived()
        thin = Runner(Release("thin", derived.graph, derived.tensors).filled()).answers(inputs)
        np.testing.assert_allclose(thin, rebuilt, rtol=1e-3, atol=1e-4)
        assert derived.own_bytes == sibling.nbytes - tie.saved_bytes
    assert off[1] < off[0] / 4


def test_who_only_asks_for_a_weights_shape_gets_no_thin_layer() -> None:
    """As graphs of torch's exporter do for the zeros of a bias."""
    base = plain(width=16)
    base.model.graph.node.insert(0, onnx.helper.make_node("Shape", ["c2.w"], ["asked"], start=0, end=1))
    sibling = sibling_of(base)
    tie = Siblings(base, sibling).tie(last_cut(sibling), miss=0.1)
    derived = tie.derived()
    thin = Runner(Release("thin", derived.graph, derived.tensors).filled()).answers(images(8))
    wished = Runner(sibling.filled(tie.replaced())).answers(images(8))
    np.testing.assert_allclose(thin, wished, rtol=1e-3, atol=1e-4)
    assert "c2.w" in tie.residuals


def test_a_residual_has_the_bits_of_an_update() -> None:
    base = plain(width=16)
    sibling = sibling_of(base)
    tie = Siblings(base, sibling).tie(last_cut(sibling), miss=0.1)
    name, record = next(iter(tie.residuals.items()))
    index = base.bound[name]
    wished = rebuild_tensor(base.tensors.read(index), base.tensors.table[index], [record])
    assert tie.replaced()[name].tobytes() == wished.tobytes()


def test_a_correction_that_is_larger_than_the_tensor_is_not_worth_it() -> None:
    base = plain(width=4)
    other = plain(width=4, seed=99)
    tie = Siblings(base, other).tie(last_cut(other), miss=0.001)
    assert tie.saved_bytes >= 0
    assert all(tie.thin_bytes < other.bytes_of([name]) for name in tie.residuals)
