"""Local statistics in a retrain: which tensors are local, how devices run such a base, and what is published."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from sprat_server.flows.release_files import MAX_GRAPH_BYTES, BaseRelease, as_sent
from sprat_server.jobs.tasks import JobContext
from sprat_server.training.architecture import Start
from sprat_server.training.evaluate import Run
from sprat_server.training.local import LocalNorms
from sprat_server.training.search import Retrained
from sprat_server.training.states import floats, to_torch
from sprat_server.training.statistics_graph import StatisticsGraph, statistics_graph
from sprat_shared.errors import InvalidInput
from sprat_shared.trust.targets import LocalStatistics
from sprat_shared.wire.patch import held_under, under
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorSource


class NoLocalStatistics(InvalidInput):
    """The model has no norms whose statistics devices could compute."""

    code = "model.no-local-statistics"


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """What a retrain is told of local tensors.

    Attributes:
        base: the weights of the base as updates see them.
        deployed: the base as devices run it, where that is not its weights in the recipe's module.
        tensors: names of the release's local tensors; empty: everything is sent.
    """

    base: TensorSource
    deployed: Run | None
    tensors: tuple[str, ...]


def plan_local(ctx: JobContext, base: BaseRelease, start: Start, *, asked: bool) -> LocalPlan:
    """Return which tensors are to be local: those of all norms where it is asked, or where the base has such.

    Raises:
        NoLocalStatistics: there are none.
    """
    held = held_under(start.base)
    if base.local is None and not asked:
        return LocalPlan(start.base, start.deployed, ())
    made = _statistics_graph(ctx, base.graph)
    deployed = start.deployed
    if base.local is not None:
        run = deployed or Run(start.trainable, floats(to_torch(start.base)))
        own = [held.table[index].name for index in base.local.tensors]
        deployed = replace(run, local=LocalNorms(run.trainable.module, own))
    names = tuple(held.table[index].name for index in made.tensors)
    return LocalPlan(under(as_sent(held, base.local), start.base.table), deployed, names)


def with_statistics(done: Retrained) -> TensorSource:
    """Return the release's weights as the server keeps them: local statistics are those of the train split."""
    weights, own = done.updated.weights, frozenset[str]() if done.local is None else done.local.tensors
    arrays: dict[str, tuple[str, Array]] = {
        spec.name: (spec.dtype, done.released[spec.name].numpy() if spec.name in own else weights.read(index))
        for index, spec in enumerate(weights.table)
    }
    return ArrayTensors(arrays, weights.table.aliases)


def publishable(ctx: JobContext, graph: str, weights: TensorSource, names: Collection[str]) -> LocalStatistics | None:
    """Make and keep the statistics graph of a release; return what is signed, None where everything is sent.

    Args:
        ctx: of the job.
        graph: digest of the release's graph.
        weights: of the release.
        names: of its local tensors.

    Raises:
        NoLocalStatistics: the graph has other norms than those that were trained.
    """
    if not names:
        return None
    made = _statistics_graph(ctx, graph)
    if {weights.table[index].name for index in made.tensors} != set(names):
        raise NoLocalStatistics("the recipe's new config has other batch norms; retrain without local statistics")
    return LocalStatistics(graph=ctx.blobs.put_bytes(made.data).digest, tensors=made.tensors)


def _statistics_graph(ctx: JobContext, graph: str) -> StatisticsGraph:
    made = statistics_graph(ctx.blobs.read(graph, max_bytes=MAX_GRAPH_BYTES))
    if made is None:
        raise NoLocalStatistics(
            "the model has no batch norm with float32 statistics of its own; retrain without local statistics"
        )
    return made
