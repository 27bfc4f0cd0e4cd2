"""Fine-tuned levels: what is the recipient's own learns its answers; the donor's stays, and what cannot says why."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import small_recipes
import torch
from torch import Tensor, nn

from sprat_server.sharing import finetune
from sprat_server.sharing.activations import Runner, shapes_of
from sprat_server.sharing.cuts import Cut, find_cuts
from sprat_server.sharing.derived import Derived, From
from sprat_server.sharing.finetune import Student, Untrained, Way, Why, finetuned
from sprat_server.sharing.maps import AffineMap, features, form_of
from sprat_server.sharing.releases import Release
from sprat_server.sharing.splice import Splice
from sprat_server.sharing.ties import Siblings
from sprat_server.training.export import Example, export
from sprat_server.training.states import load_weights, module_tensors, to_source
from sprat_shared.wire.tensors import TensorSource, digest_of

OWN = {"norm.weight", "norm.bias", "tell.weight", "tell.bias"}
SEEN, UNSEEN = (small_recipes.images(count, seed, turn=0.5)[0] for count, seed in ((300, 31), (600, 32)))  # ambiguous


class Twice(small_recipes.Small):
    """Computes its first layer once for nothing: not every place of these values leads to the answers."""

    def forward(self, images: Tensor) -> Tensor:
        self.see(images)
        return super().forward(images)


class Failing(small_recipes.Small):
    """A recipe's module that raises what it likes."""

    def forward(self, images: Tensor) -> Tensor:
        raise KeyError(images.shape)


@dataclass(frozen=True)
class Trained:
    """A small model as a release."""

    release: Release

    def student(self, kind: Callable[[], nn.Module] = small_recipes.Small, *, classifies: bool = True) -> Student:
        """Return its module, fresh."""
        module = kind()
        load_weights(module, self.release.tensors)
        return Student(module.float(), classifies)


def of_module(name: str, module: nn.Module) -> Trained:
    source = to_source(module_tensors(module))
    return Trained(Release(name, export(module, source, Example.single((1, 8, 8), "float32")).graph.data, source))


@cache
def models() -> tuple[Trained, Trained, Trained]:
    """A donor, a recipient that was trained apart from it, and a sibling of the donor."""
    donor = small_recipes.trained(1)
    near = small_recipes.trained(1)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in (near.see.weight, near.think.weight):
            parameter.add_(0.7 * parameter.std() * torch.randn_like(parameter))
    return of_module("donor", donor), of_module("recipient", small_recipes.trained(2)), of_module("near", near)


def poor_splice(donor: Release, recipient: Release, put: str) -> Splice:
    """A splice from the donor's hidden layer, its map drawn: it knows nothing."""
    (take, shape_a), (put_at, shape_b) = (_cut(one, put) for one in (donor, recipient))
    form = form_of(shape_a, shape_b)
    assert form is not None
    draw = np.random.default_rng(3)
    weight = draw.normal(0, features(shape_a) ** -0.5, (features(shape_b), features(shape_a))).astype(np.float32)
    affine = AffineMap(form, shape_a, shape_b, weight, np.zeros(features(shape_b), np.float32), 0.0)
    return Splice(donor, take, affine, recipient, put_at)


def _cut(release: Release, operator: str) -> tuple[Cut, tuple[int, ...]]:
    """Return the first cut that an operator gives, and its shape."""
    cuts = find_cuts(release)
    cut = next(cut for cut in cuts if cut.operator == operator)
    return cut, shapes_of(release, cuts, SEEN)[cut.tensor]


def agreement(recipient: Release, derived: Derived) -> float:
    original, copy = (
        Runner(one.filled()).answers(UNSEEN).argmax(1)
        for one in (recipient, Release("derived", derived.graph, derived.tensors))
    )
    return float((original == copy).mean())


def learnt(way: Way, student: Student, seed: int = 0) -> Way:
    return finetuned(way, student, SEEN, seed=seed, progress=lambda *_: None)


def digests(tensors: TensorSource) -> dict[str, bytes]:
    return {spec.name: tensors.sha256(index) for index, spec in enumerate(tensors.table)}


def require_only_own(derived: Derived, donor: Release, recipient: Release) -> None:
    """Nothing but norms, head and map is new; each tensor of the donor's is the very file that the donor has."""
    theirs = {From.DONOR: digests(donor.tensors), From.RECIPIENT: digests(recipient.tensors)}
    for name, digest in digests(derived.tensors).items():
        origin = derived.origins[name]
        if origin.side is From.NEW:
            assert name in OWN or name.startswith("map/")
        else:
            assert digest == theirs[origin.side][origin.name]


