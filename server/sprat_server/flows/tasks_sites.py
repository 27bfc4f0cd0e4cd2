"""The worker's tasks of sites: a task is checked against its modules' graphs, a plan is made of tasks and devices."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.flows import site_building, site_measures, site_plans
from sprat_server.flows.site_building import DeviceSize, ModuleSize
from sprat_server.flows.site_plans import CHECK_KIND, PLAN_KIND
from sprat_server.flows.site_trials import ModuleFiles, TaskWorse, tried
from sprat_server.flows.task_checks import checked, keep_task, signatures_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.observe.actors import SYSTEM
from sprat_server.placement.program import Proven
from sprat_server.placement.site import Site as PlacedSite
from sprat_server.placement.solve import Placement, place
from sprat_server.registry import service as registry
from sprat_server.registry.models import Dataset, Model, Release
from sprat_server.sites import records
from sprat_server.sites.models import Site, SitePlanRow, SiteTask
from sprat_server.sites.schemas import NewSitePlan, NewTaskGraph, TaskTest
from sprat_server.sites.states import PlanStatus
from sprat_server.sites.trials import Trial
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import CODE, TensorType

_WHY_NONE: Final = {
    Proven.INFEASIBLE: "the modules do not fit the devices, or would keep them too busy: there is no placement",
    Proven.NOTHING: "no placement was found in the time; none is proven impossible, so give it more --seconds",
}
_TWICE: Final = (
    " that survives the loss of any one device; allow more copies (--replicas), or plan without --survive-one"
)


class NoPlacement(InvalidInput):
    """The modules of a plan cannot be placed on the devices of its site."""

    code = "site.no-placement"


@task(CHECK_KIND)
def check_task(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Check a task along every edge against the newest releases of its modules, and keep it.

    Args:
        ctx: of the job.
        args: as `NewTaskGraph`, with `by`.

    Raises:
        InvalidInput: a step does not take what flows there; the message names the edge and both types.
        Conflict: a task of this name was made meanwhile.
    """
    asked = NewTaskGraph.model_validate({key: value for key, value in args.items() if key != "by"})
    graph, fallback = asked.graph(), asked.fallback_graph()
    models = graph.models | (frozenset() if fallback is None else fallback.models)
    ctx.progress("reading", 0.1, f"the graphs of {len(models)} modules")
    with ctx.session() as session:
        releases = {name: registry.latest_release(session, registry.get_model(session, name)) for name in models}
        graphs = {name: release.graph_digest for name, release in releases.items()}
    types = checked(asked.name, graph, fallback, signatures_of(ctx, graphs))
    if asked.test is not None:
        with ctx.session() as session:
            _check_test(asked.name, asked.test, registry.get_dataset(session, asked.test.dataset), graph, types)
    with ctx.session() as session:
        keep_task(session, asked, args["by"])
        result = {"task": asked.name, "outputs": {name: str(types[source]) for name, source in graph.outputs.items()}}
        ctx.complete(session, result)
    return result


def _check_test(name: str, test: TaskTest, dataset: Dataset, graph: TaskGraph, types: Mapping[str, TensorType]) -> None:
    """Return if a task takes a dataset's samples, and answers with classes."""
    taken, given = graph.inputs[test.input], types[graph.outputs[test.output]]
    shape = tuple(dataset.input_shape)
    fits = len(taken.shape) == len(shape) + 1 and isinstance(taken.shape[0], str)
    if not fits or any(
        isinstance(one, int) and one != found for one, found in zip(taken.shape[1:], shape, strict=True)
    ):
        raise InvalidInput(f"task {name}: test: {test.input} is {taken}; samples are {list(shape)}", code=CODE)
    classes = given.shape[-1] if len(given.shape) == 2 else 0  # noqa: PLR2004 - samples, classes
    if isinstance(classes, int) and classes < dataset.classes:
        raise InvalidInput(
            f"task {name}: test: {test.output} is {given}, and the dataset has {dataset.classes} classes", code=CODE
        )


