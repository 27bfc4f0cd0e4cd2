"""The strategies of a retrain: ways to make an update, each a ladder of rungs from few bytes to many.

A rung says all that decides a candidate's size; between two rungs lie others (geometric means). What a strategy makes
of a rung is an update file, encoded and decoded: the search judges what devices will have.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final, Literal, get_args

from sprat_server.compress import updates
from sprat_server.compress.updates import Updated
from sprat_server.training.factors import factor_parts
from sprat_server.training.grid import Part
from sprat_server.training.importance import importance
from sprat_server.training.lesson import Lesson
from sprat_server.training.states import floats, narrowed, to_source, to_torch
from sprat_server.training.student import GridStudent, StudentPlan
from sprat_server.training.subspace import subspace_parts
from sprat_server.training.teacher import Progress, is_batch_norm
from sprat_shared.wire.tensors import TensorSource

_SUBSPACE_RATE: Final = 0.06  # twice that of factors, whose product takes two steps at once
_LEAST_BYTES: Final = 64  # a budget for any file at all

Choice = Literal["auto", "full", "factors", "subspace"]
"""What a user may ask for: `auto` composes the others."""

CHOICES: Final[tuple[str, ...]] = get_args(Choice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long candidates are trained.

    Attributes:
        epochs: of each candidate; more on a small train split (`min_steps`).
        batch: samples a step.
        seed: of the order of samples.
        min_steps: of each candidate.
    """

    epochs: int = 24
    batch: int = 64
    seed: int = 0
    min_steps: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """What decides a candidate's size; what its strategy does not use is None.

    Attributes:
        rank: upper bound of each matrix's rank.
        coefficients: of the subspace.
        price: of magnitudes.
        share: most bytes of the file, as a share of the model's.
    """

    rank: int | None = None
    coefficients: int | None = None
    price: float | None = None
    share: float | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in asdict(self).items() if value is not None)


def between(low: Rung, high: Rung, part: float) -> Rung:
    """Return the rung at `part` (0 to 1) of the way from `low` to `high`, on log axes; the rank is the higher one."""

    def mean(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else one ** (1 - part) * other**part

    names = ("coefficients", "price", "share")
    coefficients, price, share = (mean(getattr(low, name), getattr(high, name)) for name in names)
    return Rung(
        rank=high.rank,
        coefficients=None if coefficients is None else round(coefficients),
        price=None if price is None else float(f"{price:.3g}"),
        share=share,
    )


Maker = Callable[[Lesson, Rung, Pace, Progress], Updated]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A way to make updates.

    Attributes:
        method: its name, as a curve shows it.
        ladder: from few bytes to many.
        start: the rung that a search begins with.
        make: (lesson, rung, pace, progress) -> the update, decoded.
    """

    method: str
    ladder: Sequence[Rung]
    start: int
    make: Maker

    def rung(self, position: float) -> Rung:
        """Return the rung at a position from 0 to len(ladder) - 1; between whole numbers lies a mean."""
        below = math.floor(position)
        if below == position:
            return self.ladder[below]
        return between(self.ladder[below], self.ladder[below + 1], position - below)


def _trained(lesson: Lesson, parts: Sequence[Part], plan: StudentPlan, progress: Progress) -> Updated:
    student = GridStudent(lesson, parts, plan)
    student.train(progress)
    return updates.from_records(lesson.source, student.records())


def _plan(pace: Pace, rung: Rung) -> StudentPlan:
    return StudentPlan(
        price=rung.price or 0.0, epochs=pace.epochs, batch=pace.batch, seed=pace.seed, min_steps=pace.min_steps
    )


def _factors(lesson: Lesson, rung: Rung, pace: Pace, progress: Progress) -> Updated:
    return _trained(lesson, factor_parts(lesson, rung.rank), _plan(pace, rung), progress)


def _subspace(lesson: Lesson, rung: Rung, pace: Pace, progress: Progress) -> Updated:
    plan = replace(_plan(pace, rung), learning_rate=_SUBSPACE_RATE, real=1 / 3)
    return _trained(lesson, subspace_parts(lesson, rung.coefficients or 1), plan, progress)


def _full_retrain(lesson: Lesson) -> TensorSource:
    """Return the full retrain's weights, but for what devices compute themselves and norms' counts of batches seen.

    Nothing is sent of either; the counts take no part in what the network computes.
    """
    norms = (name for name, module in lesson.trainable.module.named_modules() if is_batch_norm(module))
    kept = {f"{name}.num_batches_tracked".removeprefix(".") for name in norms}
    kept |= set() if lesson.local is None else set(lesson.local.tensors)
    state = narrowed(lesson.teacher, lesson.source)
    state |= {name: tensor for name, tensor in to_torch(lesson.source).items() if name in kept}
    return to_source(state, lesson.source.table.aliases)


def _post_hoc(lesson: Lesson, rung: Rung, _pace: Pace, progress: Progress) -> Updated:
    progress(0.0, "cutting the full retrain's change")
    most = None if rung.share is None else max(_LEAST_BYTES, round(rung.share * lesson.source.table.nbytes))
    wished, weights = _full_retrain(lesson), (None, importance(lesson))
    made = [updates.from_weights(lesson.source, wished, budget_bytes=most, importance=weight) for weight in weights]
    return min(made, key=lambda updated: lesson.distance(floats(to_torch(updated.weights))))


def _lossless(lesson: Lesson, _rung: Rung, _pace: Pace, progress: Progress) -> Updated:
    progress(0.0, "encoding the full retrain exactly")
    return updates.from_weights(lesson.source, _full_retrain(lesson), lossless=True)


FACTORS: Final = Strategy(
    method="factors",
    ladder=tuple(
        Rung(rank=rank, price=price)
        for rank, price in (
            (8, 4.5e-3),
            (8, 3.2e-3),
            (8, 2.3e-3),
            (8, 1.6e-3),
            (8, 1.1e-3),
            (8, 8e-4),
            (8, 5.6e-4),
            (8, 4e-4),
            (8, 2.8e-4),
            (8, 2e-4),
            (12, 1e-4),
            (16, 5e-5),
            (24, 2e-5),
            (48, 5e-6),
        )
    ),
    start=7,
    make=_factors,
)

DENSE: Final = Strategy(method="dense", ladder=(Rung(price=1e-5), Rung(price=1e-6)), start=0, make=_factors)
"""One integer for each value: where no rank is enough."""

SUBSPACE: Final = Strategy(
    method="subspace",
    ladder=tuple(
        Rung(coefficients=round(250 * 2 ** (step / 2)), price=float(f"{1.4e-3 * 2 ** (-3 * step / 8):.2g}"))
        for step in range(17)
    ),
    start=4,
    make=_subspace,
)
"""250 to 64,000 coefficients: about a quarter of a byte each."""

POST_HOC: Final = Strategy(
    method="post-hoc", ladder=tuple(Rung(share=2.0**-power) for power in range(13, 1, -1)), start=6, make=_post_hoc
)
LOSSLESS: Final = Strategy(method="lossless", ladder=(Rung(),), start=0, make=_lossless)