@pytest.mark.parametrize("put", ["Conv", "Relu", "Gemm"])
def test_a_splice_whose_map_is_poor_learns_to_agree_on_inputs_that_it_never_saw(put: str) -> None:
    donor, recipient, _ = models()
    way = poor_splice(donor.release, recipient.release, put)
    before, after = (one.derived() for one in (way, learnt(way, recipient.student())))
    assert agreement(recipient.release, before) < 0.75
    assert agreement(recipient.release, after) > max(0.8, agreement(recipient.release, before) + 0.1)
    require_only_own(after, donor.release, recipient.release)
    assert [name for name, origin in after.origins.items() if origin.side is From.DONOR]
    changed = {name for name in OWN & set(after.origins) if after.origins[name].side is From.NEW}
    assert {"tell.weight", "tell.bias"} <= changed
    new = sum(spec.nbytes for spec in after.tensors.table if spec.name in changed)
    assert (after.new_bytes - before.new_bytes, after.own_bytes) == (new, before.own_bytes)


def test_a_tie_learns_by_norms_and_head_alone() -> None:
    donor, _, near = models()
    way = Siblings(donor.release, near.release).tie(_cut(near.release, "Gemm")[0])
    assert way.tied == {"see.weight", "think.weight"}
    before, after = (one.derived() for one in (way, learnt(way, near.student())))
    assert agreement(near.release, after) > agreement(near.release, before) + 0.04
    require_only_own(after, donor.release, near.release)
    assert {name for name, origin in after.origins.items() if origin.side is From.NEW} == OWN
    assert after.own_bytes == before.own_bytes


def test_one_seed_gives_the_same_bits_and_another_does_not() -> None:
    donor, recipient, _ = models()
    way = poor_splice(donor.release, recipient.release, "Relu")
    one, again, other = (digest_of(learnt(way, recipient.student(), s).derived().tensors) for s in (4, 4, 5))
    assert one == again
    assert one != other


def test_a_place_from_which_nothing_follows_is_passed_over() -> None:
    donor, recipient, _ = models()
    way = poor_splice(donor.release, recipient.release, "Conv")
    plain, twice = (learnt(way, recipient.student(kind)).derived() for kind in (small_recipes.Small, Twice))
    assert digest_of(twice.tensors) == digest_of(plain.tensors)


def test_a_recipe_with_a_loss_of_its_own_is_taught_by_squared_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    donor, recipient, _ = models()
    way = poor_splice(donor.release, recipient.release, "Relu")
    monkeypatch.setattr(finetune.functional, "kl_div", lambda *_, **__: pytest.fail("these are no logits"))
    assert agreement(recipient.release, learnt(way, recipient.student(classifies=False)).derived()) > 0.8


def refused(way: Way, student: Student) -> Why:
    with pytest.raises(Untrained) as why:
        learnt(way, student)
    assert str(why.value) == f"{why.value.why}: {why.value.detail}"
    return why.value.why


def test_what_cannot_be_trained_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    donor, recipient, near = models()
    splice = poor_splice(donor.release, recipient.release, "Relu")
    tie = Siblings(donor.release, near.release).tie(_cut(near.release, "Gemm")[0])
    assert refused(splice, donor.student()) is Why.NO_PLACE
    assert refused(tie, recipient.student()) is Why.INEXACT
    assert refused(splice, recipient.student(Failing)) is Why.RECIPE_FAILS
    assert refused(tie, near.student(Failing)) is Why.RECIPE_FAILS
    frozen = near.student()
    frozen.module.requires_grad_(requires_grad=False)  # type: ignore[call-arg]
    assert refused(tie, frozen) is Why.NOTHING
    monkeypatch.setattr(finetune, "LEARNING_RATE", 1e30)
    assert refused(splice, recipient.student()) is Why.DIVERGED


def test_a_composed_graph_that_does_not_answer_as_the_trained_module_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    donor, recipient, _ = models()
    way = poor_splice(donor.release, recipient.release, "Relu")
    monkeypatch.setattr(finetune._Spliced, "trained", lambda _, changed: replace(way, recipient=changed))
    assert refused(way, recipient.student()) is Why.INEXACT


def test_whoever_stops_the_work_is_heard() -> None:
    donor, recipient, _ = models()

    def stop(fraction: float, message: str) -> None:
        if fraction > 0.5:
            raise InterruptedError(message)

    way = poor_splice(donor.release, recipient.release, "Relu")
    with pytest.raises(InterruptedError, match=f"step .* of {finetune.STEPS}"):
        finetuned(way, recipient.student(), SEEN, seed=0, progress=stop)


def test_a_changed_tensor_is_rounded_to_its_own_dtype_and_one_of_the_same_bits_is_not_changed() -> None:
    half = of_module("half", small_recipes.trained(1).bfloat16()).release
    kept = half.read("norm.bias")
    changed = half.with_changed({"norm.weight": half.read("norm.weight") + np.float32(1 / 3), "norm.bias": kept})
    assert changed.changed == {"norm.weight"}
    assert changed.spec("norm.weight").dtype == "BF16"
    np.testing.assert_allclose(changed.read("norm.weight"), half.read("norm.weight") + 1 / 3, rtol=2**-8)
    assert [spec.name for spec in changed.tensors.table] == [spec.name for spec in half.tensors.table]
