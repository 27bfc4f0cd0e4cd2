"""The search: the fewest encoded bytes whose decoded release meets the target, or the best that fits a budget.

A strategy's ladder is walked from its middle, bracketed, and refined between two rungs while candidates remain; each
candidate is trained, encoded, decoded, and judged on the validation split as decoded. `auto` walks the ladder of
low-rank factors, then that of the hashed subspace near the size that was found. Where no rank is enough, it trains
every value on its grid, then cuts the full retrain itself, at last sends it without loss. What was trained is kept in
a checkpoint folder, so that a second attempt goes on.
"""

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

from torch import Tensor

from sprat_server.compress.updates import Updated
from sprat_server.training.bracket import Bracket
from sprat_server.training.checkpoints import Checkpoints
from sprat_server.training.data import TrainingData, with_replay
from sprat_server.training.evaluate import Run, Share, lost, recovered, scores
from sprat_server.training.lesson import Lesson, teacher_outputs
from sprat_server.training.local import LocalNorms
from sprat_server.training.norms import shifted_norms
from sprat_server.training.recipes import Trainable
from sprat_server.training.states import floats, to_torch
from sprat_server.training.strategies import (
    DENSE,
    FACTORS,
    LOSSLESS,
    POST_HOC,
    SUBSPACE,
    Choice,
    Pace,
    Rung,
    Strategy,
)
from sprat_server.training.targets import Aim, Target, Tried
from sprat_server.training.teacher import Progress, TeacherPlan, train_teacher
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import TensorSource

_log: Final = logging.getLogger(__name__)

_TEACHER: Final = 0.25  # of the time of a retrain
_FACTORS_OF_SIX: Final = 4  # of six candidates of `auto`; the others are the subspace's
_SMALLER: Final = 0.75  # of the best file so far: where the subspace is tried first
_BYTES_A_COEFFICIENT: Final = 0.25  # of a subspace's file, about
_FEW_NUMBERS: Final = frozenset({FACTORS.method, SUBSPACE.method})
_ENCODING: Final = 0.95  # where the last resorts begin


