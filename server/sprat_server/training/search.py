"""The first search: the fewest encoded bytes whose decoded release keeps the target share of the gain.

Candidates stand on a ladder from dear to cheap magnitudes (`price`), then to higher rank; each step down it gives more
bytes and more accuracy. A candidate is trained, encoded, decoded, and judged on the validation split as decoded. The
ladder is walked from its middle and bracketed. Where none of it keeps the target, the full retrain is encoded post
hoc, at last without loss. What was trained is kept in a checkpoint folder, so that a second attempt goes on.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
from torch import Tensor

from sprat_server.compress import updates
from sprat_server.compress.updates import Updated
from sprat_server.training.data import TrainingData
from sprat_server.training.evaluate import Share, recovered, scores
from sprat_server.training.factors import FactorPlan, GridStudent, teacher_outputs
from sprat_server.training.norms import shifted_norms
from sprat_server.training.recipes import Trainable
from sprat_server.training.states import to_source, to_torch
from sprat_server.training.teacher import Progress, TeacherPlan, train_teacher
from sprat_shared.errors import UpdateRejected
from sprat_shared.wire.tensors import TensorSource

_log: Final = logging.getLogger(__name__)

LADDER: Final[tuple[tuple[int, float], ...]] = (
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

_START: Final = 4
_STRIDE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What is searched for.

    Attributes:
        keep: share of the full retrain's gain on the validation split that the decoded release must have.
        max_candidates: so many are trained at most.
        epochs: of each candidate; more on a small train split (`FactorPlan.min_steps`).
        batch: samples a step.
        seed: of the order of samples.
        min_steps: of each candidate.
    """

    keep: float = 0.95
    max_candidates: int = 5
    epochs: int = 24
    batch: int = 64
    seed: int = 0
    min_steps: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One point of the curve: what it took, what it kept (on the validation split)."""

    method: str
    rank: int | None
    price: float | None
    update_bytes: int
    share: float
    error: float
    keeps: bool


@dataclass(frozen=True, slots=True)
class Retrained:
    """What a retrain gives.

    Attributes:
        updated: the update file with the release that it decodes to.
        base: state of the base (floats as float32).
        teacher: state of the full retrain.
        released: state of the decoded release.
        curve: every point tried; the chosen one is `chosen`.
        chosen: the smallest that keeps the target.
    """

    updated: Updated
    base: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    released: Mapping[str, Tensor]
    curve: tuple[Tried, ...]
    chosen: Tried


class Checkpoints:
    """What a retrain has finished, in a folder of its own; None keeps nothing.

    Files are written beside their name and renamed. One that a power cut tore is as if it were not there.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def teacher(self) -> dict[str, Tensor] | None:
        """Return the state of the full retrain if an earlier attempt finished it."""
        if self._folder is None or not (path := self._folder / "teacher.pt").exists():
            return None
        try:
            state: dict[str, Tensor] = torch.load(path, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError, OSError) as e:
            _log.warning("the full retrain of an earlier attempt cannot be read; it is done again: %s", e)
            return None
        return state

    def keep_teacher(self, state: Mapping[str, Tensor]) -> None:
        """Keep the full retrain's state."""
        if self._folder is not None:
            beside = self._folder / f"teacher.{os.getpid()}"
            torch.save(dict(state), beside)
            beside.replace(self._folder / "teacher.pt")

    def candidate(self, name: str, base: TensorSource) -> Updated | None:
        """Return a candidate if an earlier attempt finished it."""
        if self._folder is None or not (path := self._folder / f"{name}.update").exists():
            return None
        try:
            return updates.decode(path.read_bytes(), base)
        except (UpdateRejected, OSError) as e:
            _log.warning("candidate %s of an earlier attempt cannot be read; it is done again: %s", name, e)
            return None

    def keep_candidate(self, name: str, data: bytes) -> None:
        """Keep the update file of a candidate."""
        if self._folder is not None:
            beside = self._folder / f"{name}.{os.getpid()}"
            beside.write_bytes(data)
            beside.replace(self._folder / f"{name}.update")


