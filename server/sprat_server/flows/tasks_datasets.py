"""The worker's task for an uploaded dataset: check it, and keep what is known about it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry.models import Dataset
from sprat_server.registry.samples import UNLABELLED, LabelledSamples, read_samples
from sprat_shared.errors import Conflict


@task("validate-dataset")
def validate_dataset(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Check the file `args["blob"]` and add it to the registry as `args["name"]`; its digest names it.

    Raises:
        DatasetInvalid: the file is no dataset.
        Conflict: the registry has it under another name.
    """
    ctx.progress("reading", 0.1, f"reading {args['blob']}")
    with ctx.blobs.local(args["blob"]) as path:
        samples = read_samples(path)
        counts = {name: len(samples.indices(name)) for name in ("train", "validation", "test")}
        length = path.stat().st_size
        ctx.progress("storing", 0.9, f"{len(samples.labels)} samples, {samples.classes} classes")
        labelled = samples.labels != UNLABELLED
        result = {
            "digest": args["blob"],
            "samples": len(samples.labels),
            "classes": samples.classes,
            "splits": counts,
            "label_counts": np.bincount(samples.labels[labelled]).tolist(),
            "unlabelled": int((~labelled).sum()),
        }
        with ctx.session() as session:
            _keep(session, samples, name=args["name"], digest=args["blob"], length=length, counts=counts)
            ctx.complete(session, result)
    return result


def _keep(
    session: Session, samples: LabelledSamples, *, name: str, digest: str, length: int, counts: Mapping[str, int]
) -> None:
    if (held := session.scalar(select(Dataset).where(Dataset.digest == digest))) is not None:
        if held.name != name:
            raise Conflict(f"these bytes are the dataset {held.name!r} already; use that name, or leave {name!r} out")
        return
    session.add(
        Dataset(
            digest=digest,
            name=name,
            bytes=length,
            format=samples.format,
            samples=len(samples.labels),
            input_shape=list(samples.inputs.shape[1:]),
            input_dtype=str(samples.inputs.dtype),
            classes=samples.classes,
            train=counts["train"],
            validation=counts["validation"],
            test=counts["test"],
            given_split=samples.given_split,
        )
    )
