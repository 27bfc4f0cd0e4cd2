"""What people ask of sites: tasks and plans to be made, plans shown beforehand, applied, aborted. One transaction each.

Tasks and plans are made by the worker (`tasks_sites`), which reads the graphs of modules; here only what it is asked is
checked. The private key of a plan's authority lives within `apply`, and nowhere else.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.db.blobs import Blobs
from sprat_server.fleet import service as fleet
from sprat_server.fleet.models import Device
from sprat_server.flows import direct, live, site_fetching, site_measures, site_previews, site_steps
from sprat_server.flows.site_addresses import address_of
from sprat_server.jobs import service as jobs
from sprat_server.jobs.models import Job
from sprat_server.observe.actors import Actor
from sprat_server.publish import plan_authority
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Release
from sprat_server.rollouts import quarantine
from sprat_server.settings import Settings
from sprat_server.sites import records
from sprat_server.sites.models import Site, SiteDevice, SitePlanMember, SitePlanRow, SiteTask
from sprat_server.sites.schemas import EditedSite, NewSite, NewSitePlan, NewTaskGraph, NewTaskSplit
from sprat_server.sites.states import UNDER_WAY, PlanStatus
from sprat_shared.errors import Conflict, InvalidInput, NotFound
from sprat_shared.protocol.site_plan import Member, PlannedModule, PlannedTask, SitePlan
from sprat_shared.tasks.graph import TaskGraph
from sprat_shared.tasks.types import CODE
from sprat_shared.trust.site_targets import Phase

CHECK_KIND: Final = "check-task"
SPLIT_KIND: Final = "split-task"
PLAN_KIND: Final = "plan-site"
LIFE: Final = timedelta(days=30)


class NoRoom(Conflict):
    """A device has no memory for the modules of two plans at once, and no plans in between lead to the newer one."""

    code = site_previews.NO_ROOM


def ask_task(session: Session, asked: NewTaskGraph, by: Actor) -> Job:
    """Have a worker check a task against its modules' graphs, and keep it.

    Raises:
        InvalidInput: it is no graph that ends, its fallback is of other inputs or outputs, or its test of none.
        NotFound: a model or the dataset does not exist.
        Conflict: there is a task of this name, and it is not to be replaced.
    """
    graph, fallback = asked.graph(), asked.fallback_graph()
    if fallback is not None and fallback.outputs.keys() != graph.outputs.keys():
        raise InvalidInput(f"task {asked.name}: its fallback has other outputs", code=CODE)
    for model in sorted(graph.models | (frozenset() if fallback is None else fallback.models)):
        registry.latest_release(session, registry.get_model(session, model))
    if asked.test is not None:
        registry.get_dataset(session, asked.test.dataset)
        if list(graph.inputs) != [asked.test.input] or asked.test.output not in graph.outputs:
            raise InvalidInput(
                f"task {asked.name}: test: the samples of a dataset are one input, so the task takes only "
                f"{asked.test.input}, and gives {asked.test.output}",
                code=CODE,
            )
    _require_new(session, asked.name, replaced=asked.replace)
    args = asked.model_dump(mode="json") | {"by": str(by)}
    return jobs.enqueue(session, kind=CHECK_KIND, args=args, by=by)


def ask_split(session: Session, blobs: Blobs, asked: NewTaskSplit, by: Actor) -> Job:
    """Have a worker take a torch module apart into the models of a task, and keep all of them.

    Raises:
        NotFound: the weights were not uploaded.
        Conflict: there is a task of this name, and it is not to be replaced.
    """
    registry.owned_length(session, blobs, asked.weights)
    _require_new(session, asked.name, replaced=asked.replace)
    return jobs.enqueue(session, kind=SPLIT_KIND, args=asked.model_dump(mode="json") | {"by": str(by)}, by=by)


def create_site(session: Session, asked: NewSite, by: Actor) -> Site:
    """Make a site.

    Raises:
        NotFound: a device does not exist.
        Conflict: the name is taken, or a device is of another site.
    """
    site = Site(
        name=asked.name,
        hold_s=asked.hold_s,
        switch_s=asked.switch_s,
        auto_repair=asked.auto_repair,
        pays_within_s=asked.pays_within_s,
        uplink_mbit=asked.uplink_mbit,
        created_by=str(by),
    )
    records.add_site(session, site)
    records.set_devices(session, site, _devices(session, site, asked))
    return site


def edit_site(session: Session, name: str, asked: EditedSite) -> Site:
    """Change what a site is; a plan that is there goes on as it is, the next one is of these devices.

    Raises:
        NotFound: the site or a device does not exist.
        Conflict: a device is of another site.
    """
    site = records.get_site(session, name)
    site.hold_s, site.switch_s, site.auto_repair = asked.hold_s, asked.switch_s, asked.auto_repair
    site.pays_within_s, site.uplink_mbit = asked.pays_within_s, asked.uplink_mbit
    records.set_devices(session, site, _devices(session, site, asked))
    return site


def delete_site(session: Session, name: str) -> Site:
    """Delete a site: its devices stop serving by its plan; what they run of each model stays.

    Raises:
        NotFound: there is none.
        Conflict: a plan is under way.
    """
    site_steps.lock_moves(session)
    site = records.get_site(session, name)
    if (plan := records.in_state(session, site.id, *UNDER_WAY)) is not None:
        raise Conflict(f"plan {name}/{plan.number} is {plan.state}; abort it, or let it end", code="site.busy")
    if (plan := records.in_state(session, site.id, PlanStatus.SERVING)) is not None:
        site_steps.retire(session, plan)
    records.remove_site(session, site)
    return site


def ask_plan(session: Session, name: str, asked: NewSitePlan, by: Actor) -> Job:
    """Have a worker make a plan of a site.

    Raises:
        NotFound: the site, a task, a model or a release does not exist.
        InvalidInput: a module is on no device or on one that the site has not, or what a placement needs is not said.
        Conflict: a release waits for signatures, is in quarantine, or is not one release.
    """
    site = records.get_site(session, name)
    graphs = _graphs(records.get_task(session, task) for task in asked.tasks)
    models = sorted({model for graph in graphs for model in graph.models})
    rows = records.devices_of(session, site)
    known = {_device(session, one.device_id).name for one in rows}
    _require_only("releases", asked.releases, models)
    releases = {model: _release(session, model, asked.releases.get(model)) for model in models}
    if asked.hosts is not None:
        _require_only("hosts", asked.hosts, models)
        if missing := sorted(set(models) - asked.hosts.keys()):
            raise InvalidInput(f"hosts: say on which devices {missing[0]} is", code="site.bad-plan")
        named = {device for hosts in asked.hosts.values() for device in hosts}
    else:
        _require_only("modules", asked.modules, models)
        if missing := [task for task in asked.tasks if task not in asked.at]:
            raise InvalidInput(f"at: say at which devices applications ask for {missing[0]}", code="site.bad-plan")
        named = {device for one in asked.modules.values() for device in one.seconds} | set(asked.on)
    _require_only("at", asked.at, asked.tasks)
    named |= {device for devices in asked.at.values() for device in devices}
    if strange := sorted(named - known):
        raise InvalidInput(
            f"{strange[0]} is no device of site {name}; it has {', '.join(sorted(known))}", code="site.bad-plan"
        )
    site_measures.filled(session, rows, asked, releases, repairs=False)
    args = {"site": name, "asked": asked.model_dump(mode="json"), "by": str(by)}
    return jobs.enqueue(session, kind=PLAN_KIND, args=args, by=by)


def ask_repair(session: Session, name: str, without: Sequence[str], by: Actor) -> Job:
    """Have a worker plan anew what serves, without devices that were lost; modules that still run stay where they are.

    Raises:
        NotFound: there is no such site, or it has no such device.
        Conflict: nothing serves, or no module of what serves was on a device that is of the site no more.
    """
    site = records.get_site(session, name)
    rows = records.devices_of(session, site)
    gone = {fleet.named_device(session, one).id for one in without}
    if strange := gone - {row.device_id for row in rows}:
        raise NotFound(f"device {min(strange)} is of another site, or of none", code="device.unknown")
    records.set_devices(session, site, [row for row in rows if row.device_id not in gone])
    plan = records.in_state(session, site.id, PlanStatus.SERVING)
    if plan is None or not records.lost_hosts(session, site, plan):
        why = "nothing serves" if plan is None else "all modules are on its devices"
        raise Conflict(
            f"site {name} has nothing to repair: {why}",
            code="site.nothing-to-repair",
        )
    return jobs.enqueue(session, kind=PLAN_KIND, args=repair_args(site, plan, apply=False, by=by), by=by)


def repair_args(site: Site, plan: SitePlanRow, *, apply: bool, by: Actor) -> dict[str, Any]:
    """Return what a worker is asked, to plan a site anew as a plan of it was asked for."""
    asked = asked_anew(plan).model_dump(mode="json")
    return {"site": site.name, "asked": asked, "repairs": plan.number, "apply": apply, "by": str(by)}


def asked_anew(plan: SitePlanRow) -> NewSitePlan:
    """Return what was asked of a plan, of the releases that it has."""
    releases = {model: said["release"] for model, said in plan.content["modules"].items()}
    return NewSitePlan.model_validate(plan.asked | {"releases": releases})


def apply(  # noqa: PLR0917 - which plan, and what it takes
    session: Session,
    blobs: Blobs,
    settings: Settings,
    name: str,
    number: int,
    by: Actor,
    now: datetime | None = None,
) -> SitePlanRow:
    """Have the devices of a site hold a plan: its file is made and signed, and they fetch what they lack.

    It goes on by their reports: when all are ready requests begin under it, and the plan before ends. A plan to which
    plans in between lead waits for those, and the first of them that was not applied yet is (`site_sequences`).

    Raises:
        NotFound: there is no such plan.
        Conflict: something stands in its way (`site_previews.obstacles`), a device has no room for what it would hold
            at once, or releases cannot be signed back in.
    """
    at = (now or datetime.now(UTC)).replace(microsecond=0)
    site = records.get_site(session, name)
    plan = records.get_plan(session, site, number)
    models = {model for one in (*records.steps_of(session, plan), plan) for model in one.content["modules"]}
    for one in sorted((registry.get_model(session, model) for model in models), key=lambda one: one.id):
        registry.lock_model(session, one)
    site_steps.lock_moves(session)
    plan = records.get_plan(session, site, number, lock=True)
    step = next((one for one in records.steps_of(session, plan) if one.state == PlanStatus.PLANNED), plan)
    found = [one for each in dict.fromkeys((plan, step)) for one in site_previews.obstacles(session, site, each)]
    short = site_previews.short_of_memory(session, site, plan)
    if found:
        why = "; ".join(dict.fromkeys([*found, *short]))
        raise Conflict(f"plan {name}/{number} cannot be applied: {why}", code="site.not-applicable")
    if short:
        raise NoRoom(f"plan {name}/{number} cannot be applied: {'; '.join(short)}")
    plan.wished_by = None if step is plan else plan.wished_by or str(by)
    plan.reason = None
    _hold(session, blobs, settings, site, step, at)
    after: dict[str, Any] = {"state": step.state, "digest": step.digest, "expires_at": str(step.expires_at)}
    after |= {} if step is plan else {"step_to": number}
    subject = f"site-plan:{name}/{step.number}"
    audit.record(session, by, "site.apply", subject, {"state": PlanStatus.PLANNED.value}, after)
    return plan


def _hold(  # noqa: PLR0917 - likewise
    session: Session, blobs: Blobs, settings: Settings, site: Site, plan: SitePlanRow, at: datetime
) -> None:
    """Make a plan's file, have it signed for its members, and have them fetch what they lack, in turns."""
    modules = plan.content["modules"]
    devices = [_device(session, one.device_id) for one in records.devices_of(session, site)]
    hosts = {UUID(host) for said in modules.values() for host in said["hosts"]}
    file = _file(site, plan, devices, hosts, until=at + LIFE).to_bytes()
    blob = blobs.put_bytes(file)
    registry.own_blob(session, blob.digest)
    plan.digest, plan.bytes, plan.expires_at = blob.digest, blob.length, at + LIFE
    plan.state, plan.applied_at = PlanStatus.HOLDING.value, at
    plan.deadline_at = at + timedelta(seconds=site.hold_s)
    session.add_all(
        SitePlanMember(
            plan_id=plan.id,
            device_id=device.id,
            phase=Phase.HOLD.value,
            address=address_of(device, holds=device.id in hosts),
            public_key=device.public_key,
        )
        for device in devices
    )
    session.flush()
    image = open_repository(session, settings)
    models = {model: registry.get_model(session, model) for model in modules}
    for model, said in sorted(modules.items(), key=lambda one: models[one[0]].id):
        live.bring_in(session, image, models[model], said["release"])
        direct.enqueue(session, models[model])
    site_fetching.take(session, plan, site, at, poll_s=settings.poll_interval_s)
    site_fetching.begin(session, plan, at)
    site_steps.tell(session, plan, "held", members=len(devices), deadline=str(plan.deadline_at))


