"""Splices: the composed graph computes what its parts compute by themselves, folded or not."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import images, plain, pointwise, residual, tokens

from sprat_server.sharing.activations import Runner, shapes_of
from sprat_server.sharing.cuts import Cut, find_cuts
from sprat_server.sharing.derived import Derived, From
from sprat_server.sharing.maps import AffineMap, features, form_of
from sprat_server.sharing.releases import NotShareable, Release
from sprat_server.sharing.splice import compose, rest_of

MODELS = {"plain": plain, "pointwise": pointwise, "residual": residual, "tokens": tokens}


@dataclass(frozen=True)
class Pair:
    donor: Release
    recipient: Release
    donor_cut: Cut
    recipient_cut: Cut
    affine: AffineMap
    inputs: np.ndarray

    def derived(self) -> Derived:
        return compose(self.donor, self.donor_cut, self.affine, self.recipient, self.recipient_cut)

    def apart(self) -> np.ndarray:
        """Prefix, map and rest, each by itself."""
        taken = Runner(self.donor.filled(), [self.donor_cut.tensor]).run(self.inputs)[self.donor_cut.tensor]
        return Runner(rest_of(self.recipient, self.recipient_cut)).answers(self.affine.apply(taken))


def pair(donor: Release, recipient: Release, at: str, to: str, *, grid: int = 1) -> Pair:
    """A splice with a map that was drawn."""
    inputs = np.random.default_rng(5).normal(size=(9, 6, 5)).astype(np.float32) if "m1.w" in donor.bound else images(9)
    (cut_a, shape_a), (cut_b, shape_b) = (_cut(one, name, inputs) for one, name in ((donor, at), (recipient, to)))
    form = form_of(shape_a, shape_b)
    assert form is not None
    draw = np.random.default_rng(0)
    wide = features(shape_a) * (grid * grid if form == "pooled" else 1)
    weight = draw.normal(0, wide**-0.5, (features(shape_b), wide)).astype(np.float32)
    bias = draw.normal(size=features(shape_b)).astype(np.float32)
    return Pair(donor, recipient, cut_a, cut_b, AffineMap(form, shape_a, shape_b, weight, bias, 1.0, grid), inputs)


def _cut(release: Release, tensor: str, inputs: np.ndarray) -> tuple[Cut, tuple[int, ...]]:
    cuts = find_cuts(release)
    return next(cut for cut in cuts if cut.tensor == tensor), shapes_of(release, cuts, inputs)[tensor]


def answers(derived: Derived, inputs: np.ndarray) -> np.ndarray:
    return Runner(Release("derived", derived.graph, derived.tensors).filled()).answers(inputs)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_composed_graph_computes_prefix_map_and_rest(data: st.DataObject) -> None:
    """Whatever is folded on the way."""
    kinds = st.sampled_from(["plain", "pointwise", "residual"])
    donor, recipient = MODELS[data.draw(kinds)]("donor"), MODELS[data.draw(kinds)]("recipient", seed=9)
    names = [[cut.tensor for cut in find_cuts(one)] for one in (donor, recipient)]
    shapes = [shapes_of(one, find_cuts(one), images(1)) for one in (donor, recipient)]
    at, to = (data.draw(st.sampled_from(one)) for one in names)
    if form_of(shapes[0][at], shapes[1][to]) is None:
        return
    one = pair(donor, recipient, at, to, grid=data.draw(st.sampled_from([1, 2])) if len(shapes[0][at]) == 3 else 1)
    np.testing.assert_allclose(answers(one.derived(), one.inputs), one.apart(), rtol=1e-3, atol=2e-4)


def test_tokens_are_mapped_too() -> None:
    one = pair(tokens("a"), tokens("b", seed=8, width=7), "r1", "m1")
    np.testing.assert_allclose(answers(one.derived(), one.inputs), one.apart(), rtol=1e-4, atol=1e-5)


def test_a_map_before_a_norm_takes_it_in_exactly() -> None:
    one = pair(plain("a"), plain("b", seed=4, width=3), "r1", "c1")
    derived = one.derived()
    assert not [name for name in derived.origins if name.startswith("n1.")]
    assert derived.new_bytes == one.affine.nbytes
    np.testing.assert_allclose(answers(derived, one.inputs), one.apart(), rtol=1e-4, atol=1e-5)


def test_a_map_before_the_head_becomes_the_head() -> None:
    one = pair(plain("a"), plain("b", seed=4, width=8, classes=3), "r2", "flat")
    derived = one.derived()
    assert derived.own_bytes == derived.new_bytes == 4 * (8 * 3 + 3)
    np.testing.assert_allclose(answers(derived, one.inputs), one.apart(), rtol=1e-4, atol=1e-5)


def test_a_map_before_a_pointwise_convolution_is_folded_into_it() -> None:
    one = pair(plain("a"), pointwise("b"), "r1", "r1")
    derived = one.derived()
    assert derived.new_bytes == 4 * (4 * 2 + 2)
    np.testing.assert_allclose(answers(derived, one.inputs), one.apart(), rtol=1e-4, atol=1e-5)


def test_a_map_before_a_padded_convolution_stays() -> None:
    one = pair(plain("a"), plain("b", seed=4), "r1", "p1")
    derived = one.derived()
    assert derived.new_bytes == one.affine.nbytes
    assert {name for name in derived.origins if name.startswith("c2.")} == {"c2.w", "c2.b"}
    np.testing.assert_allclose(answers(derived, one.inputs), one.apart(), rtol=1e-4, atol=1e-5)


def test_the_table_says_where_each_tensor_comes_from() -> None:
    one = pair(plain("a"), plain("b", seed=4, width=6), "r1", "p1")
    derived = one.derived()
    sides = {side: {o.name for o in derived.origins.values() if o.side is side} for side in From}
    assert sides[From.DONOR] == {"c1.w", "c1.b", "n1.g", "n1.b", "n1.m", "n1.v"}
    assert sides[From.RECIPIENT] == set(one.recipient.bound) - sides[From.DONOR]
    assert sides[From.NEW] == {"map/weight", "map/bias"}
    for index, spec in enumerate(derived.tensors.table):
        origin = derived.origins[spec.name]
        if origin.side is From.DONOR:  # the very file that the donor has
            theirs = one.donor.tensors
            assert derived.tensors.sha256(index) == theirs.sha256(theirs.table.index_of(origin.name))
    saved = one.recipient.nbytes - derived.own_bytes
    assert saved == one.recipient_cut.bytes_before - one.affine.nbytes


def test_graphs_in_other_versions_do_not_share() -> None:
    one = pair(plain("a"), plain("b", seed=4), "r1", "p1")
    one.donor.model.opset_import[0].version = 17
    with pytest.raises(NotShareable, match="versions"):
        one.derived()
