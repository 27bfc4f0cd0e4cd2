"""Small random sites, and all placements of one that there are."""

from collections.abc import Iterator
from itertools import chain, combinations, product
from random import Random

from sprat_server.placement.plan import Plan, Wishes
from sprat_server.placement.site import Device, Edge, Module, Node, Site, Task
from sprat_server.placement.standby import with_standby


def device(name: str, memory: int = 100, **more: float) -> Device:
    values = {"up": 1000.0, "down": 1000.0, "delay_s": 0.0, "utilisation": 1.0} | more
    return Device(name=name, memory_bytes=memory, **values)


def pair_task(name: str = "pair", rate: float = 0.0) -> Task:
    """A camera's image and a text, two encoders, a head; asked from device a."""
    nodes = [
        Node(name="image", at="a"),
        Node(name="text", at="a"),
        Node(name="see", module="vision"),
        Node(name="read", module="words"),
        Node(name="judge", module="head"),
        Node(name="answer", at="a"),
    ]
    edges = [
        Edge(source="image", target="see", nbytes=100.0),
        Edge(source="text", target="read", nbytes=10.0),
        Edge(source="see", target="judge", nbytes=20.0),
        Edge(source="read", target="judge", nbytes=20.0),
        Edge(source="judge", target="answer", nbytes=10.0),
    ]
    return Task(name, nodes, edges, rate=rate)


def wide_site(modules: int) -> Site:
    """Three devices, two of which have room for all, and tasks that each use two modules, asked from the slow one."""
    random = Random(modules)
    names = [f"module-{at:02d}" for at in range(modules)]
    devices = [
        device(name, 45 * modules, delay_s=0.01, up=up, down=up)
        for name, up in zip("abc", (300.0, 900.0, 500.0), strict=True)
    ]
    made = [
        Module(name=name, memory_bytes=40, file_bytes=40, seconds={host: random.uniform(0.05, 0.5) for host in "abc"})
        for name in names
    ]
    return Site(devices, made, [_pair(one, other, random) for one, other in zip(names[::2], names[1::2], strict=True)])


def _pair(one: str, other: str, random: Random) -> Task:
    nodes = [
        Node(name="image", at="a"),
        Node(name="see", module=one),
        Node(name="judge", module=other),
        Node(name="answer", at="a"),
    ]
    edges = [
        Edge(source="image", target="see", nbytes=random.uniform(10, 200)),
        Edge(source="see", target="judge", nbytes=random.uniform(50, 300)),
        Edge(source="judge", target="answer", nbytes=10.0),
    ]
    return Task(one, nodes, edges, rate=0.0)


def random_site(seed: int, *, rate: float = 0.0) -> Site:
    """Three devices, four modules, two tasks, one of which uses a module twice."""
    random = Random(seed)
    devices = [
        Device(
            name=name,
            memory_bytes=random.randint(80, 300),
            up=random.uniform(100, 2000),
            down=random.uniform(100, 2000),
            delay_s=random.uniform(0, 0.05),
            utilisation=random.uniform(0.5, 1.0),
        )
        for name in "abc"
    ]
    modules = [
        Module(
            name=name,
            memory_bytes=random.randint(20, 90),
            file_bytes=random.randint(20, 90),
            seconds={host: random.uniform(0.01, 0.3) for host in "abc" if host == "a" or random.random() < 0.8},
            joules={"a": random.uniform(0, 5), "b": random.uniform(0, 5)},
        )
        for name in ("vision", "words", "head", "other")
    ]
    twice = Task(
        "twice",
        [
            Node(name="left", at="b"),
            Node(name="right", at="c"),
            Node(name="first", module="vision"),
            Node(name="second", module="vision"),
            Node(name="middle", module="other"),
            Node(name="last", module="words"),
        ],
        [
            Edge(source="left", target="first", nbytes=random.uniform(1, 200)),
            Edge(source="right", target="second", nbytes=random.uniform(1, 200)),
            Edge(source="first", target="middle", nbytes=random.uniform(1, 200)),
            Edge(source="second", target="last", nbytes=random.uniform(1, 200)),
            Edge(source="middle", target="last", nbytes=random.uniform(1, 200)),
        ],
        rate=rate,
        weight=random.uniform(0.1, 3),
    )
    return Site(devices, modules, [pair_task(rate=rate), twice])


def all_plans(site: Site, wishes: Wishes) -> Iterator[Plan]:
    """Every plan that keeps to the wishes but for limits of devices."""
    copies = max(wishes.replicas, 2 if wishes.survives_one else 1)
    choices = []
    for module in site.modules:
        pinned = wishes.pinned.get(module.name, frozenset())
        hosts = [host for host in site.device if host in module.seconds]
        least = min(2, len(hosts)) if wishes.survives_one else 1
        sets = chain.from_iterable(combinations(hosts, count) for count in range(least, copies + 1))
        choices.append([frozenset(chosen) for chosen in sets if pinned <= set(chosen)])
    uses = [(task, node) for task in site.tasks for node in task.nodes if node.module is not None]
    for chosen in product(*choices):
        hosts_of = dict(zip(site.module, chosen, strict=True))
        for places in product(*(sorted(hosts_of[str(node.module)]) for _, node in uses)):
            routes: dict[str, dict[str, str]] = {task.name: {} for task in site.tasks}
            for (task, node), place in zip(uses, places, strict=True):
                routes[task.name][node.name] = place
            plan = Plan(hosts=hosts_of, routes=routes)
            yield with_standby(site, plan) if wishes.survives_one else plan  # of two copies, the other one stands in
