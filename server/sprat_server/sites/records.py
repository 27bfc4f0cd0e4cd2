"""Keep tasks, sites and their plans. Callers own the transaction."""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sprat_server.db.projects import project_of
from sprat_server.db.sets import among
from sprat_server.fleet.models import Device
from sprat_server.sites.models import Site, SiteDevice, SitePlanHost, SitePlanMember, SitePlanRow, SiteTask
from sprat_server.sites.states import SIGNED, UNDER_WAY, Cause, MemberStatus, PlanStatus
from sprat_shared.errors import Conflict, NotFound


def get_task(session: Session, name: str) -> SiteTask:
    """Return the task of this name.

    Raises:
        NotFound: there is none.
    """
    task = session.scalar(select(SiteTask).where(SiteTask.name == name))
    if task is None:
        raise NotFound(f"there is no task {name!r:.80}; `sprat task list` shows them", code="task.unknown")
    return task


def plans_with_task(session: Session, name: str) -> list[str]:
    """Return the plans that are signed now and have this task, as `site/number`."""
    rows = session.execute(
        select(Site.name, SitePlanRow.number)
        .join(Site, Site.id == SitePlanRow.site_id)
        .where(SitePlanRow.state.in_(SIGNED), SitePlanRow.content["tasks"].has_key(name))
        .order_by(Site.name, SitePlanRow.number)
    )
    return [f"{site}/{number}" for site, number in rows]


def remove_task(session: Session, task: SiteTask) -> None:
    """Delete a task.

    Raises:
        Conflict: a plan that is signed has it.
    """
    if used := plans_with_task(session, task.name):
        raise Conflict(f"task {task.name} is of {', '.join(used)}; plan the site without it first", code="task.in-use")
    session.delete(task)
    session.flush()


def get_site(session: Session, name: str) -> Site:
    """Return the site of this name.

    Raises:
        NotFound: there is none.
    """
    site = session.scalar(select(Site).where(Site.name == name, Site.deleted_at.is_(None)))
    if site is None:
        raise NotFound(f"there is no site {name!r:.80}; `sprat site list` shows them", code="site.unknown")
    return site


def add_site(session: Session, site: Site) -> None:
    """Add a site, which has no device yet.

    Raises:
        Conflict: there is one of this name.
    """
    try:
        with session.begin_nested():
            session.add(site)
    except IntegrityError as clash:
        if "uq_site_name" not in str(clash.orig):
            raise
        raise Conflict(
            f"a site {site.name!r} exists; `sprat site edit {site.name}` changes it", code="site.name-taken"
        ) from clash
    session.refresh(site)


def devices_of(session: Session, site: Site) -> list[SiteDevice]:
    """Return the devices of a site, in one order."""
    return list(session.scalars(select(SiteDevice).where(SiteDevice.site_id == site.id).order_by(SiteDevice.device_id)))