class LocalStatisticsLose(InvalidInput):
    """With norm statistics of the inputs that devices meet, no update is good enough."""

    code = "retrain.local-statistics"


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What is searched for.

    Attributes:
        target: what the decoded release must reach on the validation split.
        strategy: how updates are made.
        max_candidates: so many are tried at most, besides the full retrain itself.
        pace: of each candidate's training.
    """

    target: Target
    strategy: Choice = "auto"
    max_candidates: int = 6
    pace: Pace = field(default_factory=Pace)


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
        note: what an operator should know about how it came to that; None where all went as usual.
        local: the release's norms whose statistics each device computes; in `released` they are of the train split.
    """

    updated: Updated
    base: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    released: Mapping[str, Tensor]
    curve: tuple[Tried, ...]
    chosen: Tried
    note: str | None = None
    local: LocalNorms | None = None


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
    deployed: Run | None = None,
    local: Collection[str] = (),
) -> Retrained:
    """Retrain fully, then find the smallest update that meets the target, or the best one that fits its budget.

    Args:
        trainable: its module in the base's weights, as float32.
        base: the exact weights that devices have.
        data: train and validation split; samples without a label in the first take part in distillation only.
        teacher: how the full retrain runs.
        search: what is searched for.
        progress: told the fraction of the whole and a sentence; raises to cancel.
        checkpoints: what an earlier attempt finished, and where this one keeps its own.
        retained: train and validation split of an old domain that is to be kept: its samples are replayed among the
            new ones, in the full retrain and in each candidate, and each candidate is judged on both validation splits.
        deployed: the base as devices run it, where the recipe's config has changed since, or where they compute some
            of its tensors; gains are measured from it.
        local: names of the tensors that devices shall compute themselves.

    Raises:
        NothingToLearn: the full retrain is not better than the base.
        BudgetTooSmall: no update that was found fits the budget.
        LocalStatisticsLose: not even the full retrain's weights are good enough with statistics of the inputs.
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
        deployed=deployed,
        local=LocalNorms(trainable.module, local) if local else None,
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
        deployed: Run | None,
        local: LocalNorms | None,
    ) -> None:
        self._trainable, self._source, self._validation = trainable, base, data.validation
        self._old = None if retained is None else retained.validation
        self._train = data.train if retained is None else with_replay(data.train, retained.train, seed=plan.pace.seed)
        self._teacher_plan, self._plan, self._checkpoints = teacher, plan, checkpoints
        self._tell, self._deployed, self._local = progress, deployed, local
        self._curve: list[Tried] = []
        self._best: tuple[Tried, Updated] | None = None

    def run(self) -> Retrained:
        held = floats(to_torch(self._source))
        self._lesson = lesson = self._taught(held)
        base = self._deployed or Run(self._trainable, held)
        self._scores_base = scores(base.trainable, base.state, self._validation, base.local)
        self._scores_teacher = scores(self._trainable, lesson.teacher, self._validation)
        if self._old is not None:  # what is kept: as the base has it, or where even the full retrain loses, as that
            runs = (base, Run(self._trainable, lesson.teacher))
            both = [scores(run.trainable, run.state, self._old, run.local) for run in runs]
            self._scores_old = min(both, key=lambda given: float(given.mean()))
        self._aim = Aim(self._plan.target, float((self._scores_teacher - self._scores_base).mean()))
        self._try_strategies()
        if self._best is None:  # lossless has the teacher's own weights, but with local statistics not its function
            best = max(self._curve, key=lambda tried: tried.share)
            raise LocalStatisticsLose(
                f"with norm statistics of devices' inputs the best update tried keeps {100 * best.share:.1f} % of the "
                "full retrain's gain; retrain without local statistics, or ask for less"
            )
        chosen, updated = self._best
        released = floats(to_torch(updated.weights))
        if self._local is not None:
            released = self._local.estimated(released, self._train.inputs)
        curve = tuple(self._curve)
        return Retrained(updated, held, lesson.teacher, released, curve, chosen, self._note(), self._local)

    def _taught(self, held: Mapping[str, Tensor]) -> Lesson:
        """Return the full retrain and what candidates learn from it, from the state that devices hold."""
        local, base = self._local, held
        if local is not None:
            base = local.estimated(held, self._train.inputs)
        teacher = self._checkpoints.teacher()
        if teacher is None:
            teacher = train_teacher(
                self._trainable,
                TrainingData(self._train.labelled(), self._validation),
                self._teacher_plan,
                lambda f, m: self._tell(_TEACHER * f, m),
                old=self._old,
            )
            self._checkpoints.keep_teacher(teacher)
        norms = shifted_norms(self._trainable.module, base, self._train)
        return Lesson(
            trainable=self._trainable,
            source=self._source,
            base=base,
            teacher=teacher,
            norms={name: value for name, value in norms.items() if local is None or not local.owns(name)},
            train=self._train,
            targets=teacher_outputs(self._trainable, teacher, self._train),
            local=local,
        )

    def _try_strategies(self) -> None:
        """Walk the ladders that the plan's strategy has, and where none is enough, what always is."""
        most = self._plan.max_candidates
        match self._plan.strategy:
            case "factors":
                used_up = self._walk(FACTORS, most)
            case "subspace":
                used_up = self._walk(SUBSPACE, most)
            case "full":
                used_up = self._walk(POST_HOC, most)
            case "auto":
                used_up = self._walk_all(most)
        if self._best is None and self._aim.budget is not None:
            raise self._aim.unmet(self._curve)
        if self._best is None or (used_up and self._aim.budget is not None):
            self._last_resorts()

    def _walk_all(self, most: int) -> bool:
        """Walk factors, then the subspace near what they found, or values where no rank was enough."""
        used_up = self._walk(FACTORS, most, reserve=most - math.ceil(most * _FACTORS_OF_SIX / 6))
        left = most - len(self._curve)
        if used_up:
            self._walk(DENSE, left)
        elif (near := self._subspace_near()) is not None:
            self._walk(SUBSPACE, left, start=near)
        return used_up

    def _subspace_near(self) -> int | None:
        """Return the rung of the subspace that should take a little less than the best file, or fill the budget."""
        if self._best is None and self._aim.budget is None:
            return None
        wanted = self._aim.budget or _SMALLER * self._best[0].update_bytes  # type: ignore[index]  # one of the two
        steps = [abs(math.log(_BYTES_A_COEFFICIENT * (rung.coefficients or 1) / wanted)) for rung in SUBSPACE.ladder]
        nearest = min(range(len(steps)), key=steps.__getitem__)
        return nearest if steps[nearest] < math.log(2) or nearest == 0 else None

    def _walk(self, strategy: Strategy, most: int, *, start: int | None = None, reserve: int = 0) -> bool:
        """Walk a ladder from `start`, at most `most` candidates; say whether its last rung has too few bytes.

        Of these `reserve` are kept for another ladder, for a share once something is found that has it.
        """
        bracket = Bracket(len(strategy.ladder), strategy.start if start is None else start)
        begun = len(self._curve)
        while not bracket.done:
            kept = reserve if self._best or self._aim.budget else 0
            if len(self._curve) - begun >= most - kept:
                break
            tried = self._try(strategy, strategy.rung(bracket.position))
            bracket.move(wants_more_bytes=self._wants_more_bytes(tried))
        return bracket.used_up

    def _wants_more_bytes(self, tried: Tried) -> bool:
        """Say on which side the target lies; a file larger than the best that keeps a share is too large anyway."""
        if self._aim.budget is None and self._best is not None and tried.update_bytes >= self._best[0].update_bytes:
            return False
        return self._aim.wants_more_bytes(tried)

    def _last_resorts(self) -> None:
        """No rung has bytes enough: cut the full retrain itself, closely, then send it exactly."""
        if self._plan.strategy != "full":
            budget = self._aim.budget
            self._try(POST_HOC, Rung(share=None if budget is None else budget / self._source.table.nbytes))
        if self._best is None or self._aim.budget is not None:
            self._try(LOSSLESS, Rung())

    def _note(self) -> str | None:
        """Say where the full retrain's change turned out not to be low rank."""
        factors = [tried for tried in self._curve if tried.method == FACTORS.method]
        if (
            not factors
            or self._aim.budget is not None
            or any(tried.keeps for tried in self._curve if tried.method in _FEW_NUMBERS)
        ):
            return None
        best = max(factors, key=lambda tried: tried.share)
        said = f"factors of rank {best.rank} in {best.update_bytes} bytes keep {100 * best.share:.1f} % of the gain"
        if all(tried.rank != FACTORS.ladder[-1].rank for tried in factors):
            return f"the candidates were used up before factors were enough: {said}; allow more for a smaller file"
        return f"the change is not low rank: {said}, less than was asked for"

    def _try(self, strategy: Strategy, rung: Rung) -> Tried:
        """Make a candidate, or take it from an earlier attempt, and judge it."""
        name = "-".join([strategy.method, *str(rung).replace(",", "").split()])
        updated = self._checkpoints.candidate(name, self._source)
        if updated is None:
            share = (_ENCODING - _TEACHER) / self._plan.max_candidates
            start = min(_TEACHER + len(self._curve) * share, _ENCODING)
            text = " ".join(filter(None, [f"{strategy.method}:", str(rung)]))
            updated = strategy.make(
                self._lesson,
                rung,
                self._plan.pace,
                lambda f, m: self._tell(min(start + f * share, _ENCODING), f"{text}: {m}"),
            )
            self._checkpoints.keep_candidate(name, updated.data)
        tried = self._measure(strategy.method, rung, updated)
        self._curve.append(tried)
        _log.info("candidate", extra={"candidate": asdict(tried)})
        if tried.keeps and (self._best is None or self._aim.prefers(tried, self._best[0])):
            self._best = (tried, updated)
        return tried

    def _measure(self, method: str, rung: Rung, updated: Updated) -> Tried:
        state = floats(to_torch(updated.weights))
        given = scores(self._trainable, state, self._validation, self._local)
        old = None if self._old is None else scores(self._trainable, state, self._old, self._local)
        loss = None if old is None else lost(self._scores_old, old)
        share: Share = recovered(self._scores_base, self._scores_teacher, given)
        return Tried(
            method=method,
            rank=rung.rank,
            price=rung.price,
            coefficients=rung.coefficients,
            update_bytes=len(updated.data),
            share=share.value,
            error=share.error,
            accuracy=float(given.mean()),
            keeps=self._aim.met(share, len(updated.data), loss),
            accuracy_old=None if old is None else float(old.mean()),
        )
