"""The worker's task that takes a torch module apart: each named submodule a model, and the task that they make.

All that takes time is done first, and only blobs are kept of it; models, releases and the task are one transaction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session
from torch import nn

from sprat_server.flows.publishing import publish_release
from sprat_server.flows.release_files import ReleaseFiles, keep_files, weights_of
from sprat_server.flows.site_plans import SPLIT_KIND
from sprat_server.flows.site_trials import ModuleFiles, run_task
from sprat_server.flows.task_checks import checked, keep_task, signatures_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release
from sprat_server.sites.schemas import NewTaskGraph, NewTaskSplit
from sprat_server.training import recipes
from sprat_server.training.architecture import verify_exported
from sprat_server.training.export import BATCHES, Example, answer, export, widened
from sprat_server.training.split import Piece, Split, split
from sprat_server.training.states import check_finite, load_weights, tied_names, with_tied_once
from sprat_server.training.wiring import given
from sprat_shared.errors import Conflict, InvalidInput
from sprat_shared.wire.tensors import digest_of

RELATIVE: Final = 1e-4
"""How far the task may be from the module, relative to the largest value of an output."""
_HALF_RELATIVE: Final = 2e-2  # as graphs in float16 are compared with their modules


class ModelDiffers(Conflict):
    """There is a model of a part's name, and its newest release is not the part."""

    code = "split.model-differs"


class SplitDiffers(InvalidInput):
    """The models, run one after the other, do not compute what the module computes."""

    code = "split.differs"


@dataclass(frozen=True, slots=True)
class _Made:
    """A piece that is proven and kept as blobs.

    Attributes:
        piece: of the module.
        graph: digest of its graph.
        probe: digest of its probe graph.
        digest: over its weights.
        files: of its release 1.
        found: the release that is just this one, as its id; None: it is to be registered.
    """

    piece: Piece
    graph: str
    probe: str
    digest: str
    files: ReleaseFiles
    found: int | None


