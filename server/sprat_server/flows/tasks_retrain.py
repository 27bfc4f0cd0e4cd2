"""The worker's task that retrains a model on a dataset and releases what a small update keeps of it."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sqlalchemy.exc import OperationalError
from torch import Tensor

from sprat_server.flows.graph_files import GraphFiles, graphs_of_module
from sprat_server.flows.local_statistics import plan_local, publishable, with_statistics
from sprat_server.flows.publishing import publish_release
from sprat_server.flows.release_files import MAX_GRAPH_BYTES, BaseRelease, as_sent, keep_files, weights_of
from sprat_server.jobs.tasks import JobContext, JobInterrupted, JobLost, task
from sprat_server.registry import service as registry
from sprat_server.registry.samples import LabelledSamples, Split, read_samples
from sprat_server.training import graphs, recipes
from sprat_server.training.architecture import begin
from sprat_server.training.checkpoints import Checkpoints
from sprat_server.training.data import Samples, TrainingData, check_fit
from sprat_server.training.evaluate import HeldBack, TestSamples, report
from sprat_server.training.export import Example, compare
from sprat_server.training.recipes import Trainable
from sprat_server.training.search import Retrained, SearchPlan, retrain
from sprat_server.training.states import check_finite
from sprat_server.training.strategies import Pace
from sprat_server.training.targets import Budget, Keep, MaxDrop, Target
from sprat_server.training.teacher import TeacherPlan
from sprat_shared.errors import TryLater
from sprat_shared.trust.targets import LocalStatistics
from sprat_shared.wire.tensors import TensorSource, digest_of


@task("retrain")
def retrain_model(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Retrain `args["model"]` and publish the smallest update that meets the target, or the best that fits it.

    Args:
        ctx: of the job.
        args: model, dataset (digest), retain (digest of an old domain's dataset that is to be kept, or None), base
            (number, None: the newest), one of keep (share of the gain), budget (bytes) and max_drop (0.005: half a
            point), judged on the validation split; strategy (auto | full | factors | subspace); seed, max_epochs and
            max_candidates (None: the plan's own); config (keys of the recipe's config that change, or None);
            local_statistics (devices compute those of norms themselves, as they do where the base is of that kind).

    Raises:
        DataMismatch: a dataset does not fit the model.
        NothingToLearn: a full retrain is not better than the base.
        BudgetTooSmall: no update that was found fits the budget.
        NoLocalStatistics, LocalStatisticsLose: they are asked for, and there are none, or they are not good enough.
        RecipeRefused, RecipeBroken: the recipe may not run here, or fails.
    """
    ctx.progress("reading", 0.01, "reading base and dataset")
    with ctx.session() as session:
        model = registry.get_model(session, args["model"])
        registry.check_retrainable(model)
        digests = [digest for digest in (args["dataset"], args.get("retain")) if digest is not None]
        for digest in digests:
            registry.get_dataset(session, digest)
        base = BaseRelease.of(session, args["model"], args.get("base"))
    scratch = ctx.settings.data_dir / "work" / str(ctx.job_id)
    try:
        with weights_of(ctx.blobs, base.weights_blob) as weights, ExitStack() as files:
            datasets = [files.enter_context(ctx.blobs.local(digest)) for digest in digests]
            made = _train(ctx, args, base, weights=weights, datasets=datasets, scratch=scratch)
            result = _publish(ctx, args, base, made)
    except (JobLost, JobInterrupted, TryLater, OperationalError):
        raise  # the job goes on elsewhere or later, from what is finished
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    return result


@dataclass(frozen=True, slots=True)
class _Made:
    """What is retrained, and its config where that is not the base's; `weights` are as the server keeps them."""

    done: Retrained
    weights: TensorSource
    local: LocalStatistics | None
    quality: dict[str, Any]
    graphs: GraphFiles
    config: Mapping[str, Any] | None


def _train(
    ctx: JobContext,
    args: Mapping[str, Any],
    base: BaseRelease,
    *,
    weights: TensorSource,
    datasets: Sequence[Path],
    scratch: Path,
) -> _Made:
    """Train and measure; `datasets` is the file of the new domain and, where one is to be kept, of the old."""
    recipe, example = base.recipe or {}, Example.of(base.example)
    before = recipe.get("config") or {}
    config = {**before, **(args.get("config") or {})}
    changed = config != before
    start = begin(recipe["factory"], config, weights, ctx.settings.recipe_packages, before=before if changed else None)
    data, *old = [_training_data(start.trainable, path, example) for path in datasets]
    plan = plan_local(ctx, base, start, asked=bool(args.get("local_statistics")))
    done = retrain(
        start.trainable,
        plan.base,
        data,
        teacher=_teacher_plan(args),
        search=_search_plan(args),
        progress=lambda fraction, message: ctx.progress("training", 0.02 + 0.85 * fraction, message),
        checkpoints=Checkpoints(scratch),
        retained=next(iter(old), None),
        deployed=plan.deployed,
        local=plan.tensors,
    )
    released = with_statistics(done)
    check_finite(released)
    ctx.progress("verifying", 0.88, "running the graph on the released weights")
    if changed:
        module = recipes.build(recipe["factory"], config, ctx.settings.recipe_packages).module
        release_graphs = graphs_of_module(ctx, module, released, example)
    else:
        graph = graphs.stored(ctx.blobs.read(base.graph, max_bytes=MAX_GRAPH_BYTES))
        compare(start.trainable.module, released, graph, example, "the released weights")
        release_graphs = GraphFiles(base.graph, base.probe)
    ctx.progress("reporting", 0.9, "measuring on the test split")
    held_back, *kept = [_held_back(path, example) for path in datasets]
    quality = report(
        start.trainable,
        held_back,
        retained=next(iter(kept), None),
        deployed=plan.deployed,
        base=done.base,
        teacher=done.teacher,
        released=done.released,
        local=done.local,
    )
    local = publishable(ctx, release_graphs.graph, released, plan.tensors)
    return _Made(done, released, local, quality, release_graphs, config if changed else None)


