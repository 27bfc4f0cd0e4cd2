"""What an agent measures of its site: bounded, of what says something, told seldom and once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tiny_onnx
from one_device import INPUTS, MODEL, one_device
from site_of_two import SITE, SiteOfTwo, ask, serving, until

from sprat_client.agent.site import peak
from sprat_client.agent.site.measures_reporter import figures_of, has_changed, is_due
from sprat_client.agent.site.module_queue import ModuleQueue
from sprat_client.agent.site.pace import Pace
from sprat_client.agent.site.peak import Peak
from sprat_client.agent.site.site_meter import LinkMeter, ModuleMeter, SiteMeter, Window
from sprat_client.runtime.ports import PortSpec
from sprat_shared.protocol.measures_report import LinkFigures, MeasuresReport, ModuleFigures, Spread
from sprat_shared.protocol.site_plan import PlannedModule

LARGE = 100_000
QUICK = replace(SITE, news_s=0.05)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteOfTwo]:
    with one_device(tmp_path) as device:
        yield SiteOfTwo(device, tmp_path)


# meters


def test_a_window_says_percentiles_of_the_newest_values_and_nothing_of_too_few() -> None:
    window = Window(3)
    window.add(1.0)
    window.add(2.0)
    assert window.spread() is None
    window.add(-0.5)
    assert window.spread() == Spread(count=3, p10=0.0, median=1.0, p90=2.0), "what a clock made negative is 0"
    for value in range(1000):
        window.add(value)
    spread = window.spread()
    assert spread is not None
    assert (spread.count, spread.median) == (1003, pytest.approx(872, abs=1))
    assert (spread.p10, spread.p90) == (pytest.approx(769, abs=1), pytest.approx(974, abs=1))


def test_a_run_of_several_rows_says_nothing_of_one() -> None:
    meter = ModuleMeter()
    for _ in range(10):
        meter.ran(1, 0.2)
        meter.ran(8, 3.0)
    assert meter.runs.spread() == Spread(count=10, p10=0.2, median=0.2, p90=0.2)


def link_that_was_asked() -> LinkMeter:
    link = LinkMeter()
    for _ in range(10):
        link.round_trip.add(0.01)
    return link


def test_a_large_body_says_what_a_byte_takes_the_way_that_it_goes() -> None:
    link = link_that_was_asked()
    for _ in range(5):
        link.exchanged(LARGE, 100, 0.01 + LARGE * 2e-6)
        link.exchanged(100, 2 * LARGE, 0.01 + 2 * LARGE * 1e-6)
    sent, received = link.sent.spread(), link.received.spread()
    assert sent is not None
    assert received is not None
    assert (sent.median, received.median) == (pytest.approx(2e-6), pytest.approx(1e-6))


@pytest.mark.parametrize(("sent", "received"), [(1000, 10), (LARGE, LARGE), (LARGE, LARGE // 2), (0, 1000)])
def test_small_bodies_and_those_that_go_both_ways_say_nothing_of_a_link(sent: int, received: int) -> None:
    link = link_that_was_asked()
    for _ in range(20):
        link.exchanged(sent, received, 1.0)
    assert (link.sent.spread(), link.received.spread()) == (None, None)


def test_before_its_round_trip_is_known_a_link_says_nothing_of_bytes() -> None:
    link = LinkMeter()
    for _ in range(20):
        link.exchanged(LARGE, 0, 1.0)
    assert link.sent.spread() is None


def test_requests_beside_each_other_share_the_link_and_are_told_from_those_alone() -> None:
    meter = SiteMeter()
    with meter.exchange() as first:
        assert first.alone
        with meter.exchange() as second:
            assert not second.alone
        assert not first.alone, "the second one was beside it"
    with meter.exchange() as third:
        assert third.alone


def test_two_models_of_the_same_release_are_loaded_once_and_measured_alike() -> None:
    meter = SiteMeter()
    meter.module("sha256:1").memory_bytes = 100
    planned = [PlannedModule(model=name, release=1, release_id="sha256:1", hosts=()) for name in ("eyes", "ears")]
    assert [(one.model, one.memory_bytes) for one in meter.modules(planned)] == [("eyes", 100), ("ears", 100)]


def test_what_is_of_no_plan_any_more_is_forgotten() -> None:
    meter, box, desk = SiteMeter(), uuid4(), uuid4()
    planned = [PlannedModule(model="vision", release=at, release_id=f"sha256:{at}", hosts=()) for at in (1, 2)]
    for one in planned:
        meter.module(one.release_id).tried_s = 0.1
    for device in (box, desk):
        for _ in range(10):
            meter.link(device).round_trip.add(0.1)
    meter.forget_but({"sha256:2"}, {desk})
    assert [(one.model, one.release) for one in meter.modules(planned)] == [("vision", 2)]
    assert [one.device for one in meter.links()] == [desk]


# runs, as the queue tells them


class Host:
    """Takes rows of two numbers, or one array of a given shape, and gives it back."""

    def __init__(self, shape: tuple[int | None, ...]) -> None:
        self.inputs = [PortSpec("x", np.dtype("float32"), shape, ("n",) * len(shape))]
        self.outputs = [PortSpec("y", np.dtype("float32"), shape, ("n",) * len(shape))]

    def run(self, values: Any) -> Any:
        return [values["x"]]


@pytest.mark.parametrize(("shape", "rows"), [((None, 2), 3), ((3, 2), 1)])
def test_a_queue_tells_how_many_rows_ran_and_a_model_without_rows_runs_one(
    shape: tuple[int | None, ...], rows: int
) -> None:
    told: list[tuple[int, int]] = []
    queue = ModuleQueue(
        Host(shape),
        "m@1",
        together=False,
        most_waiting=8,
        most_rows=8,
        pace=Pace(),
        ran=lambda requests, rows, _: told.append((requests, rows)),
    )
    queue.ask({"x": np.zeros((3, 2), np.float32)}, float("inf")).result(5)
    queue.close()
    queue.join(5)
    assert told == [(1, rows)]


# memory


def test_a_peak_counts_what_was_taken_since_and_not_what_was_before() -> None:
    before = np.ones(80 << 20, np.uint8)
    del before
    measured = Peak()
    held = np.ones(20 << 20, np.uint8)
    del held
    taken = measured.taken()
    assert taken is not None
    assert 19 << 20 < taken < 40 << 20


def test_where_the_kernel_begins_no_peak_anew_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak, "_CLEAR", tmp_path / "missing" / "clear_refs")
    measured = Peak()
    held = np.ones(20 << 20, np.uint8)
    assert measured.taken() is None
    assert held[0] == 1


# reports


def report(**changed: Any) -> MeasuresReport:
    spread = Spread(count=10, p10=0.1, median=0.2, p90=0.3)
    module = ModuleFigures(model="vision", release=1, memory_bytes=100, tried_s=0.1, runs=spread)
    link = LinkFigures(device=uuid4(), round_trip=spread, sent=replace(spread, median=2e-7, p10=1e-7, p90=3e-7))
    return replace(MeasuresReport(device=uuid4(), sequence=1, modules=(module,), links=(link,), agent="1"), **changed)


def test_only_a_change_by_much_is_one() -> None:
    told = figures_of(report(links=()))
    assert told == {"vision@1 memory": 100, "vision@1 tried": 0.1, "vision@1 runs": 0.2}
    assert not has_changed(told | {"vision@1 runs": 0.24}, told, by=0.25)
    assert has_changed(told | {"vision@1 runs": 0.26}, told, by=0.25)
    assert not has_changed(told | {"vision@1 runs": 0.17}, told, by=0.25)
    assert has_changed(told | {"vision@1 runs": 0.15}, told, by=0.25), "a third more as one goes back"
    assert not has_changed({"box round-trip": 0.0015}, {"box round-trip": 0.0006}, by=0.25), "that is noise"
    link = figures_of(report(modules=()))
    assert sorted(link.values()) == [pytest.approx(0.2), pytest.approx(0.2)], "seconds, and seconds per MB"


@pytest.mark.parametrize(
    ("seconds", "since_s", "due"),
    [(0.2, 1e6, False), (0.3, 3599, False), (0.3, 3600, True), (0.3, -1, True), (0.5, 299, False), (0.5, 300, True)],
)
def test_a_changed_figure_is_told_each_hour_and_a_doubled_one_each_five_minutes(
    seconds: float,
    since_s: float,
    due: bool,  # noqa: FBT001
) -> None:
    told = {"box round-trip": 0.2}
    assert is_due({"box round-trip": seconds}, told, since_s=since_s, report_s=3600) == due
    assert is_due({"desk round-trip": seconds}, told, since_s=since_s, report_s=3600), "a new one is told at once"


def told(site: SiteOfTwo) -> list[MeasuresReport]:
    (device,) = site.server.devices.values()
    return list(device.measured)


def test_figures_are_told_once_the_plan_serves_and_again_when_there_are_new_ones_also_over_restarts(
    site: SiteOfTwo,
) -> None:
    with site.boxed() as box:
        plan = site.plan()
        box.hold(plan)
        with site.running(site=QUICK) as agent:
            serving(site, plan)
            until(lambda: told(site) and told(site)[-1].links)
            (own,), (link,) = told(site)[-1].modules, told(site)[-1].links
            assert (own.model, own.release, own.runs) == (MODEL, 1, None)
            assert own.memory_bytes is None, "it was loaded before, to serve"
            assert own.tried_s is not None
            assert link.device == site.box.device
            assert link.round_trip is not None
            assert link.round_trip.median < 0.5
            for _ in range(12):
                agent.infer_task("find", {"image": INPUTS[:1], "words": np.ones((1, 6), np.float32)})
            until(lambda: told(site)[-1].modules[0].runs)
            assert told(site)[-1].modules[0].runs.count >= 10
            many = len(told(site))
            assert many <= 3, "module, link, runs: each told when it was new"
        with site.running(site=QUICK) as agent:
            until(lambda: agent._site.tasks() and ask(agent))
            until(agent._site._measured.links)
            for _ in range(12):
                agent.infer_task("find", {"image": INPUTS[:1], "words": np.ones((1, 6), np.float32)})
            own = [module for module in plan.modules.values() if module.model == MODEL]
            until(lambda: agent._site._measured.modules(own)[0].runs)
        assert len(told(site)) == many, "a restart repeats nothing"
        (site.device.folder / "site" / "measured.json").write_text('{"told": {"x": "much"}}')
        with site.running(site=QUICK):
            until(lambda: len(told(site)) > many)  # what was told cannot be read, and is told again


def test_a_release_that_a_plan_brings_is_measured_as_it_is_loaded(site: SiteOfTwo) -> None:
    hidden = 50_000  # 3.4 MB: the kernel counts a process's memory in steps, and a few kilobytes may be none
    weights = tiny_onnx.weights(2, scale=0.0, hidden=hidden)
    site.server.add_release(MODEL, weights, graph=tiny_onnx.graph(hidden=hidden))
    with site.boxed() as box, site.running(site=QUICK):
        old, new = site.plan(1), site.plan(2, 2)
        box.hold(old)
        box.hold(new)
        serving(site, old)
        site.server.says = lambda assigned: replace(assigned, prefetch=assigned.release == 2)
        site.server.assign(MODEL, 2)
        serving(site, new)

        def of_second() -> list[ModuleFigures]:
            return [one for each in told(site) for one in each.modules if one.release == 2]

        found = until(of_second)[0]
        assert found.memory_bytes is not None
        assert 2 << 20 < found.memory_bytes < 32 << 20
