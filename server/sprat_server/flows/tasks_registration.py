"""The worker's task that registers a model: graph and probe graph, proof that they compute the same, release 1."""

from collections.abc import Mapping
from typing import Any

from sprat_server.flows.graph_files import GraphFiles, graph_of_onnx, graphs_of_module
from sprat_server.flows.publishing import publish_release
from sprat_server.flows.release_files import keep_files, weights_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import service as registry
from sprat_server.training import recipes
from sprat_server.training.export import Example
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
            weights, graphs = _from_recipe(ctx, args, given)
        else:
            ctx.progress("verifying", 0.2, "running the graph in onnxruntime")
            weights, graphs = given, graph_of_onnx(ctx, args["graph"], given, args.get("example"))
        ctx.progress("storing", 0.8, "storing weights and the full update")
        files = keep_files(ctx, weights, base=None, update=None)
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
                graph_blob=graphs.graph,
                weights_blob=files.weights,
                table=weights.table,
                weights_digest=digest_of(weights),
                updates=files.updates,
                metrics={},
                origin="registered",
                base=None,
                probe_blob=graphs.probe,
            )
            result = {
                "model": model.name,
                "release": release.number,
                "state": registry.state_of(session, release),
                "model_bytes": release.model_bytes,
                "weights": release.weights_digest,
                "graph": release.graph_digest,
                "graph_bytes": ctx.blobs.length(graphs.graph),
            }
            ctx.complete(session, result)
    return result


def _from_recipe(ctx: JobContext, args: Mapping[str, Any], given: TensorSource) -> tuple[TensorSource, GraphFiles]:
    example = Example.of(args.get("example"))
    recipe = args["recipe"]
    ctx.progress("building", 0.1, f"building {recipe['factory']}")
    module = recipes.build(recipe["factory"], recipe.get("config") or {}, ctx.settings.recipe_packages).module
    weights = with_tied_once(given, tied_names(module))
    ctx.progress("exporting", 0.2, "exporting graph and probe graph, comparing onnxruntime with torch")
    return weights, graphs_of_module(ctx, module, weights, example)
