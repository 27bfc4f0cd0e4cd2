"""The search: the fewest encoded bytes whose decoded release meets the target, or the best that fits a budget.

Candidates stand on a ladder from dear to cheap magnitudes (`price`), then to higher rank; each step down it gives more
bytes and more accuracy. A candidate is trained, encoded, decoded, and judged on the validation split as decoded. The
ladder is walked from its middle and bracketed. Where none of it keeps the target, or all of it fits the budget, the
full retrain is encoded post hoc, at last without loss. What was trained is kept in a checkpoint folder, so that a
second attempt goes on.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from torch import Tensor

from sprat_server.compress import updates
from sprat_server.compress.updates import Updated
from sprat_server.training.checkpoints import Checkpoints
from sprat_server.training.data import TrainingData, with_replay
from sprat_server.training.evaluate import Share, lost, recovered, scores
from sprat_server.training.factors import FactorPlan, GridStudent, teacher_outputs
from sprat_server.training.norms import shifted_norms
from sprat_server.training.recipes import Trainable
from sprat_server.training.states import to_source, to_torch
from sprat_server.training.targets import Aim, Target, Tried
from sprat_server.training.teacher import Progress, TeacherPlan, train_teacher
from sprat_shared.wire.tensors import TensorSource

_log: Final = logging.getLogger(__name__)

LADDER: Final[tuple[tuple[int, float], ...]] = (
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
"""Rank and price of the candidates, from few bytes to many."""

_START: Final = 7
_STRIDE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What is searched for.

    Attributes:
        target: what the decoded release must reach on the validation split.
        max_candidates: so many are trained at most.
        epochs: of each candidate; more on a small train split (`FactorPlan.min_steps`).
        batch: samples a step.
        seed: of the order of samples.
        min_steps: of each candidate.
    """

    target: Target
    max_candidates: int = 5
    epochs: int = 24
    batch: int = 64
    seed: int = 0
    min_steps: int = 600


@dataclass(frozen=True, slots=True)
class Retrained:
    """What a retrain gives.

    Attributes:
        updated: the update file with the release that it decodes to.
        base: state of the base (floats as float32).
        teacher: state of the full retrain.
        released: state of the decoded release.
        curve: every point tried; the chosen one is `chosen`.
        chosen: the best of those that meet the target.
    """

    updated: Updated
    base: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    released: Mapping[str, Tensor]
    curve: tuple[Tried, ...]
    chosen: Tried


def retrain(
    trainable: Trainable,
    base: TensorSource,
    data: TrainingData,
    *,
    teacher: TeacherPlan,
    search: SearchPlan,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
    retained: TrainingData | None = None,
) -> Retrained:
    """Retrain fully, then find the smallest update that meets the target, or the best one that fits its budget.

    Args:
        trainable: its module in the base's weights, as float32.
        base: the exact weights that devices have.
        data: train and validation split.
        teacher: how the full retrain runs.
        search: what is searched for.
        progress: told the fraction of the whole and a sentence; raises to cancel.
        checkpoints: what an earlier attempt finished, and where this one keeps its own.
        retained: train and validation split of an old domain that is to be kept: its samples are replayed among the
            new ones, in the full retrain and in each candidate, and each candidate is judged on both validation splits.

    Raises:
        NothingToLearn: the full retrain is not better than the base.
        BudgetTooSmall: no update that was found fits the budget.
    """
    run = _Search(
        trainable=trainable,
        base=base,
        data=data,
        teacher=teacher,
        plan=search,
        progress=progress,
        checkpoints=checkpoints or Checkpoints(None),
        retained=retained,
    )
    return run.run()


