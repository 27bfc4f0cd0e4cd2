"""Every way in which one model could share with another, measured: scores first, then answers on choose and test.

Of a donor's cuts those are tried that debiased CKA proposes; the map of most R2 on held-out inputs is evaluated, and
the one that CKA likes best where that is another. Labels are looked at for the last column alone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sharing.data import Domain
from sharing.zoo import Member
from sprat_server.sharing.activations import Runner, shapes_of
from sprat_server.sharing.cuts import Shape, find_cuts, to_put_at, to_take_from
from sprat_server.sharing.derived import Derived
from sprat_server.sharing.maps import AffineMap, Form, as_rows, fit, form_of, moments, prepared
from sprat_server.sharing.releases import Release
from sprat_server.sharing.similarity import gram, pooled, random_batches, similarity
from sprat_server.sharing.splice import compose, rest_of
from sprat_server.sharing.ties import Siblings
from sprat_shared.evidence.certificate import certify

FEWEST: Final = 0.3  # share of a recipient's bytes that a cut must save to be looked at
MISSES: Final = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15)  # of a difference's norm that a tie may leave
_PROPOSED: Final = 2  # donor's cuts that CKA proposes for each of a recipient's
_GRIDS: Final = (1, 3)
_POSITIONS: Final = 4  # of each feature map that a map is fitted on
_DEEPEST_LEFT_OUT: Final = 0.05  # share of a donor's bytes before a cut below which it is not taken from
_USED: Final[Mapping[str, int]] = {
    "fit": 1800,
    "tune": 600,
    "choose": 1000,
    "test": 1200,
}  # inputs, where there are so many
_CKA_BATCHES, _CKA_SIZE = 4, 128
_BATCH: Final = 100
_ROWS: Final = 300  # samples that are mapped at once
Way = tuple[str, str, int]  # donor's cut, recipient's cut, grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to share, measured.

    Attributes:
        donor: model's name.
        recipient: model's name.
        form: tie, residual or stitch.
        way: donor's cut, recipient's cut, grid; or recipient's cut and miss.
        similar: whether CKA likes it best of the donor's cuts.
        fitted: whether R2 does.
        saved_bytes: net.
        cka, spread, cka_pooled, r2: scores; nan where there is none.
        compared, disagreed: on `choose`.
        test_disagreed: share on test.
        drop: fall in accuracy on test, in shares.
    """

    donor: str
    recipient: str
    form: str
    way: str
    similar: bool
    fitted: bool
    saved_bytes: int
    cka: float
    spread: float
    cka_pooled: float
    r2: float
    compared: int
    disagreed: int
    test_disagreed: float
    drop: float

    @property
    def bound(self) -> float:
        """Return the upper bound of the share that disagrees, by the inputs that choose: no map has seen them."""
        return certify(self.disagreed, self.compared).bound

    def kept(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


class Subject:
    """A model with its cuts, ready to be run.

    Args:
        member: of a zoo.
        domain: what it sees.
    """

    def __init__(self, member: Member, domain: Domain) -> None:
        self.name, self.family, self.domain, self._member = member.kind.name, member.kind.family, domain, member
        self.release = Release(self.name, member.graph, member.tensors)
        cuts = find_cuts(self.release)
        self.shapes: Mapping[str, Shape] = shapes_of(self.release, cuts, domain.inputs["fit"])
        whole = self.release.nbytes
        deep = [cut for cut in to_take_from(cuts, self.shapes) if cut.bytes_before >= _DEEPEST_LEFT_OUT * whole]
        self.take = {cut.tensor: cut for cut in deep}
        worth = [cut for cut in to_put_at(cuts, self.shapes, whole) if cut.bytes_before >= FEWEST * whole]
        self.put = {cut.tensor: cut for cut in worth}
        self._kept: dict[tuple[int, str], Mapping[str, Any]] = {}
        self._grams: dict[int, Mapping[str, list[tuple[Any, Any]]]] = {}

    def keep(self, domain: Domain | None) -> None:
        """Keep the activations of all cuts for a domain's inputs in memory, instead of any others; None: keep none."""
        self._kept = {}
        for split in _USED if domain else ():
            assert domain is not None
            self._kept[id(domain), split] = self.given(domain, split, {*self.take, *self.put})

    def given(self, domain: Domain, split: str, tensors: Collection[str]) -> Mapping[str, Any]:
        """Return activations for the inputs of a split that are used."""
        kept = self._kept.get((id(domain), split))
        if kept is not None:
            return kept
        runner = Runner(self.release.filled(), sorted(tensors))
        parts = list(runner.stream(domain.inputs[split][: _USED[split]], _BATCH))
        return {name: np.concatenate([part[name] for part in parts]) for name in tensors}

    @cached_property
    def rests(self) -> Mapping[str, Runner]:
        """Return what follows each cut where another's activations may be put."""
        return {name: Runner(rest_of(self.release, cut)) for name, cut in self.put.items()}

    @cached_property
    def answers(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Return the classes that the model names, by split."""
        whole = Runner(self.release.filled())
        return {
            split: whole.answers(self.domain.inputs[split], _BATCH).argmax(1) for split in ("choose", "certify", "test")
        }

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the labels of the test split."""
        return self._member.task.labels(self.domain.labels["test"])

    def grams(self, domain: Domain) -> Mapping[str, list[tuple[Any, Any]]]:
        """Return for each cut the gram matrices of random batches of a domain, full and pooled."""
        if id(domain) not in self._grams:
            names = sorted({*self.take, *self.put})
            runner, inputs = Runner(self.release.filled(), names), domain.inputs["fit"]
            found: dict[str, list[tuple[Any, Any]]] = {name: [] for name in names}
            for batch in random_batches(len(inputs), size=_CKA_SIZE, batches=_CKA_BATCHES):
                for name, array in runner.run(inputs[batch]).items():
                    found[name].append((gram(array), gram(pooled(array))))
            self._grams[id(domain)] = found
        return self._grams[id(domain)]


def stitches(donor: Subject, recipient: Subject) -> Iterator[Row]:
    """Yield the measured stitches of a donor into a recipient."""
    scores = {key: _scores(donor, recipient, *key) for key in _possible(donor, recipient)}
    proposed = {put: _proposed(scores, put) for put in recipient.put}
    pairs = [(take, put) for put, takes in proposed.items() for take in takes]
    ways = [(take, put, grid) for take, put in pairs for grid in _grids(donor, recipient, take, put)]
    maps = fitted_maps(donor, recipient, ways)
    picked: dict[Way, list[bool]] = {}  # whether CKA likes it best, whether R2 does
    for put, takes in proposed.items():
        own = {way: found for way, found in maps.items() if way[1] == put}
        if own:
            best = max(own, key=lambda way: own[way].r2)
            similar = max((way for way in own if way[0] == takes[0]), key=lambda way: own[way].r2)
            picked |= {way: [way == similar, way == best] for way in (best, similar)}
    counted = _evaluated(donor, recipient, {way: maps[way] for way in picked})
    for way, (is_similar, is_best) in picked.items():
        full, pool = scores[way[:2]]
        yield Row(
            donor=donor.name,
            recipient=recipient.name,
            form="stitch",
            way=" ".join(map(str, way)),
            similar=is_similar,
            fitted=is_best,
            saved_bytes=recipient.release.nbytes - _composed(donor, recipient, way, maps[way]).own_bytes,
            cka=full.cka,
            spread=full.spread,
            cka_pooled=pool.cka,
            r2=maps[way].r2,
            **counted[way],
        )


def ties(donor: Subject, recipient: Subject, misses: Sequence[float]) -> Iterator[Row]:
    """Yield the measured ties of two models of one family."""
    siblings, seen = Siblings(donor.release, recipient.release), set()
    for put, cut in recipient.put.items():
        for miss in misses:
            tie = siblings.tie(cut, miss=miss)
            key = (tie.tied, miss if tie.residuals else 1.0)
            if key in seen or tie.saved_bytes <= 0:
                continue
            seen.add(key)
            runner = Runner(recipient.release.filled(tie.replaced()))
            full, pool = _scores(donor, recipient, put, put) if put in donor.grams(recipient.domain) else (None, None)
            yield Row(
                donor=donor.name,
                recipient=recipient.name,
                form="residual" if tie.residuals else "tie",
                way=f"{put} {miss}",
                similar=False,
                fitted=False,
                saved_bytes=tie.saved_bytes,
                cka=full.cka if full else float("nan"),
                spread=full.spread if full else float("nan"),
                cka_pooled=pool.cka if pool else float("nan"),
                r2=float("nan"),
                **_counted(recipient, {s: runner.answers(x, _BATCH).argmax(1) for s, x in _judged(recipient).items()}),
            )


def built(donor: Subject, recipient: Subject, form: str, way: str) -> Derived:
    """Return a measured way to share as a derived release."""
    parts = way.split()
    if form != "stitch":
        return Siblings(donor.release, recipient.release).tie(recipient.put[parts[0]], miss=float(parts[1])).derived()
    key = (parts[0], parts[1], int(parts[2]))
    return _composed(donor, recipient, key, fitted_maps(donor, recipient, [key])[key])


def fitted_maps(donor: Subject, recipient: Subject, ways: Sequence[Way]) -> dict[Way, AffineMap]:
    """Return the maps of some ways, from inputs of the recipient's domain."""
    takes, puts = {way[0] for way in ways}, {way[1] for way in ways}
    sums: dict[str, dict[Way, Any]] = {}
    for split in ("fit", "tune"):
        sums[split] = {way: moments(donor.shapes[way[0]], recipient.shapes[way[1]], way[2]) for way in ways}
        given, wished = (one.given(recipient.domain, split, t) for one, t in ((donor, takes), (recipient, puts)))
        for way, one in sums[split].items():
            draw = np.random.default_rng(3)
            for start in range(0, len(given[way[0]]), _ROWS):
                part = slice(start, start + _ROWS)
                x = prepared(given[way[0]][part], recipient.shapes[way[1]], way[2])
                one.add(*_some_positions(x, as_rows(wished[way[1]][part]), draw))
    return {
        way: fit(donor.shapes[way[0]], recipient.shapes[way[1]], sums["fit"][way], sums["tune"][way], grid=way[2])
        for way in ways
    }


def _some_positions(x: Any, y: Any, draw: np.random.Generator) -> tuple[Any, Any]:
    """Return some of a feature map's positions, the same of both."""
    if x.ndim == 2:  # noqa: PLR2004 - vectors
        return x, y
    x, y = (one.reshape(len(one), -1, one.shape[-1]) for one in (x, y))
    drawn = draw.permutation(x.shape[1])[:_POSITIONS]
    return x[:, drawn], y[:, drawn]


def _possible(donor: Subject, recipient: Subject) -> list[tuple[str, str]]:
    return [
        (take, put)
        for put in recipient.put
        for take in donor.take
        if form_of(donor.shapes[take], recipient.shapes[put]) is not None
    ]


def _proposed(scores: Mapping[tuple[str, str], Any], put: str) -> list[str]:
    """Return the donor's cuts to try for one of the recipient's: the most similar ones, and the last."""
    takes = [take for take, other in scores if other == put]
    alike = sorted(takes, key=lambda take: -scores[take, put][0].cka)[:_PROPOSED]
    return list(dict.fromkeys([*alike, *takes[-1:]]))


def _grids(donor: Subject, recipient: Subject, take: str, put: str) -> Sequence[int]:
    shape = donor.shapes[take]
    is_pooled = form_of(shape, recipient.shapes[put]) is Form.POOLED
    return [grid for grid in _GRIDS if grid == 1 or (is_pooled and min(shape[1:]) >= grid)]


def _scores(donor: Subject, recipient: Subject, take: str, put: str) -> tuple[Any, Any]:
    ours, theirs = donor.grams(recipient.domain)[take], recipient.grams(recipient.domain)[put]
    full, pool = (similarity((a[i], b[i]) for a, b in zip(ours, theirs, strict=True)) for i in (0, 1))
    return full, pool


def _composed(donor: Subject, recipient: Subject, way: Way, affine: AffineMap) -> Derived:
    return compose(donor.release, donor.take[way[0]], affine, recipient.release, recipient.put[way[1]])


def _judged(recipient: Subject) -> Mapping[str, Any]:
    inputs = recipient.domain.inputs
    return {split: inputs[split][: _USED[split]] for split in ("choose", "test")}


def _evaluated(donor: Subject, recipient: Subject, maps: Mapping[Way, AffineMap]) -> dict[Way, dict[str, Any]]:
    """Return what each map costs; the donor runs once for all."""
    found: dict[Way, dict[str, list[Any]]] = {way: {"choose": [], "test": []} for way in maps}
    for split in ("choose", "test"):
        given = donor.given(recipient.domain, split, {way[0] for way in maps})
        for way, affine in maps.items():
            rest, taken = recipient.rests[way[1]], given[way[0]]
            for start in range(0, len(taken), _ROWS):
                answers = rest.run(affine.apply(taken[start : start + _ROWS]))
                found[way][split].append(answers[rest.named[0]].argmax(1))
    return {
        way: _counted(recipient, {split: np.concatenate(parts) for split, parts in of_way.items()})
        for way, of_way in found.items()
    }


def _counted(recipient: Subject, tops: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
    own = {split: recipient.answers[split][: len(top)] for split, top in tops.items()}
    labels = recipient.labels()[: len(tops["test"])]
    return {
        "compared": len(tops["choose"]),
        "disagreed": int((tops["choose"] != own["choose"]).sum()),
        "test_disagreed": float((tops["test"] != own["test"]).mean()),
        "drop": float((own["test"] == labels).mean() - (tops["test"] == labels).mean()),
    }
