"""The worker's task that checks a task of sites against its modules' graphs, and keeps it."""

from collections.abc import Mapping
from typing import Any

from sprat_server.flows.site_plans import CHECK_KIND
from sprat_server.flows.task_checks import checked, keep_task, signatures_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import service as registry
from sprat_server.registry.models import Dataset
from sprat_server.sites.schemas import NewTaskGraph, TaskTest
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import CODE, TensorType


@task(CHECK_KIND)
def check_task(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Check a task along every edge against the newest releases of its modules, and keep it.

    Args:
        ctx: of the job.
        args: as `NewTaskGraph`, with `by`.

    Raises:
        InvalidInput: a step does not take what flows there; the message names the edge and both types.
        Conflict: a task of this name was made meanwhile.
    """
    asked = NewTaskGraph.model_validate({key: value for key, value in args.items() if key != "by"})
    graph, fallback = asked.graph(), asked.fallback_graph()
    models = graph.models | (frozenset() if fallback is None else fallback.models)
    ctx.progress("reading", 0.1, f"the graphs of {len(models)} modules")
    with ctx.session() as session:
        releases = {name: registry.latest_release(session, registry.get_model(session, name)) for name in models}
        graphs = {name: release.graph_digest for name, release in releases.items()}
    types = checked(asked.name, graph, fallback, signatures_of(ctx, graphs))
    if asked.test is not None:
        with ctx.session() as session:
            _check_test(asked.name, asked.test, registry.get_dataset(session, asked.test.dataset), graph, types)
    with ctx.session() as session:
        keep_task(session, asked, args["by"])
        result = {"task": asked.name, "outputs": {name: str(types[source]) for name, source in graph.outputs.items()}}
        ctx.complete(session, result)
    return result


def _check_test(name: str, test: TaskTest, dataset: Dataset, graph: TaskGraph, types: Mapping[str, TensorType]) -> None:
    """Return if a task takes a dataset's samples, and answers with classes."""
    taken, given = graph.inputs[test.input], types[graph.outputs[test.output]]
    shape = tuple(dataset.input_shape)
    fits = len(taken.shape) == len(shape) + 1 and isinstance(taken.shape[0], str)
    if not fits or any(
        isinstance(one, int) and one != found for one, found in zip(taken.shape[1:], shape, strict=True)
    ):
        raise InvalidInput(f"task {name}: test: {test.input} is {taken}; samples are {list(shape)}", code=CODE)
    classes = given.shape[-1] if len(given.shape) == 2 else 0  # noqa: PLR2004 - samples, classes
    if isinstance(classes, int) and classes < dataset.classes:
        raise InvalidInput(
            f"task {name}: test: {test.output} is {given}, and the dataset has {dataset.classes} classes", code=CODE
        )
