"""The worker's task that certifies a release as a near copy of another one of its model, without labels."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from sprat_server.flows.release_files import MAX_GRAPH_BYTES, weights_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import service as registry
from sprat_server.registry.samples import read_samples
from sprat_server.sharing.near_copies import certified
from sprat_server.sharing.releases import NotShareable, Release
from sprat_shared.evidence.certificate import ALPHA, samples_needed

JOB_KIND: Final = "certify"


@task(JOB_KIND)
def certify_release(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Run two releases on the inputs of a dataset, and return by how much accuracy can differ.

    Args:
        ctx: of the job.
        args: model, release, against (numbers), dataset (digest; its labels are not used), budget (largest bound that
            is wished, or None), tolerance (of a regression, or None).

    Raises:
        NotShareable: one cannot be run on the inputs, or they do not answer alike in shape.
    """
    ctx.progress("reading", 0.05, "reading releases and dataset")
    numbers = (args["against"], args["release"])
    with ctx.session() as session:
        model = registry.get_model(session, args["model"])
        rows = [registry.get_release(session, model, number) for number in numbers]
        files = [(row.graph_digest, row.weights_blob) for row in rows]
        local = [row.number for row in rows if row.local is not None]
    if local:
        raise NotShareable(
            f"devices compute tensors of {args['model']}@{local[0]} themselves, so that it is not one release "
            "but as many as there are devices"
        )
    with ctx.blobs.local(args["dataset"]) as path:
        read = read_samples(path).inputs
    inputs = np.asarray(read, dtype="float32" if np.issubdtype(read.dtype, np.floating) else read.dtype)
    ctx.progress("comparing", 0.2, f"{len(inputs)} inputs")
    with weights_of(ctx.blobs, files[0][1]) as before, weights_of(ctx.blobs, files[1][1]) as after:
        original, copy = (
            Release(f"{args['model']}@{number}", ctx.blobs.read(graph, max_bytes=MAX_GRAPH_BYTES), weights)
            for number, (graph, _), weights in zip(numbers, files, (before, after), strict=True)
        )
        found = certified(original, copy, inputs, tolerance=args["tolerance"])
    budget = args["budget"]
    share = found.disagreed / found.compared
    result = {
        "model": args["model"],
        "release": args["release"],
        "against": args["against"],
        "compared": found.compared,
        "disagreed": found.disagreed,
        "bound": found.bound,
        "confidence": 1 - ALPHA,
        "budget": budget,
        "within": None if budget is None else found.within(budget),
        "needed": None if budget is None or share >= budget else samples_needed(budget, share=share),
        "classes": {str(name): asdict(one) for name, one in sorted(found.classes.items())},
    }
    with ctx.session() as session:
        ctx.complete(session, result)
    return result
