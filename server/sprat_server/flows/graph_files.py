"""The graphs of a release, verified and in the blob store: out of a recipe's module, or out of an ONNX file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sprat_server.flows.release_files import MAX_GRAPH_BYTES
from sprat_server.jobs.tasks import JobContext
from sprat_server.training import graphs
from sprat_server.training.architecture import export_verified
from sprat_server.training.export import Example, verify_runs
from sprat_server.training.graphs import GraphRefused
from sprat_shared.wire.tensors import TensorSource


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """Digests of a graph and, where there is one, of its probe graph."""

    graph: str
    probe: str | None


def graphs_of_module(ctx: JobContext, module: nn.Module, weights: TensorSource, example: Example) -> GraphFiles:
    """Export a recipe's module; see `export_verified`."""
    exported = export_verified(module, weights, example)
    graph, probe = (ctx.blobs.put_bytes(one.data).digest for one in (exported.graph, exported.probe))
    return GraphFiles(graph, probe)


def graph_of_onnx(ctx: JobContext, digest: str, weights: TensorSource, example: Mapping[str, Any] | None) -> GraphFiles:
    """Take the weights out of an uploaded ONNX file and run it on those given.

    Args:
        ctx: of the job.
        digest: of the file.
        weights: of the release.
        example: shape and dtype of one input; None: as the graph says.

    Raises:
        GraphRefused: it does not fit the weights or does not run, or its input has open dimensions and no example.
    """
    model = graphs.parse(ctx.blobs.read(digest, max_bytes=MAX_GRAPH_BYTES))
    found = graphs.input_example(model)
    if example is None and found is None:
        raise GraphRefused("the graph's input has open dimensions besides the batch; give an example of its shape")
    graph = graphs.bind(model, weights.table)
    verify_runs(weights, graph, Example(*found) if example is None and found is not None else Example.of(example))
    return GraphFiles(ctx.blobs.put_bytes(graph.data).digest, None)
