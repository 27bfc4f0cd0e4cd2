"""The graphs of a release, verified and in the blob store: out of a recipe's module, or out of an ONNX file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sprat_server.flows.release_files import MAX_GRAPH_BYTES
from sprat_server.jobs.tasks import JobContext
from sprat_server.training import graphs
from sprat_server.training.architecture import export_verified
from sprat_server.training.export import Example, Port, verify_runs
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
        example: of its inputs; None: as the graph says.

    Raises:
        GraphRefused: it does not fit the weights or does not run, or its input has open dimensions and no example.
    """
    model = graphs.parse(ctx.blobs.read(digest, max_bytes=MAX_GRAPH_BYTES))
    graph = graphs.bind(model, weights.table)
    verify_runs(weights, graph, _example(graphs.input_examples(model), example))
    return GraphFiles(ctx.blobs.put_bytes(graph.data).digest, None)


def _example(found: Mapping[str, tuple[tuple[int, ...], str] | None], given: Mapping[str, Any] | None) -> Example:
    """Return what the graph is run on: what was given, else what it says itself."""
    if given is None:
        open_ones = [name for name, port in found.items() if port is None]
        if open_ones:
            raise GraphRefused(
                f"the graph's input {open_ones[0]} has open dimensions besides the batch; give an example of its shape"
            )
        return Example({name: Port(*port) for name, port in found.items() if port is not None})
    example = Example.of(given)
    if len(found) == 1:
        return Example(dict.fromkeys(found, example.only))
    if example.ports.keys() != found.keys():
        raise GraphRefused(f"the graph takes {', '.join(found)}; the example is of {', '.join(example.ports)}")
    return Example({name: example.ports[name] for name in found})