def abort(session: Session, name: str, number: int, reason: str, by: Actor) -> SitePlanRow:
    """End a plan that is held, or the way to one that is wished; the one before serves on.

    Raises:
        NotFound: there is no such plan.
        Conflict: it is not held (any more).
    """
    site_steps.lock_moves(session)
    plan = records.get_plan(session, records.get_site(session, name), number, lock=True)
    if plan.wished_by is not None:
        _stop_going_to(session, plan, reason, by)
        return plan
    if plan.state != PlanStatus.HOLDING:
        raise Conflict(
            f"plan {name}/{number} is {plan.state}; abort what is held; what serves is replaced by another plan",
            code="site.wrong-state",
        )
    site_steps.stop(session, plan, PlanStatus.ABORTED, reason, by)
    return plan


def _stop_going_to(session: Session, plan: SitePlanRow, reason: str, by: Actor) -> None:
    """Have a plan be wished no more, and end the step to it that is held; one that switches serves."""
    plan.wished_by, plan.reason = None, reason
    session.flush()
    audit.record(session, by, "site.abort", f"site-plan:{site_steps.title(session, plan)}", after={"reason": reason})
    for step in records.steps_of(session, plan):
        if step.state == PlanStatus.HOLDING:
            site_steps.stop(session, records.lock(session, step.id), PlanStatus.ABORTED, reason, by)


