"""The worker's tasks of sites: a plan is made of tasks and devices, and a better one looked for behind a repair."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.flows import site_between, site_building, site_improvements, site_measures, site_plans
from sprat_server.flows.site_between import Servable
from sprat_server.flows.site_building import DeviceSize, ModuleSize
from sprat_server.flows.site_improvements import IMPROVE_KIND, Found
from sprat_server.flows.site_plans import PLAN_KIND
from sprat_server.flows.site_trials import ModuleFiles, TaskWorse, tried
from sprat_server.flows.task_checks import checked, signatures_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.observe.actors import SYSTEM
from sprat_server.placement.gain import SLIGHT, Gain, gain, priced
from sprat_server.placement.plan import Plan, cost_of
from sprat_server.placement.program import Proven
from sprat_server.placement.sequence import Releases
from sprat_server.placement.site import Site as PlacedSite
from sprat_server.placement.solve import Placement, place, repair
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release
from sprat_server.sites import records
from sprat_server.sites.models import Site, SitePlanRow, SiteTask
from sprat_server.sites.schemas import NewSitePlan, TaskTest
from sprat_server.sites.states import Cause, PlanStatus
from sprat_server.sites.trials import Trial
from sprat_shared.errors import InvalidInput
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import TensorType

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
        site, repairs = records.get_site(session, args["site"]), args.get("repairs")
        given = _given(session, site, asked, alone=repairs is not None, repairs=repairs)
    types = _types(ctx, given)
    trials = _tried(ctx, given)
    placement: dict[str, Any] | None = None
    routes: site_building.Routes = {}
    if given.asked.hosts is None:
        ctx.progress("placing", 0.6, f"{len(given.sizes)} modules on {len(given.devices)} devices")
        hosts, routes, placement = _placed(given, types)
        placement["figures"] = given.figures
    else:
        hosts = given.asked.hosts
    plan, steps = _rows(ctx, given, types, _content(given, hosts, routes, placement, trials), args["by"])
    plan.cause, plan.parent = (Cause.REPAIR if "repairs" in args else Cause.ASKED).value, args.get("repairs")
    with ctx.session() as session:
        site = records.get_site(session, args["site"])
        records.add_plan(session, site, plan, steps)
        if args.get("apply"):
            site_plans.apply(session, ctx.blobs, ctx.settings, site.name, plan.number, SYSTEM)
        result = {"site": site.name, "plan": plan.number}
        ctx.complete(session, result)
    return result


@task(IMPROVE_KIND)
def improve_site(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Place all of what a repair serves anew, nothing pinned, and keep what that would bring; done once for each.

    Where it pays and the site repairs itself, the plan is applied (`site_improvements`).

    Args:
        ctx: of the job.
        args: site (name), improves (the number of the repair).

    Raises:
        NotFound: what was there when it was asked for is there no more.
    """
    with ctx.session() as session:
        site = records.get_site(session, args["site"])
        plan = records.get_plan(session, site, args["improves"])
        if not site_improvements.is_due(session, site, plan):
            result = site_improvements.result_of(site, plan)
            ctx.complete(session, result)
            return result
        asked, within_s, uplink = site_plans.asked_anew(plan), site.pays_within_s, site.uplink_mbit
        content = plan.content
    try:
        with ctx.session() as session:
            given = _given(session, records.get_site(session, args["site"]), asked, alone=True)
        before = site_building.plan_of(content, asked, {one: said.name for one, said in given.devices.items()})
        types = _types(ctx, given)
        ctx.progress("placing", 0.2, f"{len(given.sizes)} modules on {len(given.devices)} devices")
        better = _improved(given, types, before, within_s, uplink)
        found = None
        if better is not None:
            row, steps = _rows(ctx, given, types, better[0], str(SYSTEM))
            found = Found(plan=row, steps=steps, gained=better[1])
    except InvalidInput as bad:
        with ctx.session() as session:
            result = site_improvements.keep(session, args["site"], args["improves"], None, why=str(bad))
            ctx.complete(session, result)
        return result
    with ctx.session() as session:
        result = site_improvements.keep(session, args["site"], args["improves"], found)
        site_improvements.adopt(session, ctx.blobs, ctx.settings, args["site"], args["improves"])
        ctx.complete(session, result)
    return result


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What a plan is made of, as it stood in one transaction.

    Attributes:
        site: its name.
        asked: of the plan, of devices that are there,
        known: and with what was measured where people said nothing.
        figures: by which it is placed, each with where it is from.
        tasks: by name, as `_told`.
        graphs: of them,
        fallbacks: and theirs.
        devices: of the site.
        releases: model -> what a plan's content says of its release.
        files: model -> graph and weights.
        sizes: by model.
        staying: model -> devices where it stays, if there is a placement so.
        serving: task -> its graph and files by the plan that serves.
        before: the plan that serves: what was asked of it, and its content; None: none does.
    """

    site: str
    asked: NewSitePlan
    known: NewSitePlan
    figures: Mapping[str, Any]
    tasks: Mapping[str, Mapping[str, Any]]
    graphs: Mapping[str, TaskGraph]
    fallbacks: Mapping[str, TaskGraph | None]
    devices: Mapping[UUID, DeviceSize]
    releases: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, ModuleFiles]
    sizes: Mapping[str, ModuleSize]
    staying: Mapping[str, frozenset[str]]
    serving: Mapping[str, tuple[TaskGraph, dict[str, ModuleFiles]]]
    before: tuple[NewSitePlan, Mapping[str, Any]] | None


def _given(
    session: Session,
    site: Site,
    asked: NewSitePlan,
    *,
    alone: bool,
    repairs: int | None = None,
    told: Mapping[str, Mapping[str, Any]] | None = None,
) -> _Given:
    """Read what a plan is made of.

    Args:
        session: the caller's transaction.
        site: of it.
        asked: of it.
        alone: nobody is there to say more, where little is known of a module.
        repairs: the plan whose modules stay, as far as its devices are there.
        told: tasks as a plan has them; None: as they are now.
    """
    tasks = {name: _told(records.get_task(session, name)) for name in asked.tasks} if told is None else told
    graphs = {name: TaskGraph.of(said["graph"]) for name, said in tasks.items()}
    fallbacks = {
        name: None if said["fallback"] is None else TaskGraph.of(said["fallback"]) for name, said in tasks.items()
    }
    models = {model for one in (*graphs.values(), *fallbacks.values()) if one is not None for model in one.models}
    rows = records.devices_of(session, site)
    devices = site_measures.device_sizes(session, rows)
    staying = _staying(session, site, repairs, devices)
    if repairs is not None:
        asked = site_building.without(asked, frozenset(one.name for one in devices.values()))
    releases = _releases(session, asked, sorted(models))
    known = site_measures.filled(session, rows, asked, releases, repairs=alone)
    links = {devices[device].name: one.as_json() for device, one in site_measures.links(session, rows).items()}
    before = records.in_state(session, site.id, PlanStatus.SERVING)
    return _Given(
        site=site.name,
        known=known.asked,
        figures={"modules": known.figures, "links": links},
        before=None if before is None else (site_plans.asked_anew(before), before.content),
        asked=asked,
        tasks=tasks,
        graphs=graphs,
        fallbacks=fallbacks,
        devices=devices,
        releases={name: {"release": one.number, "id": one.release_id} for name, one in releases.items()},
        files={name: ModuleFiles(one.graph_digest, one.weights_blob) for name, one in releases.items()},
        sizes={name: _size(session, site, known.asked, one, devices) for name, one in releases.items()},
        staying=staying,
        serving=_serving(session, site),
    )


def _types(ctx: JobContext, given: _Given) -> dict[str, Mapping[str, TensorType]]:
    """Return what flows in each task; InvalidInput where something does not fit, by name and release."""
    signatures = signatures_of(ctx, {name: one.graph for name, one in given.files.items()})
    try:
        return {name: checked(name, graph, given.fallbacks[name], signatures) for name, graph in given.graphs.items()}
    except InvalidInput as bad:
        of = ", ".join(f"{name}@{said['release']}" for name, said in sorted(given.releases.items()))
        raise InvalidInput(f"{bad} (of {of})", code=bad.code) from bad


def _content(
    given: _Given,
    hosts: Mapping[str, Sequence[str]],
    routes: site_building.Routes,
    placement: Mapping[str, Any] | None,
    trials: Sequence[Trial],
) -> dict[str, Any]:
    ids = {one.name: device for device, one in given.devices.items()}
    return {
        "modules": {
            name: {
                **said,
                "hosts": [str(ids[host]) for host in hosts[name]],
                "memory_bytes": given.sizes[name].memory_bytes,
            }
            for name, said in sorted(given.releases.items())
        },
        "tasks": {
            name: {key: said[key] for key in ("graph", "fallback", "deadline_s")}
            | {
                "routes": {
                    str(ids[device]): {step: [str(ids[host]) for host in taken] for step, taken in way.items()}
                    for device, way in routes.get(name, {}).items()
                }
            }
            for name, said in given.tasks.items()
        },
        "placement": placement,
        "tests": [one.as_json() for one in trials],
    }


def _rows(
    ctx: JobContext, given: _Given, types: Mapping[str, Mapping[str, TensorType]], content: dict[str, Any], by: str
) -> tuple[SitePlanRow, list[SitePlanRow]]:
    """Return a plan as it is to be kept, and the plans in between where devices cannot hold it beside what serves."""
    plan = SitePlanRow(asked=given.asked.model_dump(mode="json"), content=content, made_by=by)
    if given.before is None or not site_between.is_short(given.before[1], content, given.devices):
        return plan, []
    before = given.before[1]
    ctx.progress("leading", 0.9, "plans in between, as a device has no room for two at once")
    new, old = _servable(given, types, content, before, by), None
    if site_between.names_of(before) != site_between.names_of(content):
        old = _servable_before(ctx, given, before, content, by)
    proven, steps = site_between.steps(before, content, given.devices, old, new, seconds=given.asked.seconds)
    plan.content = content | {"between": {"proven": proven.value, "steps": len(steps)}}
    return plan, steps


def _servable(
    given: _Given,
    types: Mapping[str, Mapping[str, TensorType]],
    content: Mapping[str, Any],
    other: Mapping[str, Any],
    by: str,
) -> Servable:
    """Return what a plan in between may be that serves the same releases as a plan of this content."""
    asked = given.asked
    if asked.hosts is None:
        wishes = site_building.wishes(asked, given.sizes, site_building.fallback_hosts(asked, given.fallbacks))
        wishes = replace(wishes, survives_one=False, replicas=max(asked.replicas, 2 if asked.survives_one else 1))
        releases = Releases(site=_site_of(given, types), wishes=wishes, names=site_between.names_of(content))
    else:
        releases = site_between.by_hand(content, [other], given.devices)

    def written(plan: Plan) -> SitePlanRow:
        hosts = site_building.hosts_in_order(plan, releases.site)
        routes = site_building.routes(asked, plan) if asked.hosts is None else {}
        said = asked if asked.hosts is None else asked.model_copy(update={"hosts": hosts})
        made = _content(given, hosts, routes, None, [])
        return SitePlanRow(asked=said.model_dump(mode="json"), content=made, made_by=by)

    return Servable(releases=releases, written=written)


def _servable_before(
    ctx: JobContext, given: _Given, before: Mapping[str, Any], content: Mapping[str, Any], by: str
) -> Servable | None:
    """Return the same of what serves now; None where that cannot be made of what is still there."""
    assert given.before is not None  # noqa: S101 - there is a plan before
    tasks = {name: {**said, "test": None} for name, said in before["tasks"].items()}
    try:
        asked = site_building.without(given.before[0], frozenset(one.name for one in given.devices.values()))
        with ctx.session() as session:
            old = _given(session, records.get_site(session, given.site), asked, alone=True, told=tasks)
        return _servable(old, _types(ctx, old), before, content, by)
    except InvalidInput:
        return None


def _tried(ctx: JobContext, given: _Given) -> list[Trial]:
    """Return how each task with a test does on it, beside the plan that serves; TaskWorse where one does worse."""
    trials = []
    for at, (name, said) in enumerate(sorted(given.tasks.items())):
        if said["test"] is not None:
            ctx.progress("trying", 0.1 + 0.5 * at / len(given.tasks), f"task {name} on its samples")
            test, new = TaskTest.model_validate(said["test"]), (given.graphs[name], dict(given.files))
            trials.append(tried(ctx, name, test, new, _comparable(given.serving.get(name), test)))
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


def _placed(
    given: _Given, types: Mapping[str, Mapping[str, TensorType]]
) -> tuple[dict[str, list[str]], site_building.Routes, dict[str, Any]]:
    """Return the hosts of each module, which of them each step is sent to, and how good that is.

    Modules of fallbacks are where those are needed; what stays moves only where there is no placement else.
    """
    asked, site = given.known, _site_of(given, types)
    wishes = site_building.wishes(asked, given.sizes, site_building.fallback_hosts(asked, given.fallbacks))
    if given.staying:
        found = repair(site, wishes, given.staying, seconds=asked.seconds, clock=time.monotonic)
    else:
        found = place(site, wishes, seconds=asked.seconds, clock=time.monotonic)
    if (plan := found.answer.plan) is None:
        raise _no_placement(asked, found)
    ordered, routes = site_building.hosts_in_order(plan, site), site_building.routes(asked, plan)
    return ordered, routes, _quality(found)


def _improved(
    given: _Given, types: Mapping[str, Mapping[str, TensorType]], before: Plan, within_s: float, uplink: float | None
) -> tuple[dict[str, Any], Gain] | None:
    """Return the plan that gains most above what it costs, and what it brings; where none pays, the best as was asked.

    None where no plan is better than the one before.
    """
    site, asked = _site_of(given, types), given.known
    for module, hosts in before.hosts.items():
        if unknown := sorted(hosts - site.module[module].seconds.keys()):
            raise InvalidInput(f"nothing is known of how long {module} takes on {unknown[0]}", code="site.bad-plan")
    plain = site_building.wishes(asked, given.sizes, site_building.fallback_hosts(asked, given.fallbacks))
    links = site_building.link_s(list(given.devices.values()), uplink)
    for survives in (True, False) if asked.survives_one else (False,):
        wishes = replace(plain, survives_one=survives)
        for seen, wish in ((priced(site, within_s), replace(wishes, link_s=links)), (site, wishes)):
            found = place(seen, wish, seconds=asked.seconds, clock=time.monotonic, known=before)
            if (plan := found.answer.plan) is None:
                break
            worth, gained = cost_of(seen, wish, before), gain(site, replace(wish, link_s=links), before, plan, within_s)
            better = found.answer.total < worth.total * (1 - SLIGHT) or not worth.fits
            if better and (gained.pays or seen is site):
                quality = _quality(found) | {"tasks": dict(gained.latency_after), "figures": given.figures}
                ordered, routes = site_building.hosts_in_order(plan, site), site_building.routes(asked, plan)
                return _content(given, ordered, routes, quality, []), gained
        else:
            return None
    raise _no_placement(asked, found)


def _site_of(given: _Given, types: Mapping[str, Mapping[str, TensorType]]) -> PlacedSite:
    return site_building.placed_site(given.known, given.graphs, types, list(given.devices.values()), given.sizes)


def _no_placement(asked: NewSitePlan, found: Placement) -> NoPlacement:
    twice = asked.survives_one and found.answer.proven is Proven.INFEASIBLE
    return NoPlacement(_WHY_NONE[found.answer.proven] + (_TWICE if twice else ""))


def _quality(found: Placement) -> dict[str, Any]:
    answer, cost = found.answer, found.cost
    return {
        "proven": answer.proven.value,
        "total_s": answer.total,
        "bound_s": answer.bound,
        "gap": answer.gap,
        "tasks": {task.name: 0.0 if cost is None else cost.latency[task.name] for task in found.site.tasks},
        "survives_one": found.wishes.survives_one,
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


def _size(
    session: Session, site: Site, asked: NewSitePlan, release: Release, devices: Mapping[UUID, DeviceSize]
) -> ModuleSize:
    model = session.get_one(Model, release.model_id)
    full = next(file for file in registry.updates_of(session, release) if file.base_number is None)
    slots = fleet.slots(session, device_ids=list(devices), model_id=model.id)
    held = {device for (device, _), row in slots.items() if release.number in {row.active, row.previous}}
    held |= records.hosts_serving(session, site, model.name, release.release_id) & devices.keys()
    return ModuleSize(
        memory_bytes=asked.modules[model.name].memory_bytes or 0,
        file_bytes=full.bytes,
        held=frozenset(devices[device].name for device in held),
    )


def _told(row: SiteTask) -> dict[str, Any]:
    return {"graph": row.graph, "fallback": row.fallback, "deadline_s": row.deadline_s, "test": row.test}
