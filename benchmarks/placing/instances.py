"""Random sites: in the shape of S2M3's testbed, and tight ones of several sizes. The same seed makes the same site."""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from sprat_server.placement.site import Device, Edge, Module, Node, Site, Task

GIB: Final = 1 << 30
_MBIT: Final = 1e6 / 8
_FP16: Final = 2

# S2M3 (ICDCS 2025, arXiv 2508.04271): a server beyond a metropolitan link, a desktop, a laptop and two Jetsons at home.
# name: (memory for modules in GiB, GFLOP/s that inference reaches, up and down in Mbit/s, one-way delay in seconds)
_S2M3_DEVICES: Final = {
    "server": (16.0, 4000.0, 100.0, 0.010),
    "desktop": (8.0, 1500.0, 300.0, 0.001),
    "laptop": (8.0, 900.0, 200.0, 0.002),
    "jetson-a": (3.0, 180.0, 100.0, 0.002),
    "jetson-b": (2.0, 120.0, 100.0, 0.002),
}
# Encoders of the CLIP family and others: millions of parameters, GFLOP of a run.
Sizes = Mapping[str, tuple[float, float]]
_VISION: Final[Sizes] = {
    "rn50": (38, 8),
    "rn50x4": (87, 23),
    "rn50x16": (168, 62),
    "vit-b-32": (88, 9),
    "vit-l-14": (304, 162),
}
_TEXT: Final[Sizes] = {"text-38": (38, 6), "text-63": (63, 6), "text-85": (85, 13)}
_AUDIO: Final[Sizes] = {"audio-86": (86, 40)}
_LANGUAGE: Final[Sizes] = {"lm-1b": (1100, 140), "lm-3b": (2700, 350)}
_HEAD: Final = (1, 0.01)
_IMAGE_BYTES, _TEXT_BYTES, _AUDIO_BYTES, _EMBEDDING_BYTES = 150_000, 400, 250_000, 2_048
_TOKENS_BYTES: Final = 600_000  # what a vision encoder hands a language model


def s2m3(seed: int) -> Site:
    """Return a site in S2M3's shape: 2 to 5 devices, 1 to 4 tasks that share encoders, memory that is loose."""
    random = Random(1000 + seed)
    names = sorted(random.sample(list(_S2M3_DEVICES), random.randint(2, 5)), key=list(_S2M3_DEVICES).index)
    if not {"server", "desktop", "laptop"} & set(names):
        names[0] = "desktop"
    devices, speed = [], {}
    for name in names:
        memory, gflops, mbit, delay = _S2M3_DEVICES[name]
        speed[name] = gflops * random.uniform(0.8, 1.2)
        devices.append(
            Device(name=name, memory_bytes=int(memory * GIB), up=mbit * _MBIT, down=mbit * _MBIT, delay_s=delay)
        )
    modules: dict[str, Module] = {}

    def use(name: str, size: tuple[float, float]) -> str:
        millions, gflop = size
        modules[name] = Module(
            name=name,
            memory_bytes=int(millions * 1e6 * _FP16),
            file_bytes=int(millions * 1e6 * _FP16),
            seconds={device: gflop / gflops for device, gflops in speed.items()},
        )
        return name

    def pick(kinds: Sizes) -> str:
        name = random.choice(sorted(kinds))
        return use(name, kinds[name])

    asks = names[-1]
    tasks = []
    for number, kind in enumerate(random.sample(sorted(_S2M3_TASKS), random.randint(1, 4))):
        branches = [(pick(kinds), sent, given) for kinds, sent, given in _S2M3_TASKS[kind]]
        head = pick(_LANGUAGE) if kind == "decoder-vqa" else use(f"head-{kind}", _HEAD)
        tasks.append(_task(f"{number}-{kind}", branches, head, asks, rate=0.0, weight=1.0))
    return Site(devices, list(modules.values()), tasks)


_S2M3_TASKS: Final = {
    "retrieval": ((_VISION, _IMAGE_BYTES, _EMBEDDING_BYTES), (_TEXT, _TEXT_BYTES, _EMBEDDING_BYTES)),
    "encoder-vqa": ((_VISION, _IMAGE_BYTES, _EMBEDDING_BYTES), (_TEXT, _TEXT_BYTES, _EMBEDDING_BYTES)),
    "decoder-vqa": ((_VISION, _IMAGE_BYTES, _TOKENS_BYTES),),
    "alignment": (
        (_VISION, _IMAGE_BYTES, _EMBEDDING_BYTES),
        (_TEXT, _TEXT_BYTES, _EMBEDDING_BYTES),
        (_AUDIO, _AUDIO_BYTES, _EMBEDDING_BYTES),
    ),
    "classification": ((_VISION, _IMAGE_BYTES, _EMBEDDING_BYTES),),
}


def tight(seed: int, modules: int, devices: int, fill: float = 0.8) -> Site:
    """Return a site whose modules take so much of all memory together; half of the modules are encoders."""
    random = Random(f"{seed} {modules} {devices}")
    encoders = [f"encoder-{at:02d}" for at in range((modules + 1) // 2)]
    heads = [f"head-{at:02d}" for at in range(modules // 2)]
    size = {name: int(random.uniform(40, 600) * 2**20) for name in encoders}
    size |= {name: int(random.uniform(5, 200) * 2**20) for name in heads}
    share = [random.choice([0.5, 1.0, 2.0, 4.0]) for _ in range(devices)]
    whole = sum(size.values()) / fill
    made = [
        Device(
            name=f"device-{at:02d}",
            memory_bytes=int(whole * part / sum(share)),
            up=random.uniform(10, 200) * _MBIT,
            down=random.uniform(20, 400) * _MBIT,
            delay_s=random.uniform(0.0005, 0.02),
        )
        for at, part in enumerate(share)
    ]
    speed = {device.name: part * random.uniform(50, 150) for device, part in zip(made, share, strict=True)}
    work = {name: random.uniform(2, 30) for name in encoders} | {name: random.uniform(0.05, 3) for name in heads}
    parts = [
        Module(
            name=name,
            memory_bytes=size[name],
            file_bytes=size[name],
            seconds={device: work[name] / gflops for device, gflops in speed.items()},
        )
        for name in (*encoders, *heads)
    ]
    tasks = []
    for number, head in enumerate(heads):
        chosen = random.sample(encoders, min(len(encoders), random.randint(1, 3)))
        branches = [(name, random.uniform(1_000, 300_000), random.uniform(1_000, 50_000)) for name in chosen]
        asks = random.choice(made).name
        tasks.append(_task(f"task-{number:02d}", branches, head, asks, rate=0.0, weight=random.uniform(0.2, 2.0)))
    return Site(made, parts, tasks)


def _task(
    name: str, branches: Sequence[tuple[str, float, float]], head: str, asks: str, *, rate: float, weight: float
) -> Task:
    """Return the task whose encoders (module, bytes in, bytes out) lead to a head, asked from a device."""
    nodes, edges = [Node(name="head", module=head), Node(name="answer", at=asks)], []
    edges.append(Edge(source="head", target="answer", nbytes=256.0))
    for at, (module, sent, given) in enumerate(branches):
        nodes += [Node(name=f"input-{at}", at=asks), Node(name=f"encoder-{at}", module=module)]
        edges.append(Edge(source=f"input-{at}", target=f"encoder-{at}", nbytes=float(sent)))
        edges.append(Edge(source=f"encoder-{at}", target="head", nbytes=float(given)))
    return Task(name, nodes, edges, rate=rate, weight=weight)