class _Search:
    def __init__(
        self,
        *,
        trainable: Trainable,
        base: TensorSource,
        data: TrainingData,
        teacher: TeacherPlan,
        plan: SearchPlan,
        progress: Progress,
        checkpoints: Checkpoints,
        retained: TrainingData | None,
    ) -> None:
        self._trainable, self._source, self._validation = trainable, base, data.validation
        self._old = None if retained is None else retained.validation
        self._train = data.train if retained is None else with_replay(data.train, retained.train, seed=plan.seed)
        self._teacher_plan, self._plan, self._checkpoints = teacher, plan, checkpoints
        self._tell = progress
        self._curve: list[Tried] = []
        self._best: tuple[Tried, Updated] | None = None

    def run(self) -> Retrained:
        self._base = floats(to_torch(self._source))
        self._teacher = self._checkpoints.teacher()
        if self._teacher is None:
            self._teacher = train_teacher(
                self._trainable,
                TrainingData(self._train, self._validation),
                self._teacher_plan,
                lambda f, m: self._tell(0.25 * f, m),
                old=self._old,
            )
            self._checkpoints.keep_teacher(self._teacher)
        self._scores_base = scores(self._trainable, self._base, self._validation)
        self._scores_teacher = scores(self._trainable, self._teacher, self._validation)
        if self._old is not None:  # what is kept: as the base has it, or where even the full retrain loses, as that
            both = [scores(self._trainable, state, self._old) for state in (self._base, self._teacher)]
            self._scores_old = min(both, key=lambda given: float(given.mean()))
        self._aim = Aim(self._plan.target, float((self._scores_teacher - self._scores_base).mean()))
        self._norms = shifted_norms(self._trainable.module, self._base, self._train)
        self._targets = teacher_outputs(self._trainable, self._teacher, self._train)
        used_up = self._walk()
        if self._best is None and self._aim.budget is not None:
            raise self._aim.unmet(self._curve)
        if self._best is None or (used_up and self._aim.budget is not None):
            self._post_hoc()
        assert self._best is not None  # noqa: S101 - lossless always has the teacher's own weights
        chosen, updated = self._best
        released = floats(to_torch(updated.weights))
        return Retrained(updated, self._base, self._teacher, released, tuple(self._curve), chosen)

    def _walk(self) -> bool:
        """Walk the ladder from its middle; say whether even its last rung has too few bytes.

        `low` is the highest rung known to have too few bytes, `high` the lowest known to have enough.
        """
        low, high, rung = -1, len(LADDER), _START
        for count in range(self._plan.max_candidates):
            if self._aim.wants_more_bytes(self._try_rung(rung, count)):
                low = rung
            else:
                high = rung
            if high - low <= 1:
                break
            if high == len(LADDER):
                rung = min(rung + _STRIDE, high - 1)
            elif low == -1:
                rung = max(rung - _STRIDE, 0)
            else:
                rung = (low + high) // 2
        return low == len(LADDER) - 1

    def _try_rung(self, rung: int, count: int) -> Tried:
        rank, price = LADDER[rung]
        name = f"factors-{rank}-{price:g}"
        updated = self._checkpoints.candidate(name, self._source)
        if updated is None:
            plan = FactorPlan(
                rank=rank,
                price=price,
                epochs=self._plan.epochs,
                batch=self._plan.batch,
                seed=self._plan.seed,
                min_steps=self._plan.min_steps,
            )
            student = GridStudent(
                self._trainable,
                base=self._base,
                teacher=self._teacher or {},
                norms=self._norms,
                table=self._source.table,
                plan=plan,
            )
            share_of_time = 0.75 / self._plan.max_candidates
            start = 0.25 + count * share_of_time
            text = f"factors of rank {rank} at price {price:g}"
            student.train(
                self._train, self._targets, lambda f, m: self._tell(start + f * share_of_time, f"{text}: {m}")
            )
            updated = updates.from_records(self._source, student.records())
            self._checkpoints.keep_candidate(name, updated.data)
        return self._consider("factors", rank, price, updated)

    def _post_hoc(self) -> None:
        """No rung has bytes enough: encode the full retrain itself, closely, then exactly."""
        self._tell(0.95, "low-rank updates are not enough; encoding the full retrain")
        teacher = to_source(narrowed(self._teacher or {}, self._source), self._source.table.aliases)
        close = self._consider("post-hoc", None, None, updates.from_weights(self._source, teacher))
        if self._aim.wants_more_bytes(close):
            updated = updates.from_weights(self._source, teacher, lossless=True)
            exact = self._consider("lossless", None, None, updated)
            self._best = self._best or (exact, updated)

    def _consider(self, method: str, rank: int | None, price: float | None, updated: Updated) -> Tried:
        tried = self._measure(method, rank, price, updated)
        self._curve.append(tried)
        _log.info("candidate", extra={"candidate": asdict(tried)})
        if tried.keeps and (self._best is None or self._aim.prefers(tried, self._best[0])):
            self._best = (tried, updated)
        return tried

    def _measure(self, method: str, rank: int | None, price: float | None, updated: Updated) -> Tried:
        state = floats(to_torch(updated.weights))
        given = scores(self._trainable, state, self._validation)
        old = None if self._old is None else scores(self._trainable, state, self._old)
        loss = None if old is None else lost(self._scores_old, old)
        share: Share = recovered(self._scores_base, self._scores_teacher, given)
        return Tried(
            method=method,
            rank=rank,
            price=price,
            update_bytes=len(updated.data),
            share=share.value,
            error=share.error,
            accuracy=float(given.mean()),
            keeps=self._aim.met(share, len(updated.data), loss),
            accuracy_old=None if old is None else float(old.mean()),
        )


def floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with 16-bit floats widened to float32, as training and devices compute with them."""
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def narrowed(tensors: Mapping[str, Tensor], like: TensorSource) -> dict[str, Tensor]:
    """Return the tensors of the table of `like`, in its dtypes."""
    kinds = {name: t.dtype for name, t in to_torch(like).items()}
    return {name: tensors[name].to(kind) for name, kind in kinds.items()}
