"""A site as a placement sees it, out of typed tasks."""

import pytest

from sprat_server.flows.site_building import (
    DeviceSize,
    ModuleSize,
    fallback_hosts,
    hosts_in_order,
    placed_site,
    routes,
    wishes,
)
from sprat_server.placement.plan import Plan
from sprat_server.sites.schemas import NewSitePlan
from sprat_shared.tasks.graph import Step, TaskGraph
from sprat_shared.tasks.types import Signature, TensorType

GRAPH = TaskGraph(
    {"image": TensorType("float32", ("n", 8)), "words": TensorType("int64", ("n", 4))},
    [
        Step("see", "vision", {"x": "image"}),
        Step("judge", "head", {"a": "see.out", "twice": "see.out", "b": "see.more", "w": "words"}),
    ],
    {"score": "judge.out"},
)
MODULES = {
    "vision": Signature(
        {"x": TensorType("float32", ("n", 8))},
        {"out": TensorType("float32", ("n", 3)), "more": TensorType("float32", (5,))},
    ),
    "head": Signature(
        {
            "a": TensorType("float32", ("m", 3)),
            "twice": TensorType("float32", ("m", 3)),
            "b": TensorType("float32", (5,)),
            "w": TensorType("int64", ("m", 4)),
        },
        {"out": TensorType("float32", ("m", 1))},
    ),
}
ASKED = NewSitePlan.model_validate(
    {
        "tasks": ["find"],
        "at": {"find": ["camera", "desk"]},
        "modules": {"vision": {"seconds": {"box": 0.1}}, "head": {"seconds": {"box": 0.1, "camera": 0.2}}},
        "sizes": {"n": 2},
        "rates": {"find": 3},
        "second_per_mb": 0.5,
    }
)


def device(name: str, memory_bytes: int | None) -> DeviceSize:
    return DeviceSize(name=name, memory_bytes=memory_bytes, up_mbit=8, down_mbit=80, delay_ms=2, utilisation=0.5)


DEVICES = [device("camera", 50), device("box", None), device("desk", None)]


def test_edges_carry_the_bytes_of_their_types_each_output_once() -> None:
    sizes = {"vision": ModuleSize(memory_bytes=70, file_bytes=60, held=frozenset({"box"}))}
    sizes["head"] = ModuleSize(memory_bytes=30, file_bytes=20)
    site = placed_site(
        ASKED,
        {"find": GRAPH},
        {"find": GRAPH.types(MODULES)},
        [device("camera", 50), device("box", None), device("desk", None)],
        sizes,
    )
    task, other = site.tasks
    flows = {(edge.source, edge.target): edge.nbytes for edge in task.edges}
    assert flows == {
        ("image", "see"): 2 * 8 * 4,
        ("see", "<- see"): 2 * 3 * 4 + 5 * 4,
        ("<- see", "judge"): 2 * 3 * 4 + 5 * 4,
        ("words", "judge"): 2 * 4 * 8,
        ("judge", "<- judge"): 2 * 4,
    }
    assert {node.at for node in task.nodes if node.module is None} == {"camera"}, "what flows, flows by who is asked"
    assert {node.at for node in other.nodes if node.module is None} == {"desk"}
    assert task.rate == other.rate == 1.5
    camera, box, _ = site.devices
    assert (camera.memory_bytes, box.memory_bytes) == (50, 100)
    assert (camera.up, camera.down, camera.delay_s, camera.utilisation) == (1e6, 1e7, 0.002, 0.5)
    asked = wishes(ASKED, sizes)
    assert (asked.held, asked.second_per_byte) == ({"vision": frozenset({"box"})}, pytest.approx(5e-7))


def test_modules_of_a_fallback_are_wherever_its_task_is_asked() -> None:
    alone = {
        "find": TaskGraph(GRAPH.inputs, [Step("all", "small", {"x": "image", "w": "words"})], {"score": "all.out"})
    }
    assert fallback_hosts(ASKED, {**alone, "other": None}) == {"small": frozenset({"camera", "desk"})}


def test_the_host_that_most_uses_are_sent_to_is_asked_first() -> None:
    sizes = {name: ModuleSize(memory_bytes=1, file_bytes=1) for name in ("vision", "head")}
    site = placed_site(
        ASKED,
        {"find": GRAPH},
        {"find": GRAPH.types(MODULES)},
        [device("camera", 50), device("box", 50), device("desk", 1)],
        sizes,
    )
    plan = Plan(
        hosts={"vision": frozenset({"box"}), "head": frozenset({"box", "camera"})},
        routes={task.name: {"see": "box", "judge": "camera"} for task in site.tasks},
        standby={task.name: {"judge": "box"} for task in site.tasks},
    )
    assert hosts_in_order(plan, site) == {"head": ["camera", "box"], "vision": ["box"]}
    assert routes(ASKED, plan)["find"]["desk"] == {"see": ["box"], "judge": ["camera", "box"]}
