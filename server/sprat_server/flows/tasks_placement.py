"""The worker's task that places a site's modules, within a time and with a proof."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from sprat_server.jobs.tasks import JobContext, task
from sprat_server.placement.explain import longest_way, uses, what_if
from sprat_server.placement.plan import Plan, Wishes
from sprat_server.placement.schemas import NewPlacement
from sprat_server.placement.site import Site
from sprat_server.placement.solve import Placement, place

JOB_KIND: Final = "place"
_WHAT_IF: Final = 0.2  # share of the time that each change of the site may take, as its own placing


@task(JOB_KIND)
def place_site(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Place a site's modules; nothing is sent to devices.

    Args:
        ctx: of the job.
        args: as `NewPlacement`.

    Raises:
        InvalidInput: the site is none.
    """
    asked = NewPlacement.model_validate(args)
    site, wishes = asked.site(), asked.wishes()
    ctx.progress("placing", 0.0, f"{len(site.modules)} modules on {len(site.devices)} devices")
    placed = place(site, wishes, seconds=asked.seconds, clock=time.monotonic)
    result = _told(site, placed)
    if asked.explain:
        ctx.progress("explaining", 0.5, "what one more device or more memory would give")
        result["what_if"] = _what_if(ctx, site, wishes, asked.seconds, placed.answer.total)
    with ctx.session() as session:
        ctx.complete(session, result)
    return result


def _told(site: Site, placed: Placement) -> dict[str, Any]:
    answer, cost, plan = placed.answer, placed.cost, placed.answer.plan
    told: dict[str, Any] = {"proven": answer.proven.value, "hosts": None, "what_if": []}
    if plan is None or cost is None:
        return told
    return told | {
        "hosts": {module: sorted(hosts) for module, hosts in sorted(plan.hosts.items())},
        "total_s": answer.total,
        "bound_s": answer.bound,
        "gap": answer.gap,
        "moved_bytes": cost.moved,
        "watts": cost.joules,
        "devices": [asdict(use) | {"memory_bytes": cost.memory[use.device]} for use in uses(site, cost)],
        "tasks": [_task(site, name, plan) | {"seconds": seconds} for name, seconds in cost.latency.items()],
    }


def _task(site: Site, name: str, plan: Plan) -> dict[str, Any]:
    task_ = next(one for one in site.tasks if one.name == name)
    way = [hop._asdict() for hop in longest_way(site, task_, plan)]
    return {"name": name, "routes": dict(plan.routes[name]), "way": way}


def _what_if(ctx: JobContext, site: Site, wishes: Wishes, seconds: float, now: float) -> list[dict[str, Any]]:
    def best(changed: Site, wished: Wishes) -> float | None:
        found = place(changed, wished, seconds=max(0.1, _WHAT_IF * seconds), clock=time.monotonic)
        return None if found.answer.plan is None else found.answer.total

    def goes_on() -> bool:
        ctx.check_cancelled()
        return True

    found = [{"what": what, "total_s": total} for what, total in what_if(site, wishes, best, goes_on)]
    gains = [one for one in found if one["total_s"] is not None and float(str(one["total_s"])) < now]
    return sorted(gains, key=lambda one: float(str(one["total_s"])))
