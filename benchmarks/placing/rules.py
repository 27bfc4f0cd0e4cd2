"""The rules that the placement is measured beside: greedy by compute, and chance. Each says where each module is."""

from random import Random

from sprat_server.placement.plan import NO_WISHES, Plan, cost_of
from sprat_server.placement.site import Site


def plan_of(site: Site, hosts: dict[str, str]) -> Plan:
    """Return the plan of these hosts."""
    routes = {
        task.name: {node.name: hosts[node.module] for node in task.nodes if node.module is not None}
        for task in site.tasks
    }
    return Plan(hosts={name: frozenset({host}) for name, host in hosts.items()}, routes=routes)


def by_compute(site: Site) -> Plan | None:
    """Place what computes longest first, where it, with what of its tasks is there already, computes fastest and fits.

    In the style of S2M3, whose greedy placement prioritises modules that compute most; transfers are not looked at.
    None where a module fits nowhere.
    """
    room = {name: device.memory_bytes for name, device in site.device.items()}
    hosts: dict[str, str] = {}
    for module in sorted(site.modules, key=lambda one: (-max(one.seconds.values()), one.name)):
        mates = {name for task in site.tasks if module.name in task.modules for name in task.modules}
        fits = [name for name in module.seconds if room[name] >= module.memory_bytes]
        if not fits:
            return None
        finished = {
            host: seconds + sum(site.module[name].seconds[host] for name in mates if hosts.get(name) == host)
            for host, seconds in module.seconds.items()
        }
        hosts[module.name] = min(fits, key=finished.__getitem__)
        room[hosts[module.name]] -= module.memory_bytes
    return plan_of(site, hosts)


def by_chance(site: Site, seed: int, tries: int = 100) -> Plan | None:
    """Return the best of so many random plans that fit; None where none did."""
    random = Random(seed)
    found: list[tuple[float, int, Plan]] = []
    for _ in range(tries):
        room = {name: device.memory_bytes for name, device in site.device.items()}
        hosts: dict[str, str] = {}
        for module in sorted(site.modules, key=lambda one: (-one.memory_bytes, one.name)):
            fits = [name for name in module.seconds if room[name] >= module.memory_bytes]
            if not fits:
                break
            hosts[module.name] = random.choice(fits)
            room[hosts[module.name]] -= module.memory_bytes
        else:
            plan = plan_of(site, hosts)
            found.append((cost_of(site, NO_WISHES, plan).total, len(found), plan))
    return min(found)[2] if found else None
