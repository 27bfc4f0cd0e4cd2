"""Which figure of a module on a device counts, where several or none are known."""

from typing import Any

import pytest

from sprat_server.sites.measures import Origin, Seen, Wanted, memory_of, seconds_of
from sprat_shared.protocol.measures_report import Spread

VISION = Wanted(model="vision", release=3, graph="g")
HEAD = Wanted(model="head", release=1, graph="h")
DEVICES = {"box": None, "desk": None, "pi": "pi-4"}


def seen(device: str, seconds: float | None, *, model: str = "vision", release: int = 3, **more: Any) -> Seen:
    runs = None if seconds is None else Spread(count=20, p10=0.9 * seconds, median=seconds, p90=1.5 * seconds)
    graph = {"vision": "g", "head": "h"}.get(model, model)
    said = {"profile": DEVICES.get(device, "pi-4"), "graph": graph, "runs": runs} | more
    return Seen(device=device, model=model, release=release, **said)


def test_runs_in_service_count_before_a_try() -> None:
    (cells,) = seconds_of([VISION], DEVICES, [seen("box", 0.1, tried_s=0.3), seen("desk", None, tried_s=0.4)]).values()
    assert (cells["box"].value, cells["box"].count, cells["box"].detail) == (0.1, 20, "in service")
    assert (cells["desk"].value, cells["desk"].p10, cells["desk"].detail) == (0.4, None, "as loaded")
    assert "pi" not in cells


def test_the_release_itself_counts_then_the_newest_of_the_same_graph_and_never_another_graph() -> None:
    said = [seen("box", 0.1, release=1), seen("box", 0.2, release=2), seen("box", 0.9, release=4, graph="other")]
    cells = seconds_of([VISION], DEVICES, said)["vision"]
    assert (cells["box"].value, cells["box"].origin) == (0.2, Origin.OTHER_RELEASE)
    assert cells["box"].detail == "vision@2, in service"
    cells = seconds_of([VISION], DEVICES, [*said, seen("box", 0.3)])["vision"]
    assert (cells["box"].value, cells["box"].origin) == (0.3, Origin.MEASURED)


def test_other_devices_of_the_class_stand_in_with_the_spread_of_all_and_a_device_of_no_class_has_none() -> None:
    said = [seen("pi-2", 0.4), seen("pi-3", 0.6, release=2), seen("pi-4", 0.7), seen("box", 0.1)]
    cells = seconds_of([VISION], DEVICES, said)["vision"]
    pi = cells["pi"]
    assert (pi.value, pi.origin, pi.count, pi.detail) == (0.6, Origin.CLASS, 3, "3 of pi-4")
    assert (pi.p10, pi.p90) == (pytest.approx(0.36), pytest.approx(1.05))
    assert set(cells) == {"box", "pi"}, "a device without a class is one of its own"
    own = seconds_of([VISION], DEVICES, [*said, seen("pi", 2.0)])["vision"]["pi"]
    assert (own.value, own.origin) == (2.0, Origin.MEASURED)


def test_speeds_are_compared_by_what_both_ran_with_whom_most_is_in_common() -> None:
    said = [
        seen("box", 0.1),
        seen("box", 0.01, model="head", release=1),
        seen("box", 0.5, model="text"),
        seen("desk", 0.03, model="head", release=1),
        seen("desk", 1.0, model="text"),
        seen("pi", 0.2),
        seen("pi", 4.0, model="text"),
    ]
    cells = seconds_of([VISION, HEAD], DEVICES, said)
    desk = cells["vision"]["desk"]
    assert (desk.origin, desk.count, desk.detail) == (Origin.ESTIMATED, 2, "from box, by 2 modules of both")
    assert desk.value == pytest.approx(0.1 * 1.03 / 0.51), "what takes long says more than what takes nothing"
    pi = cells["head"]["pi"]
    assert (pi.origin, pi.detail) == (Origin.ESTIMATED, "from box, by 2 modules of both")
    assert pi.value == pytest.approx(0.01 * 4.2 / 0.6)


def test_runs_in_service_are_not_compared_with_tries() -> None:
    said = [
        seen("box", 0.1, tried_s=0.05),
        seen("box", None, tried_s=0.001, model="head", release=1),
        seen("desk", 0.03, tried_s=0.002, model="head", release=1),
    ]
    desk = seconds_of([VISION], DEVICES, said)["vision"]["desk"]
    assert desk.value == pytest.approx(0.1 * 0.002 / 0.001), "the try there beside the try here"
    lonely = seconds_of([VISION], DEVICES, [said[0], seen("desk", 0.03, model="head", release=1), said[1]])
    assert "desk" not in lonely["vision"]


def test_where_nothing_is_in_common_nothing_is_known() -> None:
    assert seconds_of([VISION], DEVICES, [seen("box", 0.1)])["vision"].keys() == {"box"}
    assert seconds_of([VISION], DEVICES, []) == {"vision": {}}


def test_memory_is_never_estimated_by_speeds() -> None:
    said = [
        seen("box", 0.1, memory_bytes=500),
        seen("desk", 0.2, model="text"),
        seen("box", 0.1, model="text"),
        seen("pi-2", None, memory_bytes=700, release=2),
    ]
    cells = memory_of([VISION], DEVICES, said)["vision"]
    assert {device: (one.value, one.origin) for device, one in cells.items()} == {
        "box": (500, Origin.MEASURED),
        "pi": (700, Origin.CLASS),
    }
