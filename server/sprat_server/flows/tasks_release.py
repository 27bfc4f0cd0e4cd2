"""The worker's task that makes a release from weights trained elsewhere: the difference is encoded after the fact."""

from collections.abc import Mapping
from typing import Any

from sprat_server.compress import updates
from sprat_server.flows.publishing import publish_release
from sprat_server.flows.release_files import MAX_GRAPH_BYTES, BaseRelease, keep_files, weights_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import service as registry
from sprat_server.training import graphs, recipes
from sprat_server.training.export import Example, verify_runs
from sprat_server.training.states import check_finite, tied_names, with_tied_once
from sprat_shared.wire.tensors import TensorSource


@task("create-release")
def create_release(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Make the next release of `args["model"]` from a safetensors blob with new weights.

    Args:
        ctx: of the job.
        args: model, weights (blob digest), base (number, None: the newest), lossless (exactly these weights).

    Raises:
        InvalidInput: a tensor is on one side only, has another shape or dtype, or holds NaN or Inf; it is named.
        Conflict: a release has exactly these weights already.
    """
    ctx.progress("reading", 0.05, "reading base and new weights")
    with ctx.session() as session:
        base = BaseRelease.of(session, args["model"], args.get("base"))
    lossless = bool(args.get("lossless"))
    with weights_of(ctx.blobs, base.weights_blob) as old, weights_of(ctx.blobs, args["weights"]) as given:
        check_finite(given)
        new = _named_as_in(ctx, base, given)
        ctx.progress("encoding", 0.2, "encoding the difference" + (" without loss" if lossless else ""))
        updated = updates.from_weights(old, new, lossless=lossless)
        check_finite(updated.weights)
        if base.example is not None:
            ctx.progress("verifying", 0.7, "running the graph on the new weights")
            graph = graphs.stored(ctx.blobs.read(base.graph, max_bytes=MAX_GRAPH_BYTES))
            verify_runs(updated.weights, graph, Example.of(base.example))
        ctx.progress("storing", 0.8, "storing weights and updates")
        files = keep_files(ctx, updated.weights, base=base.number, update=updated.data)
        ctx.progress("publishing", 0.95, "signing the release")
        with ctx.session() as session:
            release = publish_release(
                session,
                ctx.blobs,
                ctx.settings,
                model=registry.get_model(session, base.model),
                graph_blob=base.graph,
                weights_blob=files.weights,
                table=updated.weights.table,
                weights_digest=updated.digest,
                updates=files.updates,
                metrics={"lossless": lossless},
                origin="created",
                base=base.number,
                probe_blob=base.probe,
            )
            result = {
                "model": base.model,
                "release": release.number,
                "base": base.number,
                "weights": updated.digest,
                "update_bytes": len(updated.data),
                "model_bytes": release.model_bytes,
                "lossless": lossless,
            }
            ctx.complete(session, result)
    return result


def _named_as_in(ctx: JobContext, base: BaseRelease, given: TensorSource) -> TensorSource:
    """Return the weights with tied tensors once, as they were registered; only the recipe's module knows them."""
    if base.recipe is None:
        return given
    recipe = base.recipe
    module = recipes.build(recipe["factory"], recipe.get("config") or {}, ctx.settings.recipe_packages).module
    return with_tied_once(given, tied_names(module))
