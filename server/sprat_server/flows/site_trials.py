"""A task run whole on labelled samples, by the modules of a plan and by those that serve. For the worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sprat_server.flows.release_files import MAX_GRAPH_BYTES, weights_of
from sprat_server.jobs.tasks import JobContext
from sprat_server.registry.samples import read_samples
from sprat_server.sites.schemas import TaskTest
from sprat_server.sites.trials import Trial
from sprat_server.training.export import run
from sprat_server.training.graphs import parse, stored
from sprat_server.training.signatures import signature_of
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.wire.tensors import Array

_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class ModuleFiles:
    """What a module is run from: digests of its graph and of its weights."""

    graph: str
    weights: str


class TaskWorse(InvalidInput):
    """A task does worse by a plan than by the one that serves; the message has the task and the numbers."""

    code = "site.task-worse"


def tried(
    ctx: JobContext,
    name: str,
    test: TaskTest,
    new: tuple[TaskGraph, Mapping[str, ModuleFiles]],
    old: tuple[TaskGraph, Mapping[str, ModuleFiles]] | None,
) -> Trial:
    """Return how a task does on its test samples by new modules, beside those that serve.

    Args:
        ctx: of the job.
        name: of the task.
        test: on what.
        new: its steps in the plan, and the files of their modules by model.
        old: likewise of the plan that serves; None: the task is new there.

    Raises:
        GraphRefused: a module does not run on what flows there; the message has the runtime's reason.
    """
    with ctx.blobs.local(test.dataset) as path:
        samples = read_samples(path)
        held_out = samples.indices("test")
        inputs, labels = np.asarray(samples.inputs[held_out]), samples.labels[held_out]
    new_right = _classes(ctx, *new, test, inputs) == labels
    if old is None:
        return Trial(task=name, samples=len(labels), new_correct=int(new_right.sum()))
    old_right = _classes(ctx, *old, test, inputs) == labels
    return Trial(
        task=name,
        samples=len(labels),
        new_correct=int(new_right.sum()),
        old_correct=int(old_right.sum()),
        only_old=int((old_right & ~new_right).sum()),
        only_new=int((new_right & ~old_right).sum()),
        tolerance=test.tolerance,
    )


def _classes(
    ctx: JobContext, graph: TaskGraph, modules: Mapping[str, ModuleFiles], test: TaskTest, inputs: Array
) -> Array:
    given = inputs.astype(graph.inputs[test.input].dtype)
    batches = [given[at : at + _BATCH] for at in range(0, len(given), _BATCH)]
    values = run_task(ctx, graph, modules, {test.input: batches})
    answers = np.concatenate(values[graph.outputs[test.output]])
    return np.asarray(answers.argmax(1))


def run_task(
    ctx: JobContext, graph: TaskGraph, modules: Mapping[str, ModuleFiles], inputs: Mapping[str, Sequence[Array]]
) -> dict[str, Sequence[Array]]:
    """Run a task whole, in onnxruntime.

    Args:
        ctx: of the job.
        graph: its steps.
        modules: the files of their modules, by model.
        inputs: the batches of each of its inputs, (batch, ...).

    Returns:
        The batches of each source, `input` or `step.output`.

    Raises:
        GraphRefused: a module does not run on what flows there; the message has the runtime's reason.
    """
    values = dict(inputs)
    for step in graph.order:
        ctx.check_cancelled()
        for port, batches in _run(ctx, modules[step.model], step.inputs, values).items():
            values[f"{step.name}.{port}"] = batches
    return values


def _run(
    ctx: JobContext, files: ModuleFiles, sources: Mapping[str, str], values: Mapping[str, Sequence[Array]]
) -> dict[str, list[Array]]:
    """Run a module on all batches of what flows into it; return the batches of each of its outputs."""
    data = ctx.blobs.read(files.graph, max_bytes=MAX_GRAPH_BYTES)
    ports = signature_of(parse(data))
    count = len(values[next(iter(sources.values()))])
    batches = [[values[sources[port]][at] for port in ports.inputs] for at in range(count)]
    with weights_of(ctx.blobs, files.weights) as weights:
        answers: list[list[Any]] = run(weights, stored(data), *batches)
    return {port: [answer[at] for answer in answers] for at, port in enumerate(ports.outputs)}