def retrain(
    trainable: Trainable,
    base: TensorSource,
    data: TrainingData,
    *,
    teacher: TeacherPlan,
    search: SearchPlan,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
) -> Retrained:
    """Retrain fully, then find the smallest update that keeps the target share of the gain.

    Args:
        trainable: its module in the base's weights, as float32.
        base: the exact weights that devices have.
        data: train and validation split.
        teacher: how the full retrain runs.
        search: what is searched for.
        progress: told the fraction of the whole and a sentence; raises to cancel.
        checkpoints: what an earlier attempt finished, and where this one keeps its own.

    Raises:
        NothingToLearn: the full retrain is not better than the base.
    """
    run = _Search(
        trainable=trainable,
        base=base,
        data=data,
        teacher=teacher,
        plan=search,
        progress=progress,
        checkpoints=checkpoints or Checkpoints(None),
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
    ) -> None:
        self._trainable, self._source, self._data = trainable, base, data
        self._teacher_plan, self._plan, self._checkpoints = teacher, plan, checkpoints
        self._tell = progress
        self._curve: list[Tried] = []
        self._best: tuple[Tried, Updated] | None = None

    def run(self) -> Retrained:
        self._base = floats(to_torch(self._source))
        self._teacher = self._checkpoints.teacher()
        if self._teacher is None:
            self._teacher = train_teacher(
                self._trainable, self._data, self._teacher_plan, lambda f, m: self._tell(0.25 * f, m)
            )
            self._checkpoints.keep_teacher(self._teacher)
        validation = self._data.validation
        self._scores_base = scores(self._trainable, self._base, validation)
        self._scores_teacher = scores(self._trainable, self._teacher, validation)
        self._norms = shifted_norms(self._trainable.module, self._base, self._data.train)
        self._targets = teacher_outputs(self._trainable, self._teacher, self._data.train)
        self._walk()
        if self._best is None:
            self._post_hoc()
        assert self._best is not None  # noqa: S101 - lossless always has the teacher's own weights
        chosen, updated = self._best
        released = floats(to_torch(updated.weights))
        return Retrained(updated, self._base, self._teacher, released, tuple(self._curve), chosen)

    def _walk(self) -> None:
        """Walk the ladder from its middle; `low` is the highest rung known to fail, `high` the lowest that keeps."""
        low, high, rung = -1, len(LADDER), _START
        for count in range(self._plan.max_candidates):
            if self._try_rung(rung, count):
                high = rung
            else:
                low = rung
            if high - low <= 1:
                return
            if high == len(LADDER):
                rung = min(rung + _STRIDE, high - 1)
            elif low == -1:
                rung = max(rung - _STRIDE, 0)
            else:
                rung = (low + high) // 2

    def _try_rung(self, rung: int, count: int) -> bool:
        rank, price = LADDER[rung]
        name = f"factors-{rung}"
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
                self._data.train, self._targets, lambda f, m: self._tell(start + f * share_of_time, f"{text}: {m}")
            )
            updated = updates.from_records(self._source, student.records())
            self._checkpoints.keep_candidate(name, updated.data)
        return self._judge("factors", rank, price, updated)

    def _post_hoc(self) -> None:
        """No rung keeps the target: encode the full retrain itself, closely, then exactly."""
        self._tell(0.95, "no low-rank update keeps the target; encoding the full retrain")
        teacher = to_source(narrowed(self._teacher or {}, self._source), self._source.table.aliases)
        if not self._judge("post-hoc", None, None, updates.from_weights(self._source, teacher)):
            updated = updates.from_weights(self._source, teacher, lossless=True)
            tried = self._measure("lossless", None, None, updated)
            self._curve.append(tried)
            self._best = (tried, updated)

    def _judge(self, method: str, rank: int | None, price: float | None, updated: Updated) -> bool:
        tried = self._measure(method, rank, price, updated)
        self._curve.append(tried)
        _log.info("candidate", extra={"candidate": asdict(tried)})
        if tried.keeps and (self._best is None or tried.update_bytes < self._best[0].update_bytes):
            self._best = (tried, updated)
        return tried.keeps

    def _measure(self, method: str, rank: int | None, price: float | None, updated: Updated) -> Tried:
        state = floats(to_torch(updated.weights))
        share: Share = recovered(
            self._scores_base, self._scores_teacher, scores(self._trainable, state, self._data.validation)
        )
        return Tried(
            method=method,
            rank=rank,
            price=price,
            update_bytes=len(updated.data),
            share=share.value,
            error=share.error,
            keeps=share.keeps(self._plan.keep),
        )


def floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with 16-bit floats widened to float32, as training and devices compute with them."""
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def narrowed(tensors: Mapping[str, Tensor], like: TensorSource) -> dict[str, Tensor]:
    """Return the tensors of the table of `like`, in its dtypes."""
    kinds = {name: t.dtype for name, t in to_torch(like).items()}
    return {name: tensors[name].to(kind) for name, kind in kinds.items()}
