"""What one model could share with another, measured on inputs without labels, and what of it is proven on other ones.

Of a donor's cuts those are tried that debiased CKA proposes, and the last; the map of most R2 is taken. What counts is
how often the model with the donor's layers gives another answer than the original.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sprat_server.sharing.activations import Runner, shapes_of
from sprat_server.sharing.cuts import Cut, Shape, find_cuts, to_put_at, to_take_from
from sprat_server.sharing.derived import Derived
from sprat_server.sharing.maps import AffineMap, Form, as_rows, fit, form_of, moments, prepared
from sprat_server.sharing.planner import Candidate
from sprat_server.sharing.releases import NotShareable, Release
from sprat_server.sharing.similarity import gram, random_batches, similarity
from sprat_server.sharing.splice import Splice, rest_of
from sprat_server.sharing.ties import Siblings, Tie
from sprat_shared.evidence.certificate import Certificate, certify, certify_answers
from sprat_shared.wire.tensors import Array

FEWEST_SAMPLES: Final = 100
"""Of so few inputs no part is worth looking at."""

_FEWEST_BYTES: Final = 0.1  # share of a recipient's bytes that lie before a cut worth looking at
_MISSES: Final = (1.0, 0.5, 0.25)  # of a difference's norm that a tie may leave
_PROPOSED: Final = 2  # donor's cuts that CKA proposes for each of a recipient's
_GRIDS: Final = (1, 3)
_CKA_BATCHES, _CKA_SIZE = 4, 64
_BATCH: Final = 100
_SHARES: Final = (0.3, 0.1, 0.2)  # of the inputs that fit, tune and choose; the rest certifies
_MOST: Final = (2000, 700, 1500)  # of those three, where there are many
_LOGITS: Final = 2  # dimensions of answers that name classes
Labels = npt.NDArray[np.int64]
_Way = tuple[str, str, int]  # donor's cut, recipient's cut, grid


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Inputs in four parts that share no sample: maps are fitted and tuned, ways chosen, and what is left certifies."""

    fit: Array
    tune: Array
    choose: Array
    certify: Array


