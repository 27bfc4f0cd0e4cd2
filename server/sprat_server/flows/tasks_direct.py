"""The worker's task that builds direct updates: from a release that devices hold straight to a newer one."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

import structlog

from sprat_server.compress.direct import Step, direct_update
from sprat_server.flows import direct
from sprat_server.flows.direct import Wanted
from sprat_server.flows.publishing import publish_updates
from sprat_server.flows.release_files import as_sent, weights_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_shared.errors import SpratError, TryLater
from sprat_shared.wire.tensors import TensorSource

_MOST_AT_ONCE: Final = 8  # built by one job; what is left goes to the next, so that other jobs get their turn

_log = structlog.get_logger(__name__)


@task(direct.JOB_KIND)
def build_direct_updates(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Build direct updates of `args["model"]` that would help, for most devices first, and publish those that pay.

    Each build is kept as soon as it is done, so a job that is taken up again goes on where it was. One job of a model
    is queued or runs at a time (`jobs.service.enqueue_once`); this one asks for the next itself.
    """
    built: list[dict[str, Any]] = []
    for ordinal in range(_MOST_AT_ONCE):
        with ctx.session() as session:
            model = registry.get_model(session, args["model"])
            left = direct.unknown(session, model)
        if not left:
            break
        one = left[0]
        ctx.progress("building", ordinal / _MOST_AT_ONCE, f"from @{one.base} to @{one.target}, {len(left)} to go")
        blob, length = _build(ctx, args["model"], one)
        with ctx.session() as session:
            model = registry.get_model(session, args["model"])
            registry.add_direct_build(session, model, base=one.base, number=one.target, blob=blob, length=length)
        present = one.present_bytes // one.devices
        built.append({"base": one.base, "release": one.target, "bytes": length, "instead_of_bytes": present})
    ctx.progress("publishing", 0.95, "signing what pays")
    with ctx.session() as session:
        model = registry.get_model(session, args["model"])
        registry.lock_model(session, model)
        worth = direct.worthwhile(session, model)
        publish_updates(session, ctx.settings, model=model, updates=worth)
        published = [{"base": update.base, "release": number, "bytes": update.length} for number, update in worth]
        result = {"model": args["model"], "built": built, "published": published}
        ctx.complete(session, result)
        if direct.unknown(session, model):
            direct.enqueue(session, model)
    return result


def _build(ctx: JobContext, name: str, one: Wanted) -> tuple[str | None, int | None]:
    """Return blob and length of a direct update; None where there is none that is smaller than what there is."""
    with ctx.session() as session:
        model = registry.get_model(session, name)
        hops = paths.cheapest_route(registry.all_updates(session, model), one.base, one.target) or []
        route = [(hop.update.base_number, hop.update.blob, hop.undone) for hop in hops]
        numbers = {one.base, one.target, *(base for base, _, _ in route if base is not None)}
        releases = {number: registry.get_release(session, model, number) for number in numbers}
        blobs = {number: (release.weights_blob, release.local) for number, release in releases.items()}
    try:
        with ExitStack() as opened:
            weights: dict[int, TensorSource] = {
                number: as_sent(opened.enter_context(weights_of(ctx.blobs, blob)), local)
                for number, (blob, local) in blobs.items()
            }
            steps = [
                Step(ctx.blobs.read(blob, max_bytes=ctx.blobs.length(blob)), weights[base].table, undone=undone)
                for base, blob, undone in route
                if base is not None
            ]
            local = blobs[one.target][1]
            tensors = () if local is None else local.tensors
            most = one.present_bytes // one.devices - paths.FILE_BYTES - 1
            data = direct_update(weights[one.base], weights[one.target], steps, local=tensors, most_bytes=most)
    except TryLater:
        raise
    except SpratError as why:  # such a pair is not tried again: devices go on as they can now
        _log.warning("direct-updates.none", model=name, base=one.base, release=one.target, code=why.code, why=str(why))
        return None, None
    return (None, None) if data is None else (ctx.blobs.put_bytes(data).digest, len(data))