@task(PLAN_KIND)
def plan_site(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Make a plan of a site: its tasks checked against the releases that it names, modules placed or put by hand.

    Args:
        ctx: of the job.
        args: site (name), asked (as `NewSitePlan`), by; of a repair: repairs (the number of the plan whose modules stay
            where they are, as far as its devices are there), apply (whether it is applied at once).

    Raises:
        InvalidInput: a release does not fit a task (the message names it and the edge), or nothing can be placed.
        TaskWorse: a task with a test does worse than by the plan that serves.
        NotFound: what was there when it was asked for is there no more.
    """
    asked = NewSitePlan.model_validate(args["asked"])
    ctx.progress("reading", 0.05, "tasks, releases and devices")
    with ctx.session() as session:
        site = records.get_site(session, args["site"])
        tasks = {name: _told(records.get_task(session, name)) for name in asked.tasks}
        graphs = {name: TaskGraph.of(said["graph"]) for name, said in tasks.items()}
        fallbacks = {
            name: None if said["fallback"] is None else TaskGraph.of(said["fallback"]) for name, said in tasks.items()
        }
        models = {model for one in (*graphs.values(), *fallbacks.values()) if one is not None for model in one.models}
        rows = records.devices_of(session, site)
        devices = site_measures.device_sizes(session, rows)
        staying = _staying(session, site, args.get("repairs"), devices)
        if "repairs" in args:
            asked = site_building.without(asked, frozenset(one.name for one in devices.values()))
        releases = _releases(session, asked, sorted(models))
        known = site_measures.filled(session, rows, asked, releases, repairs="repairs" in args)
        sizes = {name: _size(session, known.asked, one, devices) for name, one in releases.items()}
        links = {devices[device].name: one.as_json() for device, one in site_measures.links(session, rows).items()}
        files = {name: release.graph_digest for name, release in releases.items()}
        numbers = {name: {"release": release.number, "id": release.release_id} for name, release in releases.items()}
        new = {name: ModuleFiles(one.graph_digest, one.weights_blob) for name, one in releases.items()}
        serving = _serving(session, site)
    signatures = signatures_of(ctx, files)
    try:
        types = {name: checked(name, graphs[name], fallbacks[name], signatures) for name in graphs}
    except InvalidInput as bad:
        of = ", ".join(f"{name}@{said['release']}" for name, said in sorted(numbers.items()))
        raise InvalidInput(f"{bad} (of {of})", code=bad.code) from bad
    trials = _tried(ctx, tasks, graphs, new, serving)
    placement: dict[str, Any] | None = None
    routes: site_building.Routes = {}
    if asked.hosts is None:
        ctx.progress("placing", 0.6, f"{len(sizes)} modules on {len(devices)} devices")
        alone = site_building.fallback_hosts(asked, fallbacks)
        by = known.asked, graphs, types, list(devices.values()), sizes, alone, staying
        hosts, routes, placement = _placed(*by)
        placement["figures"] = {"modules": known.figures, "links": links}
    else:
        hosts = asked.hosts
    ids = {one.name: device for device, one in devices.items()}
    content: dict[str, Any] = {
        "modules": {
            name: numbers[name]
            | {"hosts": [str(ids[host]) for host in hosts[name]], "memory_bytes": sizes[name].memory_bytes}
            for name in sorted(models)
        },
        "tasks": {
            name: {key: said[key] for key in ("graph", "fallback", "deadline_s")}
            | {
                "routes": {
                    str(ids[device]): {step: [str(ids[host]) for host in hosts_] for step, hosts_ in way.items()}
                    for device, way in routes.get(name, {}).items()
                }
            }
            for name, said in tasks.items()
        },
        "placement": placement,
        "tests": [one.as_json() for one in trials],
    }
    with ctx.session() as session:
        site = records.get_site(session, args["site"])
        plan = SitePlanRow(
            site_id=site.id,
            number=records.next_number(session, site),
            asked=asked.model_dump(mode="json"),
            content=content,
            made_by=args["by"],
        )
        session.add(plan)
        session.flush()
        if args.get("apply"):
            site_plans.apply(session, ctx.blobs, ctx.settings, site.name, plan.number, SYSTEM)
        result = {"site": site.name, "plan": plan.number}
        ctx.complete(session, result)
    return result


def _tried(
    ctx: JobContext,
    tasks: Mapping[str, Mapping[str, Any]],
    graphs: Mapping[str, TaskGraph],
    new: dict[str, ModuleFiles],
    serving: Mapping[str, tuple[TaskGraph, dict[str, ModuleFiles]]],
) -> list[Trial]:
    """Return how each task with a test does on it, beside the plan that serves; TaskWorse where one does worse."""
    trials = []
    for at, (name, said) in enumerate(sorted(tasks.items())):
        if said["test"] is not None:
            ctx.progress("trying", 0.1 + 0.5 * at / len(tasks), f"task {name} on its samples")
            test = TaskTest.model_validate(said["test"])
            trials.append(tried(ctx, name, test, (graphs[name], new), _comparable(serving.get(name), test)))
            if (why := trials[-1].refused) is not None:
                raise TaskWorse(f"task {name}: {why}, beside the plan that serves")
    return trials


def _staying(
    session: Session, site: Site, number: int | None, devices: Mapping[UUID, DeviceSize]
) -> dict[str, frozenset[str]]:
    """Return where modules of a plan are, by the names of the devices that are still there; no plan: nowhere."""
    if number is None:
        return {}
    modules = records.get_plan(session, site, number).content["modules"]
    there = {
        model: frozenset(devices[UUID(host)].name for host in said["hosts"] if UUID(host) in devices)
        for model, said in modules.items()
    }
    return {model: hosts for model, hosts in there.items() if hosts}


def _serving(session: Session, site: Site) -> dict[str, tuple[TaskGraph, dict[str, ModuleFiles]]]:
    """Return the tasks of the plan that serves, each with the files of its modules."""
    plan = records.in_state(session, site.id, PlanStatus.SERVING)
    if plan is None:
        return {}
    files = {}
    for name, said in plan.content["modules"].items():
        release = registry.get_release(session, registry.get_model(session, name), said["release"])
        files[name] = ModuleFiles(release.graph_digest, release.weights_blob)
    return {name: (TaskGraph.of(said["graph"]), files) for name, said in plan.content["tasks"].items()}


def _comparable(
    old: tuple[TaskGraph, dict[str, ModuleFiles]] | None, test: TaskTest
) -> tuple[TaskGraph, dict[str, ModuleFiles]] | None:
    """Return what serves if it can be given the same samples, and answers under the same name."""
    same = old is not None and list(old[0].inputs) == [test.input] and test.output in old[0].outputs
    return old if same else None


def _placed(  # noqa: PLR0917 - all that a placement is made of
    asked: NewSitePlan,
    graphs: Mapping[str, TaskGraph],
    types: Mapping[str, Mapping[str, TensorType]],
    devices: Sequence[DeviceSize],
    sizes: Mapping[str, ModuleSize],
    alone: Mapping[str, frozenset[str]],
    staying: Mapping[str, frozenset[str]],
) -> tuple[dict[str, list[str]], site_building.Routes, dict[str, Any]]:
    """Return the hosts of each module, which of them each step is sent to, and how good that is.

    Modules of fallbacks are where those are needed; what stays moves only where there is no placement else.
    """
    site = site_building.placed_site(asked, graphs, types, devices, sizes)
    pinned = {model: alone.get(model, frozenset()) | staying.get(model, frozenset()) for model in {*alone, *staying}}
    wishes = [site_building.wishes(asked, sizes, pinned)]
    if staying:
        wishes.append(site_building.wishes(asked, sizes, alone))
        if asked.survives_one:  # what is left may answer all, and have no time to lose one more
            wishes += [replace(one, survives_one=False) for one in wishes]
    for wish in wishes:
        found = place(site, wish, seconds=asked.seconds, clock=time.monotonic)
        if (plan := found.answer.plan) is not None:
            quality = _quality(site, found) | {"survives_one": wish.survives_one}
            return site_building.hosts_in_order(plan, site), site_building.routes(asked, plan), quality
    why = _WHY_NONE[found.answer.proven]
    raise NoPlacement(why + (_TWICE if asked.survives_one and found.answer.proven is Proven.INFEASIBLE else ""))


def _quality(site: PlacedSite, found: Placement) -> dict[str, Any]:
    answer, cost = found.answer, found.cost
    return {
        "proven": answer.proven.value,
        "total_s": answer.total,
        "bound_s": answer.bound,
        "gap": answer.gap,
        "tasks": {task.name: 0.0 if cost is None else cost.latency[task.name] for task in site.tasks},
    }


def _releases(session: Session, asked: NewSitePlan, models: Sequence[str]) -> dict[str, Release]:
    found = {}
    for name in models:
        model: Model = registry.get_model(session, name)
        number = asked.releases.get(name)
        found[name] = (
            registry.latest_release(session, model) if number is None else registry.get_release(session, model, number)
        )
    return found


def _size(session: Session, asked: NewSitePlan, release: Release, devices: Mapping[UUID, DeviceSize]) -> ModuleSize:
    model = session.get_one(Model, release.model_id)
    full = next(file for file in registry.updates_of(session, release) if file.base_number is None)
    slots = fleet.slots(session, device_ids=list(devices), model_id=model.id)
    held = {device for (device, _), row in slots.items() if release.number in {row.active, row.previous}}
    return ModuleSize(
        memory_bytes=asked.modules[model.name].memory_bytes or 0,
        file_bytes=full.bytes,
        held=frozenset(devices[device].name for device in held),
    )


def _told(row: SiteTask) -> dict[str, Any]:
    return {"graph": row.graph, "fallback": row.fallback, "deadline_s": row.deadline_s, "test": row.test}
