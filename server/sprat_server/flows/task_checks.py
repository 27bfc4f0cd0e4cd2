"""What a task is held against before it is kept: the graphs of its modules, edge by edge. For the worker."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.flows.release_files import MAX_GRAPH_BYTES
from sprat_server.jobs.tasks import JobContext
from sprat_server.sites.models import SiteTask
from sprat_server.sites.schemas import NewTaskGraph
from sprat_server.training.graphs import parse
from sprat_server.training.signatures import signature_of
from sprat_shared.errors import Conflict, InvalidInput
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import CODE, Signature, TensorType


def checked(
    name: str, graph: TaskGraph, fallback: TaskGraph | None, modules: Mapping[str, Signature]
) -> dict[str, TensorType]:
    """Return the type of each source of a task, checked along every edge; a fallback gives outputs of the same types.

    Raises:
        InvalidInput: an edge does not fit; the message names the task, the edge and both types.
    """
    try:
        types = graph.types(modules)
        if fallback is not None:
            others = fallback.types(modules)
    except InvalidInput as bad:
        raise InvalidInput(f"task {name}: {bad}", code=CODE) from bad
    for port, source in ({} if fallback is None else fallback.outputs).items():
        wanted, found = types[graph.outputs[port]], others[source]
        if not wanted.takes(found, {}):
            raise InvalidInput(f"task {name}: fallback: edge {source} -> {port}: {found}, not {wanted}", code=CODE)
    return types


def signatures_of(ctx: JobContext, graphs: Mapping[str, str]) -> dict[str, Signature]:
    """Return what modules take and give, by model.

    Args:
        ctx: of the job.
        graphs: model -> digest of its graph.

    Raises:
        InvalidInput: a graph is not of a form that tasks know; the message names the model.
    """
    found = {}
    for name, digest in graphs.items():
        try:
            found[name] = signature_of(parse(ctx.blobs.read(digest, max_bytes=MAX_GRAPH_BYTES)))
        except InvalidInput as bad:
            raise InvalidInput(f"{name} cannot be of a task: {bad}", code=CODE) from bad
    return found


def keep_task(session: Session, asked: NewTaskGraph, by: str) -> None:
    """Keep a task that was checked, in the caller's transaction.

    Raises:
        Conflict: there is one of this name, and it is not to be replaced.
    """
    row = session.scalar(select(SiteTask).where(SiteTask.name == asked.name).with_for_update())
    if row is not None and not asked.replace:
        raise Conflict(f"a task {asked.name} exists; say --replace to replace it", code="task.exists")
    if row is None:
        row = SiteTask(name=asked.name, created_by=by)
        session.add(row)
    else:
        row.replaced_at = datetime.now(UTC)
    fallback = asked.fallback_graph()
    row.graph, row.fallback = asked.graph().as_json(), None if fallback is None else fallback.as_json()
    row.deadline_s = asked.deadline_s
    row.test = None if asked.test is None else asked.test.model_dump(mode="json")
    session.flush()