def set_devices(session: Session, site: Site, devices: Sequence[SiteDevice]) -> None:
    """Have exactly these devices in a site; one transaction at a time.

    Raises:
        Conflict: one of them is of another site.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{project_of(session)} site devices", 0))))
    kept = [one.device_id for one in devices]
    taken = session.execute(
        select(SiteDevice.device_id, Site.name)
        .join(Site, Site.id == SiteDevice.site_id)
        .where(among(SiteDevice.device_id, kept), SiteDevice.site_id != site.id)
    ).first()
    if taken is not None:
        raise Conflict(f"device {taken[0]} is of site {taken[1]}; a device is of one site", code="site.device-taken")
    session.execute(delete(SiteDevice).where(SiteDevice.site_id == site.id, ~among(SiteDevice.device_id, kept)))
    for one in devices:
        session.merge(one)
    session.flush()


def leave_sites(session: Session, device_ids: Collection[UUID]) -> None:
    """Have devices be of no site any more."""
    session.execute(delete(SiteDevice).where(among(SiteDevice.device_id, device_ids)))


def remove_site(session: Session, site: Site) -> None:
    """Mark a site as deleted, and let its devices go; its plans stay on record."""
    session.execute(delete(SiteDevice).where(SiteDevice.site_id == site.id))
    site.deleted_at = datetime.now(UTC)
    session.flush()


def next_number(session: Session, site: Site) -> int:
    """Return the number of the next plan under a site's name: above all that there were, of sites deleted since too.

    Two transactions do not get the same: the second one waits for the first.
    """
    name = func.hashtextextended(f"{project_of(session)} site plans {site.name}", 0)
    session.execute(select(func.pg_advisory_xact_lock(name)))
    newest = (
        select(func.max(SitePlanRow.number)).join(Site, Site.id == SitePlanRow.site_id).where(Site.name == site.name)
    )
    return (session.scalar(newest) or 0) + 1


def get_plan(session: Session, site: Site, number: int, *, lock: bool = False) -> SitePlanRow:
    """Return a plan of a site.

    Raises:
        NotFound: there is none of this number.
    """
    query = select(SitePlanRow).where(SitePlanRow.site_id == site.id, SitePlanRow.number == number)
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    plan = session.scalar(query)
    if plan is None:
        raise NotFound(
            f"site {site.name} has no plan {number}; `sprat site history {site.name}` shows them",
            code="site.unknown-plan",
        )
    return plan


def lost_hosts(session: Session, site: Site, plan: SitePlanRow) -> set[UUID]:
    """Return the devices that a plan has modules on and that are of the site no more."""
    hosts = {UUID(host) for said in plan.content["modules"].values() for host in said["hosts"]}
    return hosts - {row.device_id for row in devices_of(session, site)}


def hosts_serving(session: Session, site: Site, model: str, release_id: str) -> set[UUID]:
    """Return the devices on which a release is by the plan of a site that serves."""
    plan = in_state(session, site.id, PlanStatus.SERVING)
    said = None if plan is None else plan.content["modules"].get(model)
    return set() if said is None or said["id"] != release_id else {UUID(host) for host in said["hosts"]}


def in_state(session: Session, site_id: UUID, *states: PlanStatus) -> SitePlanRow | None:
    """Return the plan of a site in one of some states of which there is one at a time."""
    return session.scalar(select(SitePlanRow).where(SitePlanRow.site_id == site_id, SitePlanRow.state.in_(states)))


def newest_applied(session: Session, site: Site) -> int:
    """Return the largest number of a plan of a site that was applied; 0: none was."""
    applied = select(func.max(SitePlanRow.number)).where(
        SitePlanRow.site_id == site.id, SitePlanRow.applied_at.is_not(None)
    )
    return session.scalar(applied) or 0


def site_of(session: Session, plan: SitePlanRow) -> Site:
    """Return the site of a plan, a deleted one too."""
    return session.scalars(select(Site).where(Site.id == plan.site_id)).one()


def members_of(session: Session, plan: SitePlanRow) -> list[SitePlanMember]:
    """Return the members of a plan that was applied, in one order."""
    query = select(SitePlanMember).where(SitePlanMember.plan_id == plan.id)
    return list(session.scalars(query.order_by(SitePlanMember.device_id)))


def hosts_of(session: Session, plan: SitePlanRow) -> list[SitePlanHost]:
    """Return the modules of a plan that was applied, by host, in one order."""
    query = select(SitePlanHost).where(SitePlanHost.plan_id == plan.id)
    return list(session.scalars(query.order_by(SitePlanHost.model_id, SitePlanHost.device_id)))


def membership(session: Session, device_id: UUID, site: str, number: int) -> tuple[SitePlanRow, SitePlanMember] | None:
    """Return the plan of this name that a device is a member of, and its part; None where it never was."""
    row = session.execute(
        select(SitePlanRow, SitePlanMember)
        .join(SitePlanMember, SitePlanMember.plan_id == SitePlanRow.id)
        .join(Site, Site.id == SitePlanRow.site_id)
        .where(SitePlanMember.device_id == device_id, Site.name == site, SitePlanRow.number == number)
    ).first()
    return None if row is None else (row[0], row[1])


def memberships(session: Session, device_ids: Collection[UUID]) -> list[tuple[SitePlanRow, SitePlanMember]]:
    """Return the plans that are signed for some devices now, and their parts, in one order."""
    rows = session.execute(
        select(SitePlanRow, SitePlanMember)
        .join(SitePlanMember, SitePlanMember.plan_id == SitePlanRow.id)
        .where(among(SitePlanMember.device_id, device_ids), SitePlanRow.state.in_(SIGNED))
        .order_by(SitePlanRow.id, SitePlanMember.device_id)
    )
    return [(plan, member) for plan, member in rows]


def tally(session: Session) -> dict[tuple[str, str, str], int]:
    """Count the members of plans that are signed, by site, state of the plan, and how far they said to be."""
    rows = session.execute(
        select(Site.name, SitePlanRow.state, SitePlanMember.state, func.count())
        .join(SitePlanRow, SitePlanRow.site_id == Site.id)
        .join(SitePlanMember, SitePlanMember.plan_id == SitePlanRow.id)
        .where(SitePlanRow.state.in_(SIGNED))
        .group_by(Site.name, SitePlanRow.state, SitePlanMember.state)
    )
    return {(site, plan, state): count for site, plan, state, count in rows}


def held_plan(session: Session, device_id: UUID, counter: int) -> UUID | None:
    """Return the plan that is held and had a device fetch a module by this assignment."""
    return session.scalar(
        select(SitePlanHost.plan_id)
        .join(SitePlanRow, SitePlanRow.id == SitePlanHost.plan_id)
        .where(
            SitePlanHost.device_id == device_id,
            SitePlanHost.fetched_by == counter,
            SitePlanRow.state == PlanStatus.HOLDING,
        )
    )


def releases_signed(session: Session, model_id: UUID) -> set[int]:
    """Return the releases of a model that plans name which devices hold now."""
    query = (
        select(SitePlanHost.number)
        .join(SitePlanRow, SitePlanRow.id == SitePlanHost.plan_id)
        .where(SitePlanHost.model_id == model_id, SitePlanRow.state.in_(SIGNED))
    )
    return set(session.scalars(query))


def needed_elsewhere(session: Session, host: SitePlanHost) -> bool:
    """Return whether another plan that is signed has the device hold the same release."""
    query = (
        select(SitePlanHost.plan_id)
        .join(SitePlanRow, SitePlanRow.id == SitePlanHost.plan_id)
        .where(
            SitePlanHost.device_id == host.device_id,
            SitePlanHost.model_id == host.model_id,
            SitePlanHost.number == host.number,
            SitePlanHost.plan_id != host.plan_id,
            SitePlanRow.state.in_(SIGNED),
        )
    )
    return session.scalar(query.limit(1)) is not None


def under_way(session: Session) -> list[UUID]:
    """Return the plans that are held or switched to, in one order."""
    return list(
        session.scalars(select(SitePlanRow.id).where(SitePlanRow.state.in_(UNDER_WAY)).order_by(SitePlanRow.id))
    )


def serving(session: Session) -> list[UUID]:
    """Return the plans that serve, in one order."""
    query = select(SitePlanRow.id).where(SitePlanRow.state == PlanStatus.SERVING)
    return list(session.scalars(query.order_by(SitePlanRow.id)))


def steps_of(session: Session, plan: SitePlanRow) -> list[SitePlanRow]:
    """Return the plans in between by which devices come to a plan, in their order; it may need none."""
    query = select(SitePlanRow).where(
        SitePlanRow.site_id == plan.site_id, SitePlanRow.cause == Cause.STEP, SitePlanRow.parent == plan.number
    )
    return list(session.scalars(query.order_by(SitePlanRow.number)))


def wished(session: Session) -> list[UUID]:
    """Return the plans that were to be applied and whose steps are, in one order."""
    query = select(SitePlanRow.id).where(SitePlanRow.wished_by.is_not(None))
    return list(session.scalars(query.order_by(SitePlanRow.id)))


def is_on_its_way(session: Session, site_id: UUID) -> bool:
    """Return whether a site comes to a plan by plans in between."""
    query = select(SitePlanRow.id).where(SitePlanRow.site_id == site_id, SitePlanRow.wished_by.is_not(None))
    return session.scalar(query.limit(1)) is not None


def add_plan(session: Session, site: Site, plan: SitePlanRow, steps: Sequence[SitePlanRow] = ()) -> SitePlanRow:
    """Add a plan, and before it the plans in between by which devices come to it; return it."""
    number = next_number(session, site)
    plan.number = number + len(steps)
    for at, row in enumerate((*steps, plan)):
        row.site_id = site.id
        if row is not plan:
            row.number, row.cause, row.parent = number + at, Cause.STEP.value, plan.number
        session.add(row)
        session.flush()  # one by one: numbers rise
    session.refresh(plan)
    return plan


def newest(session: Session, site_id: UUID) -> SitePlanRow:
    """Return the plan of a site that has the largest number; there is one."""
    query = select(SitePlanRow).where(SitePlanRow.site_id == site_id).order_by(SitePlanRow.number.desc()).limit(1)
    return session.scalars(query).one()


def rekeyed(session: Session) -> list[UUID]:
    """Return the members of signed plans whose devices have other keys than their certificates are of."""
    query = (
        select(SitePlanMember.device_id)
        .join(SitePlanRow, SitePlanRow.id == SitePlanMember.plan_id)
        .join(Device, Device.id == SitePlanMember.device_id)
        .where(
            SitePlanRow.state.in_(SIGNED),
            SitePlanMember.state != MemberStatus.LEFT,
            SitePlanMember.public_key != Device.public_key,
        )
    )
    return sorted(set(session.scalars(query)))


def moved(session: Session, plan: SitePlanRow, attribute: str) -> list[str]:
    """Return the names of a plan's members that say, by an attribute, another address than it has of them."""
    said = Device.attributes[attribute].astext
    query = (
        select(Device.name)
        .join(SitePlanMember, SitePlanMember.device_id == Device.id)
        .where(SitePlanMember.plan_id == plan.id, SitePlanMember.state != MemberStatus.LEFT)
        .where(SitePlanMember.address != said)
        .order_by(Device.name)
    )
    return list(session.scalars(query))


def lock(session: Session, plan_id: UUID) -> SitePlanRow:
    """Return a plan, its row locked until the transaction ends."""
    query = select(SitePlanRow).where(SitePlanRow.id == plan_id).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()