def _training_data(trainable: Trainable, dataset: Path, example: Example) -> TrainingData:
    samples = read_samples(dataset)
    data = TrainingData(_samples(samples, "train", example), _samples(samples, "validation", example))
    some = data.train.labelled()
    check_fit(trainable, some.inputs[:2], some.labels[:2], largest=samples.classes - 1)
    return data


def _teacher_plan(args: Mapping[str, Any]) -> TeacherPlan:
    plan = TeacherPlan(seed=int(args.get("seed") or 0))
    most = args.get("max_epochs")
    return plan if most is None else replace(plan, epochs=min(plan.epochs, most), min_steps=0)


def _search_plan(args: Mapping[str, Any]) -> SearchPlan:
    pace, most = Pace(seed=int(args.get("seed") or 0)), args.get("max_epochs")
    if most is not None:
        pace = replace(pace, epochs=min(pace.epochs, most), min_steps=0)
    plan = SearchPlan(target=_target(args), strategy=args.get("strategy") or "auto", pace=pace)
    candidates = args.get("max_candidates")
    return plan if candidates is None else replace(plan, max_candidates=int(candidates))


def _target(args: Mapping[str, Any]) -> Target:
    if args.get("budget") is not None:
        return Budget(int(args["budget"]))
    if args.get("max_drop") is not None:
        return MaxDrop(float(args["max_drop"]))
    return Keep(float(args["keep"]))


def _samples(samples: LabelledSamples, split: Split, example: Example) -> Samples:
    where = samples.indices(split)
    return Samples(_tensor(samples.inputs[where], example), torch.from_numpy(samples.labels[where]))


def _tensor(inputs: "np.ndarray[Any, Any]", example: Example) -> Tensor:
    """Return inputs in the dtype that the model takes; floats are float32 while training."""
    dtype = example.only.dtype
    kind = "float32" if dtype.startswith("float") else dtype
    return torch.from_numpy(np.array(inputs, dtype=kind, order="C"))


def _held_back(dataset: Path, example: Example) -> HeldBack:
    def open_test() -> TestSamples:
        samples = read_samples(dataset)
        where = samples.indices("test")
        return TestSamples(
            _tensor(samples.inputs[where], example), torch.from_numpy(samples.labels[where]), where.tolist()
        )

    return HeldBack(open_test)


def _publish(
    ctx: JobContext,
    args: Mapping[str, Any],
    base: BaseRelease,
    made: _Made,
) -> dict[str, Any]:
    done, quality = made.done, made.quality
    ctx.progress("storing", 0.93, "storing weights and updates")
    files = keep_files(ctx, made.weights, base=base.number, update=done.updated.data, local=made.local)
    digest = digest_of(as_sent(made.weights, made.local))
    ctx.progress("publishing", 0.97, "signing the release")
    curve = [asdict(tried) for tried in done.curve]
    asked = {name: args.get(name) for name in ("dataset", "retain", "keep", "budget", "max_drop", "strategy", "config")}
    told = {key: value for key, value in quality.items() if not key.startswith("test_indices")}
    if "test_indices_old" in quality:
        told["test_samples_old"] = len(quality["test_indices_old"])
    with ctx.session() as session:
        release = publish_release(
            session,
            ctx.blobs,
            ctx.settings,
            model=registry.get_model(session, base.model),
            graph_blob=made.graphs.graph,
            weights_blob=files.weights,
            table=made.weights.table,
            weights_digest=digest,
            updates=files.updates,
            metrics={
                **told,
                **asked,
                "test_samples": len(quality["test_indices"]),
                "chosen": asdict(done.chosen),
                "curve": curve,
                "note": done.note,
            },
            origin="retrained",
            base=base.number,
            probe_blob=made.graphs.probe,
            recipe_config=made.config,
            local=made.local,
        )
        result = {
            "model": base.model,
            "release": release.number,
            "base": base.number,
            "state": registry.state_of(session, release),
            "weights": digest,
            "local": release.local_names,
            "update_bytes": len(done.updated.data),
            "model_bytes": release.model_bytes,
            **asked,
            **quality,
            "method": done.chosen.method,
            "rank": done.chosen.rank,
            "validation_share": done.chosen.share,
            "chosen": asdict(done.chosen),
            "curve": curve,
            "note": done.note,
        }
        ctx.complete(session, result)
    return result