def _file(
    site: Site, plan: SitePlanRow, devices: Sequence[Device], hosts: Collection[UUID], *, until: datetime
) -> SitePlan:
    """Return the plan as its members read it, with certificates of an authority that is forgotten at once."""
    content = plan.content
    bare = SitePlan(
        site=site.name,
        number=plan.number,
        expires_at=until,
        authority=b"",
        members=tuple(
            Member(
                device=device.id,
                name=device.name,
                address=address_of(device, holds=device.id in hosts),
                certificate=b"",
            )
            for device in devices
        ),
        modules={
            model: PlannedModule(
                model=model,
                release=said["release"],
                release_id=said["id"],
                hosts=tuple(UUID(host) for host in said["hosts"]),
            )
            for model, said in content["modules"].items()
        },
        tasks={name: _planned_task(said, {one.id for one in devices}) for name, said in content["tasks"].items()},
    )
    keys = [(device.id, device.public_key) for device in devices]
    certified = plan_authority.certify(bare.title, bare.server_name, keys, until=until)
    members = tuple(replace(one, certificate=certified.members[one.device]) for one in bare.members)
    return replace(bare, authority=certified.authority, members=members)


def _planned_task(said: Mapping[str, Any], members: Collection[UUID]) -> PlannedTask:
    """Return a task as its members read it; a device that only asked may have left since the plan was made."""
    fallback = said["fallback"]
    return PlannedTask(
        graph=TaskGraph.of(said["graph"]),
        deadline_s=said["deadline_s"],
        fallback=None if fallback is None else TaskGraph.of(fallback),
        routes={
            UUID(device): {step: tuple(map(UUID, way)) for step, way in routes.items()}
            for device, routes in said.get("routes", {}).items()
            if UUID(device) in members
        },
    )