@task(SPLIT_KIND)
def split_task(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Take a recipe's module apart into models, register those that are not there, and keep the task of them.

    Args:
        ctx: of the job.
        args: as `NewTaskSplit`, with `by`.

    Raises:
        RecipeRefused, RecipeBroken: the recipe may not run here, or fails.
        WeightsMismatch, WeightsNotFinite: the weights are not the module's, or hold NaN or Inf; tensors are named.
        PartUnknown, PartCalls, NotTensors, NotTraceable, SharedWeights, PartsCircular, BadRest, WithoutWeights: the
            module cannot be taken apart so (`training.split`).
        ModelDiffers: a model of a part's name is something else.
        GraphRefused: torch cannot export a piece, or its graph computes something else.
        SplitDiffers: the task does not compute what the module computes.
        Conflict: a model or task of a name was made meanwhile.
    """
    asked = NewTaskSplit.model_validate({key: value for key, value in args.items() if key != "by"})
    example = Example.of(asked.example.model_dump())
    ctx.progress("building", 0.05, f"building {asked.recipe.factory}")
    module = _module(ctx, asked)
    ctx.progress("splitting", 0.1, f"{len(asked.parts)} parts")
    taken = split(module, example, asked.parts, asked.rest)
    made = {}
    for at, (name, piece) in enumerate(taken.pieces.items()):
        ctx.progress("exporting", 0.15 + 0.6 * at / len(taken.pieces), f"{name}: its graph, compared with torch")
        made[name] = _made(ctx, name, piece)
    types = checked(asked.name, taken.graph, None, signatures_of(ctx, {name: one.graph for name, one in made.items()}))
    ctx.progress("composing", 0.8, "running the task beside the module")
    off = _compared(ctx, module, example, taken, made)
    ctx.progress("publishing", 0.95, "signing the models")
    kept = NewTaskGraph.model_validate(
        {"name": asked.name, **taken.graph.as_json(), "deadline_s": asked.deadline_s, "replace": asked.replace}
    )
    with ctx.session() as session:
        models = {name: _published(session, ctx, name, made[name]) for name in sorted(made)}
        keep_task(session, kept, args["by"])
        result = {
            "task": asked.name,
            "models": models,
            "outputs": {name: str(types[source]) for name, source in taken.graph.outputs.items()},
            "difference": off,
            "unused": list(taken.unused),
        }
        ctx.complete(session, result)
    return result


def _module(ctx: JobContext, asked: NewTaskSplit) -> nn.Module:
    """Return the recipe's module in the weights."""
    module = recipes.build(asked.recipe.factory, asked.recipe.config, ctx.settings.recipe_packages).module
    with weights_of(ctx.blobs, asked.weights) as found:
        check_finite(found)
        load_weights(module, with_tied_once(found, tied_names(module)))
    return module


def _made(ctx: JobContext, name: str, piece: Piece) -> _Made:
    """Export a piece, and prove its graph, unless a release is just that."""
    weights, digest = piece.weights, digest_of(piece.weights)
    with ctx.session() as session:
        found = _newest(session, name)
        same = None if found is None else (found.number, found.weights_digest, found.graph_digest)
    if same is not None and same[1] != digest:
        raise ModelDiffers(f"{name}@{same[0]} has other weights than the part; choose another name for it")
    exported = export(piece.module, weights, piece.example)
    graph, probe = (ctx.blobs.put_bytes(one.data).digest for one in (exported.graph, exported.probe))
    if same is None:
        verify_exported(piece.module, weights, exported, piece.example)
    elif same[2] != graph:
        raise ModelDiffers(
            f"{name}@{same[0]} has the weights of the part, and another graph: other names or shapes of inputs or "
            "outputs; choose another name for it"
        )
    files = keep_files(ctx, weights, base=None, update=None)
    return _Made(piece, graph, probe, digest, files, None if same is None else same[0])


def _newest(session: Session, name: str) -> Release | None:
    model = session.scalar(select(Model).where(Model.name == name))
    return None if model is None else registry.latest_release(session, model)


def _compared(ctx: JobContext, module: nn.Module, example: Example, taken: Split, made: Mapping[str, _Made]) -> float:
    """Return how far the task's outputs are from the module's, relative to the largest value of each: the most."""
    inputs = {name: [example.inputs(batch)[at] for batch in BATCHES] for at, name in enumerate(example.ports)}
    files = {name: ModuleFiles(one.graph, one.files.weights) for name, one in made.items()}
    values = run_task(ctx, taken.graph, files, inputs)
    half = any(spec.dtype == "F16" for one in made.values() for spec in one.piece.weights.table)
    bound, most = _HALF_RELATIVE if half else RELATIVE, 0.0
    for at, batch in enumerate(BATCHES):
        wanted = given(answer(widened(module), example, batch), "the module")
        for one, source in zip(wanted, taken.graph.outputs.values(), strict=True):
            theirs = one.tensor.double().numpy()
            ours = values[source][at].astype(np.float64)
            off = float(np.abs(ours - theirs).max(initial=0)) if ours.shape == theirs.shape else np.inf
            relative = off / (float(np.abs(theirs).max(initial=0)) or 1.0)
            if not relative <= bound:
                raise SplitDiffers(
                    f"{one.name} of the task is {relative:.3g} of its largest value away from the module's ({bound:g} "
                    "allowed): a part may change what it is given, or another part's tensors"
                )
            most = max(most, relative)
    return most


def _published(session: Session, ctx: JobContext, name: str, made: _Made) -> dict[str, Any]:
    """Register a piece as release 1 of its model, or hold that the release that is used is still the newest."""
    if made.found is not None:
        newest = _newest(session, name)
        if newest is None or newest.number != made.found:
            raise ModelDiffers(f"{name} has a newer release than {made.found}, made meanwhile; ask again")
        return {"release": made.found, "reused": True, "state": registry.state_of(session, newest)}
    weights = made.piece.weights
    release = publish_release(
        session,
        ctx.blobs,
        ctx.settings,
        model=registry.create_model(session, name=name, recipe=None, example=made.piece.example.as_json()),
        graph_blob=made.graph,
        weights_blob=made.files.weights,
        table=weights.table,
        weights_digest=made.digest,
        updates=made.files.updates,
        metrics={},
        origin="registered",
        base=None,
        probe_blob=made.probe,
    )
    return {"release": release.number, "reused": False, "state": registry.state_of(session, release)}
