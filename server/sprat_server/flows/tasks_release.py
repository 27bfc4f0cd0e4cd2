"""The worker's task that makes a release from weights trained elsewhere: the difference is encoded after the fact."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from sprat_server.compress import updates
from sprat_server.flows.graph_files import GraphFiles, graph_of_onnx, graphs_of_module
from sprat_server.flows.publishing import publish_release
from sprat_server.flows.release_files import MAX_GRAPH_BYTES, BaseRelease, as_sent, keep_files, weights_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import service as registry
from sprat_server.training import graphs, recipes
from sprat_server.training.export import Example, verify_runs
from sprat_server.training.states import check_finite, tied_names, with_tied_once
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import TensorTable


@task("create-release")
def create_release(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Make the next release of `args["model"]` from a safetensors blob with new weights, all of them sent.

    Args:
        ctx: of the job.
        args: model, weights (blob digest), base (number, None: the newest), lossless (exactly these weights); where
            tensors come, go or change their shapes: config (keys of the recipe's config that change) or, for a model
            from ONNX alone, graph (blob digest).

    Raises:
        InvalidInput: a tensor has another dtype, or holds NaN or Inf; it is named. Neither config nor graph is given
            and tensors differ, or the one that does not go with the model.
        GraphRefused: the graph does not fit the weights, or does not run.
        Conflict: a release has exactly these weights already.
    """
    ctx.progress("reading", 0.05, "reading base and new weights")
    with ctx.session() as session:
        base = BaseRelease.of(session, args["model"], args.get("base"))
    _check_origin(base, args)
    lossless = bool(args.get("lossless"))
    with weights_of(ctx.blobs, base.weights_blob) as stored, weights_of(ctx.blobs, args["weights"]) as given:
        old = as_sent(stored, base.local)
        check_finite(given)
        module, config = _module(ctx, base, args.get("config"))
        new = given if module is None else with_tied_once(given, tied_names(module))
        if config is None and args.get("graph") is None:
            _check_tables(base, old.table, new.table)
        ctx.progress("encoding", 0.2, "encoding the difference" + (" without loss" if lossless else ""))
        updated = updates.from_weights(old, new, lossless=lossless)
        check_finite(updated.weights)
        ctx.progress("verifying", 0.7, "running the graph on the new weights")
        if config is not None and module is not None:
            made = graphs_of_module(ctx, module, updated.weights, Example.of(base.example))
        elif args.get("graph") is not None:
            made = graph_of_onnx(ctx, args["graph"], updated.weights, base.example)
        else:
            made = GraphFiles(base.graph, base.probe)
            if base.example is not None:
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
                graph_blob=made.graph,
                weights_blob=files.weights,
                table=updated.weights.table,
                weights_digest=updated.digest,
                updates=files.updates,
                metrics={"lossless": lossless},
                origin="created",
                base=base.number,
                probe_blob=made.probe,
                recipe_config=config,
            )
            result = {
                "model": base.model,
                "release": release.number,
                "state": registry.state_of(session, release),
                "base": base.number,
                "weights": updated.digest,
                "update_bytes": len(updated.data),
                "model_bytes": release.model_bytes,
                "lossless": lossless,
            }
            ctx.complete(session, result)
    return result


def _check_origin(base: BaseRelease, args: Mapping[str, Any]) -> None:
    if args.get("config") is not None and base.recipe is None:
        raise InvalidInput(f"{base.model} came from ONNX and has no recipe to configure; give the new graph instead")
    if args.get("graph") is not None and base.recipe is not None:
        raise InvalidInput(f"{base.model}'s recipe makes its graphs; give what changes in the recipe's config instead")


def _module(
    ctx: JobContext, base: BaseRelease, changes: Mapping[str, Any] | None
) -> tuple[nn.Module | None, Mapping[str, Any] | None]:
    """Return the recipe's module, which alone knows what is tied, and its config where that is another."""
    if base.recipe is None:
        return None, None
    before = base.recipe.get("config") or {}
    config = {**before, **(changes or {})}
    module = recipes.build(base.recipe["factory"], config, ctx.settings.recipe_packages).module
    return module, None if config == before else config


def _check_tables(base: BaseRelease, old: TensorTable, new: TensorTable) -> None:
    """Refuse other tensors under the graph of the base; dtypes are the encoder's affair."""
    ours, theirs = ({spec.name: list(spec.shape) for spec in table} for table in (old, new))
    way = "--graph the new ONNX file" if base.recipe is None else "--config what changes in the recipe's config"
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise InvalidInput(
                f"tensor {name!r} is {ours.get(name, 'not')} in {base.model}@{base.number} "
                f"and {theirs.get(name, 'not')} in the new weights; other shapes take another graph: give {way}"
            )