def _devices(session: Session, site: Site, asked: EditedSite) -> list[SiteDevice]:
    rows = []
    for one in asked.devices:
        device = fleet.named_device(session, one.name)
        said = one.model_dump(exclude={"name"})
        rows.append(SiteDevice(site_id=site.id, device_id=device.id, **said))
    return rows


def _device(session: Session, device_id: UUID) -> Device:
    return fleet.get_device(session, device_id)


def _graphs(tasks: Iterable[SiteTask]) -> list[TaskGraph]:
    return [TaskGraph.of(said) for task in tasks for said in (task.graph, task.fallback) if said is not None]


def _release(session: Session, name: str, number: int | None) -> Release:
    """Return the release of a model, the newest where none is named, if it can be of a plan."""
    model = registry.get_model(session, name)
    release = (
        registry.latest_release(session, model) if number is None else registry.get_release(session, model, number)
    )
    registry.require_published(session, model, release.number)
    if release.local is not None:
        raise Conflict(
            f"devices compute tensors of {name}@{release.number} themselves, so that it is not one release but as "
            "many as there are devices; take one of which all is sent",
            code="site.not-one-release",
        )
    if (halted := quarantine.quarantined(session, model.id).get(release.number)) is not None:
        raise Conflict(
            f"{name}@{release.number} is in quarantine since rollout {halted.id} halted ({halted.reason}); take "
            "another release",
            code="release.quarantined",
        )
    return release


def _require_new(session: Session, task: str, *, replaced: bool) -> None:
    if not replaced and session.scalar(select(SiteTask.id).where(SiteTask.name == task)) is not None:
        raise Conflict(f"a task {task} exists; say --replace to replace it", code="task.exists")


def _require_only(what: str, said: Mapping[str, Any], known: Sequence[str]) -> None:
    if strange := sorted(said.keys() - set(known)):
        raise InvalidInput(
            f"{what}: the tasks have no {strange[0]}; they have {', '.join(known)}", code="site.bad-plan"
        )