def parted(inputs: Array, seed: int) -> Inputs:
    """Return inputs (n, ...) in their four parts, drawn with the seed.

    Raises:
        NotShareable: there are too few.
    """
    if len(inputs) < FEWEST_SAMPLES:
        raise NotShareable(
            f"{len(inputs)} inputs are too few to fit, choose and certify; give {FEWEST_SAMPLES} or more"
        )
    order = np.random.default_rng(seed).permutation(len(inputs))
    parts, start = [], 0
    for share, most in zip(_SHARES, _MOST, strict=True):
        count = min(int(share * len(inputs)), most)
        parts.append(inputs[np.sort(order[start : start + count])])
        start += count
    fitting, tuning, choosing = parts
    return Inputs(fitting, tuning, choosing, inputs[np.sort(order[start:])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One way for a model to share, measured on inputs that chose nothing else.

    Attributes:
        donor: whose layers are used.
        recipient: who gives up its own.
        form: tie, residual or stitch.
        way: which cuts, and how; for `way_of`.
        saved_bytes: of the recipient's tensors that go, less those that come new.
        cka: debiased CKA of the two cuts, where both have one.
        r2: of the map, where there is one.
        compared: inputs.
        disagreed: of them, on how many it gave another answer than the recipient.
    """

    donor: str
    recipient: str
    form: str
    way: str
    saved_bytes: int
    cka: float | None
    r2: float | None
    compared: int
    disagreed: int

    @property
    def bound(self) -> float:
        """Return the upper bound of the share that disagrees."""
        return certify(self.disagreed, self.compared).bound

    @property
    def candidate(self) -> Candidate:
        """Return it as the planner takes it."""
        return Candidate(
            donor=self.donor,
            recipient=self.recipient,
            way=f"{self.form} {self.way}",
            saved_bytes=self.saved_bytes,
            bound=self.bound,
        )


class Subject:
    """A model with its cuts, ready to be run.

    Args:
        release: of the model.
        inputs: of the dataset, in parts.

    Raises:
        NotShareable: it takes other inputs, or does not name classes.
    """

    def __init__(self, release: Release, inputs: Inputs) -> None:
        self.release, self.name, self._inputs = release, release.name, inputs
        self._check()
        cuts = find_cuts(release)
        self.shapes: Mapping[str, Shape] = shapes_of(release, cuts, inputs.fit) if cuts else {}
        self.take = {cut.tensor: cut for cut in to_take_from(cuts, self.shapes)}
        least = _FEWEST_BYTES * release.nbytes
        put = to_put_at(cuts, self.shapes, release.nbytes)
        self.put: Mapping[str, Cut] = {cut.tensor: cut for cut in put if cut.bytes_before >= least}

    def _check(self) -> None:
        self.release.require_takes(self._inputs.fit)
        some = Runner(self.release.filled()).answers(self._inputs.fit[:2])
        if some.ndim != _LOGITS or some.shape[1] < 2:  # noqa: PLR2004 - classes
            raise NotShareable(f"{self.name} answers {some.shape[1:]}; what names classes can be certified")

    def runner(self, *tensors: str) -> Runner:
        """Return the model, giving these tensors."""
        return Runner(self.release.filled(), list(tensors))

    @cached_property
    def rests(self) -> Mapping[str, Runner]:
        """Return what follows each cut where another's activations may be put."""
        return {name: Runner(rest_of(self.release, cut)) for name, cut in self.put.items()}

    @cached_property
    def chosen(self) -> Labels:
        """Return the classes that it names of the inputs that choose."""
        return named(self.release, self._inputs.choose)

    @cached_property
    def grams(self) -> Mapping[str, list[Any]]:
        """Return for each cut the gram matrices of random batches."""
        names = sorted({*self.take, *self.put})
        if not names:
            return {}
        runner, inputs = self.runner(*names), self._inputs.fit
        found: dict[str, list[Any]] = {name: [] for name in names}
        for batch in random_batches(len(inputs), size=_CKA_SIZE, batches=_CKA_BATCHES):
            for name, array in runner.run(inputs[batch]).items():
                found[name].append(gram(array))
        return found

    def alike(self, other: "Subject", take: str, put: str) -> float:
        """Return the debiased CKA of a cut of this one and one of another."""
        return similarity(zip(self.grams[take], other.grams[put], strict=True)).cka


def named(release: Release, inputs: Array) -> Labels:
    """Return the classes that a release names of inputs (n, ...): (n,)."""
    classes: Labels = Runner(release.filled()).answers(inputs, _BATCH).argmax(1)
    return classes


def offers(donor: Subject, recipient: Subject, inputs: Inputs) -> Iterator[Offer]:
    """Yield what a donor has for a recipient: ties where they are siblings, and stitches."""
    yield from _ties(donor, recipient, inputs)
    yield from _stitches(donor, recipient, inputs)


def way_of(donor: Subject, recipient: Subject, inputs: Inputs, form: str, way: str) -> Tie | Splice:
    """Return a measured way to share, ready to be composed; what is fitted comes out as it was measured."""
    parts = way.split()
    if form != "stitch":
        return Siblings(donor.release, recipient.release).tie(recipient.put[parts[0]], miss=float(parts[1]))
    key = (parts[0], parts[1], int(parts[2]))
    return _splice(donor, recipient, key, _maps(donor, recipient, [key], inputs)[key])


def agreement(recipient: Subject, derived: Derived, inputs: Inputs) -> float:
    """Return the share of the inputs that choose on which a derived release names the class that its original does."""
    return float((_named_by(recipient, derived, inputs.choose) == recipient.chosen).mean())


def certified(recipient: Subject, derived: Derived, inputs: Inputs, *, looks: int) -> Certificate:
    """Return by how much a derived release can be worse than its original, on inputs that chose nothing."""
    original = named(recipient.release, inputs.certify)
    return certify_answers(original.tolist(), _named_by(recipient, derived, inputs.certify).tolist(), looks=looks)


def _named_by(recipient: Subject, derived: Derived, inputs: Array) -> Labels:
    return named(Release(f"{recipient.name}, shared", derived.graph, derived.tensors), inputs)


def _ties(donor: Subject, recipient: Subject, inputs: Inputs) -> Iterator[Offer]:
    siblings, seen = Siblings(donor.release, recipient.release), set()
    for put, cut in recipient.put.items():
        for miss in _MISSES:
            tie = siblings.tie(cut, miss=miss)
            key = (tie.tied, miss if tie.residuals else 1.0)
            if key in seen or not tie.tied or tie.saved_bytes <= 0:
                continue
            seen.add(key)
            copy = Runner(recipient.release.filled(tie.replaced())).answers(inputs.choose, _BATCH).argmax(1)
            yield Offer(
                donor=donor.name,
                recipient=recipient.name,
                form="residual" if tie.residuals else "tie",
                way=f"{put} {miss}",
                saved_bytes=tie.saved_bytes,
                cka=donor.alike(recipient, put, put) if put in donor.grams else None,
                r2=None,
                compared=len(copy),
                disagreed=int((copy != recipient.chosen).sum()),
            )


def _stitches(donor: Subject, recipient: Subject, inputs: Inputs) -> Iterator[Offer]:
    for put in recipient.put:
        takes = [take for take in donor.take if form_of(donor.shapes[take], recipient.shapes[put]) is not None]
        scores = {take: donor.alike(recipient, take, put) for take in takes}
        proposed = sorted(takes, key=lambda take: -scores[take])[:_PROPOSED]
        tried = list(dict.fromkeys([*proposed, *takes[-1:]]))
        ways = [(take, put, grid) for take in tried for grid in _grids(donor, recipient, take, put)]
        if not ways:
            continue
        maps = _maps(donor, recipient, ways, inputs)
        best = max(ways, key=lambda way: maps[way].r2)
        saved = recipient.release.nbytes - _splice(donor, recipient, best, maps[best]).derived().own_bytes
        if saved <= 0:
            continue
        copy = _answers(donor, recipient, best, maps[best], inputs.choose)
        yield Offer(
            donor=donor.name,
            recipient=recipient.name,
            form="stitch",
            way=" ".join(map(str, best)),
            saved_bytes=saved,
            cka=scores[best[0]],
            r2=maps[best].r2,
            compared=len(copy),
            disagreed=int((copy != recipient.chosen).sum()),
        )


def _answers(donor: Subject, recipient: Subject, way: _Way, affine: AffineMap, inputs: Array) -> Labels:
    rest, runner = recipient.rests[way[1]], donor.runner(way[0])
    parts = [rest.run(affine.apply(given[way[0]]))[rest.named[0]].argmax(1) for given in runner.stream(inputs, _BATCH)]
    return np.concatenate(parts)


def _maps(donor: Subject, recipient: Subject, ways: Sequence[_Way], inputs: Inputs) -> dict[_Way, AffineMap]:
    runners = donor.runner(*sorted({way[0] for way in ways})), recipient.runner(*sorted({way[1] for way in ways}))
    sums = []
    for part in (inputs.fit, inputs.tune):
        of_part = {way: moments(donor.shapes[way[0]], recipient.shapes[way[1]], way[2]) for way in ways}
        for given, wished in zip(*(runner.stream(part, _BATCH) for runner in runners), strict=True):
            for way, one in of_part.items():
                one.add(prepared(given[way[0]], recipient.shapes[way[1]], way[2]), as_rows(wished[way[1]]))
        sums.append(of_part)
    fitted, tuned = sums
    return {
        way: fit(donor.shapes[way[0]], recipient.shapes[way[1]], fitted[way], tuned[way], grid=way[2]) for way in ways
    }


def _grids(donor: Subject, recipient: Subject, take: str, put: str) -> Sequence[int]:
    shape = donor.shapes[take]
    is_pooled = form_of(shape, recipient.shapes[put]) is Form.POOLED
    return [grid for grid in _GRIDS if grid == 1 or (is_pooled and min(shape[1:]) >= grid)]


def _splice(donor: Subject, recipient: Subject, way: _Way, affine: AffineMap) -> Splice:
    return Splice(donor.release, donor.take[way[0]], affine, recipient.release, recipient.put[way[1]])
