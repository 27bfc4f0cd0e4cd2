"""The worker's task that registers a model: graph and probe graph, proof that they compute the same, release 1."""

from collections.abc import Mapping
from typing import Any

from sprat_server.flows.publishing import publish_release
from sprat_server.flows.release_files import MAX_GRAPH_BYTES, keep_files, weights_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import service as registry
from sprat_server.training import graphs, recipes
from sprat_server.training.architecture import export_verified
from sprat_server.training.export import Example, verify_runs
from sprat_server.training.graphs import Graph, GraphRefused
from sprat_server.training.states import check_finite, tied_names, with_tied_once
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import TensorSource, digest_of


@task("register-model")
def register_model(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Register `args["name"]` from a recipe and weights, or from an ONNX graph and weights, as its release 1.

    Args:
        ctx: of the job.
        args: name, weights (blob digest), recipe {factory, config} or graph (blob digest), example {shape, dtype}.

    Raises:
        WeightsMismatch, WeightsNotFinite: the weights are not the module's, or hold NaN or Inf; tensors are named.
        RecipeRefused, RecipeBroken: the recipe may not run here, or fails.
        GraphRefused: the graph does not compute what the module computes, or does not fit the weights.
        Conflict: the name is taken.
    """
    ctx.progress("reading", 0.05, "reading the weights")
    with ctx.session() as session:
        registry.check_name_is_free(session, args["name"])
    with weights_of(ctx.blobs, args["weights"]) as given:
        check_finite(given)
        if not given.table.nbytes:
            raise InvalidInput("the weights file holds no values; there is nothing to register")
        if args.get("recipe") is not None:
            weights, graph, probe = _from_recipe(ctx, args, given)
        else:
            weights, (graph, probe) = given, _from_graph(ctx, args, given)
        ctx.progress("storing", 0.8, "storing weights, graph and the full update")
        files = keep_files(ctx, weights, base=None, update=None)
        graph_blob = ctx.blobs.put_bytes(graph.data)
        probe_blob = None if probe is None else ctx.blobs.put_bytes(probe.data)
        ctx.progress("publishing", 0.95, "signing release 1")
        with ctx.session() as session:
            model = registry.create_model(
                session, name=args["name"], recipe=args.get("recipe"), example=args.get("example")
            )
            release = publish_release(
                session,
                ctx.blobs,
                ctx.settings,
                model=model,
                graph_blob=graph_blob.digest,
                weights_blob=files.weights,
                table=weights.table,
                weights_digest=digest_of(weights),
                updates=files.updates,
                metrics={},
                origin="registered",
                base=None,
                probe_blob=None if probe_blob is None else probe_blob.digest,
            )
            result = {
                "model": model.name,
                "release": release.number,
                "model_bytes": release.model_bytes,
                "weights": release.weights_digest,
                "graph": release.graph_digest,
                "graph_bytes": graph_blob.length,
            }
            ctx.complete(session, result)
    return result


def _from_recipe(
    ctx: JobContext, args: Mapping[str, Any], given: TensorSource
) -> tuple[TensorSource, Graph, Graph | None]:
    example = Example.of(args.get("example"))
    recipe = args["recipe"]
    ctx.progress("building", 0.1, f"building {recipe['factory']}")
    module = recipes.build(recipe["factory"], recipe.get("config") or {}, ctx.settings.recipe_packages).module
    weights = with_tied_once(given, tied_names(module))
    ctx.progress("exporting", 0.2, "exporting graph and probe graph, comparing onnxruntime with torch")
    exported = export_verified(module, weights, example)
    return weights, exported.graph, exported.probe


def _from_graph(ctx: JobContext, args: Mapping[str, Any], given: TensorSource) -> tuple[Graph, Graph | None]:
    ctx.progress("reading", 0.2, "reading the graph")
    model = graphs.parse(ctx.blobs.read(args["graph"], max_bytes=MAX_GRAPH_BYTES))
    found = graphs.input_example(model)
    if args.get("example") is not None:
        example = Example.of(args["example"])
    elif found is not None:
        example = Example(*found)
    else:
        raise GraphRefused("the graph's input has open dimensions besides the batch; give an example of its shape")
    graph = graphs.bind(model, given.table)
    ctx.progress("verifying", 0.5, "running the graph in onnxruntime")
    verify_runs(given, graph, example)
    return graph, None
