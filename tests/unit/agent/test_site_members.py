"""Members of a site on loopback, some as processes: right answers, one plan each, no waiting for what is dead."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo.fault_proxy import FaultProxy
from made_sites import WIDTH, MadeMember, at
from site_member import SiteMember, member_in_this_process
from three_members import Trio, all_answering, check, check_fallback, install, process, running, some_inputs, trio_in

from sprat_client.agent.site.failures import (
    Busy,
    DeadlineOver,
    NoSuchTask,
    NotHeld,
    OtherPlan,
    PlanExpired,
    Unreachable,
)
from sprat_client.agent.site.peer import Ask, Peer
from sprat_client.agent.site.site_meter import SiteMeter
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_client.agent.site.tls import client_context
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.site_plan import SitePlan

Array = np.ndarray[Any, Any]


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    return trio_in(tmp_path)


@pytest.fixture
def answering(trio: Trio) -> Iterator[tuple[Trio, SitePlan, SiteMember]]:
    with all_answering(trio) as one:
        yield one


# right answers


def test_a_task_answers_as_its_modules_in_one_process_do_and_says_who_did_what(
    answering: tuple[Trio, SitePlan, SiteMember],
) -> None:
    _, plan, camera = answering
    inputs = some_inputs()
    answer = camera.router.infer_task("find", inputs)
    check(answer, inputs)
    assert (answer.plan, answer.fallback) == (plan.title, False)
    said = {hop.step: (hop.model, hop.release, hop.device, hop.local, hop.tries, hop.hedged) for hop in answer.steps}
    assert said == {
        "see": ("vision", 1, "box", False, 1, False),
        "read": ("text", 1, "server", False, 1, False),
        "judge": ("head", 1, "camera", True, 1, False),
    }
    assert answer == TaskAnswer.of(answer.summary(), answer.outputs) or answer.seconds > 0
    with pytest.raises(NoSuchTask, match="served: find"):
        camera.router.infer_task("lose", inputs)
    with pytest.raises(InvalidInput, match="n is 2, and 3 in 'image'"):
        camera.router.infer_task("find", {**inputs, "words": inputs["words"][:2]})


def test_a_step_goes_where_the_plan_routes_it_though_this_device_holds_the_same(trio: Trio) -> None:
    plan = trio.plan()
    camera_, box, server = (one.device for one in trio.all)
    modules = {
        **plan.modules,
        "head": replace(plan.modules["head"], hosts=(camera_, server, box)),
        "text": replace(plan.modules["text"], hosts=(server, camera_)),
    }
    routes = {camera_: {"see": (server,), "judge": (server, box)}}
    plan = replace(plan, modules=modules, tasks={"find": replace(plan.tasks["find"], routes=routes)})
    install(plan, trio.all)
    with running(trio.box, plan), running(trio.camera, plan) as camera:
        with running(trio.server, plan):
            camera.serve(1)
            for _ in range(5):
                answer = camera.router.infer_task("find", some_inputs())
                devices = {hop.step: hop.device for hop in answer.steps}
                assert devices == {"see": "server", "read": "camera", "judge": "server"}
        answer = camera.router.infer_task("find", some_inputs())
        devices = {hop.step: hop.device for hop in answer.steps}
        assert devices == {"see": "box", "read": "camera", "judge": "box"}, "as the plan says of the loss of one"


def test_the_last_device_that_holds_a_module_is_asked_though_it_failed_before(
    answering: tuple[Trio, SitePlan, SiteMember],
) -> None:
    trio, _, camera = answering
    (held,) = camera.router.serving
    for one in (trio.box, trio.server):
        for _ in range(3):
            held.peers[one.device].breaker.failed()
    assert dict(camera.router.away()) == dict.fromkeys(("box", "server"), "it failed several times in a row")
    inputs = some_inputs()
    check(camera.router.infer_task("find", inputs), inputs)
    assert "server" not in dict(camera.router.away()), "it answered"


def test_requests_of_many_threads_all_get_their_own_answer(answering: tuple[Trio, SitePlan, SiteMember]) -> None:
    _, _, camera = answering
    wrong: list[BaseException] = []

    def ask(seed: int) -> None:
        try:
            for turn in range(8):
                inputs = some_inputs(1 + seed % 3, seed * 100 + turn)
                check(camera.router.infer_task("find", inputs), inputs)
        except BaseException as bad:  # noqa: BLE001  # told below
            wrong.append(bad)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    counts = {
        (labels["outcome"]): value for name, _, labels, value in camera.router.meter.gauges() if name == "tasks_total"
    }
    assert counts == {"answered": 64}


# devices that fail


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_where_a_device_dies_or_hangs_another_one_that_holds_the_same_answers(trio: Trio, how: signal.Signals) -> None:
    plan = trio.plan(deadline_s=5.0)
    install(plan, trio.all)
    with process(trio.box) as box, running(trio.server, plan), running(trio.camera, plan) as camera:
        camera.serve(1)
        inputs = some_inputs()
        assert "box" in {hop.device for hop in camera.router.infer_task("find", inputs).steps}
        box.send_signal(how)
        begun = time.monotonic()
        answer = camera.router.infer_task("find", inputs)
        took_s = time.monotonic() - begun
        check(answer, inputs)
        (see,) = (hop for hop in answer.steps if hop.step == "see")
        assert (see.device, see.local) == ("server", False)
        assert took_s < 1.5, f"it took {took_s} s to notice"
        while "box" not in dict(camera.router.away()):
            assert time.monotonic() - begun < 2.0
            time.sleep(0.02)
        begun = time.monotonic()
        check(camera.router.infer_task("find", inputs), inputs)
        assert time.monotonic() - begun < 0.3, "it is not asked any more"


def test_where_nobody_else_holds_a_module_the_fallback_answers_within_the_deadline(trio: Trio) -> None:
    plan = trio.plan(deadline_s=1.0, fallback=True)
    install(plan, trio.all)
    with running(trio.box, plan), process(trio.server) as server, running(trio.camera, plan) as camera:
        camera.serve(1)
        inputs = some_inputs()
        check(camera.router.infer_task("find", inputs), inputs)
        server.send_signal(signal.SIGSTOP)
        for _ in range(3):
            begun = time.monotonic()
            check_fallback(camera.router.infer_task("find", inputs), inputs)
            assert time.monotonic() - begun < 1.0
        server.send_signal(signal.SIGCONT)
        while camera.router.infer_task("find", inputs).fallback:
            assert time.monotonic() - begun < 10
            time.sleep(0.1)
        check(camera.router.infer_task("find", inputs), inputs)


def test_without_a_fallback_the_error_says_which_step_on_which_device(trio: Trio) -> None:
    plan = trio.plan(deadline_s=1.0)
    install(plan, trio.all)
    with running(trio.box, plan), process(trio.server) as server, running(trio.camera, plan) as camera:
        camera.serve(1)
        inputs = some_inputs()
        check(camera.router.infer_task("find", inputs), inputs)
        server.send_signal(signal.SIGSTOP)
        for _ in range(2):
            begun = time.monotonic()
            with pytest.raises((Unreachable, DeadlineOver), match=f"find.*read.*server.*{trio.server.address}") as bad:
                camera.router.infer_task("find", inputs)
            assert time.monotonic() - begun < 1.1
            assert bad.value.code in {"site.unreachable", "site.deadline"}


def test_a_link_that_is_slow_or_cut_costs_a_retry_or_the_fallback_and_no_hanging(trio: Trio) -> None:
    plan = trio.plan(deadline_s=2.0, fallback=True)
    install(plan, trio.all)
    host, port = trio.server.address.split(":")
    with FaultProxy((host, int(port))) as link:
        behind = at(plan, trio.server.device, f"127.0.0.1:{link.port}")
        with running(trio.box, plan), running(trio.server, plan), running(trio.camera, behind) as camera:
            camera.serve(1, beating=False)
            inputs = some_inputs()
            check(camera.router.infer_task("find", inputs), inputs)
            link.cut_after(100)  # in the middle of an answer
            answer = camera.router.infer_task("find", inputs)
            check(answer, inputs)
            assert link.log.cuts == 1
            link.latency_s = 1.5
            begun = time.monotonic()
            check_fallback(camera.router.infer_task("find", inputs), inputs)
            assert time.monotonic() - begun < 2.0
            link.latency_s = 0.0
            link.set_down(down=True)
            begun = time.monotonic()
            check_fallback(camera.router.infer_task("find", inputs), inputs)
            assert time.monotonic() - begun < 1.0, "a refused connection is no reason to wait"


def test_a_device_that_is_busy_says_so_and_another_one_answers(trio: Trio) -> None:
    plan = trio.plan()
    install(plan, trio.all)
    with running(trio.box, plan, most_waiting=0), running(trio.server, plan), running(trio.camera, plan) as camera:
        camera.serve(1)
        with peer_of(trio, plan, trio.box) as peer, pytest.raises(Busy, match="0 requests wait already"):
            ask_vision(peer, plan)
        inputs = some_inputs()
        answer = camera.router.infer_task("find", inputs)
        check(answer, inputs)
        assert {hop.step: (hop.device, hop.tries) for hop in answer.steps}["see"] == ("server", 2)
        assert dict(camera.router.away()) == {}, "a device that is busy is there"
    with running(trio.box, plan), running(trio.server, plan), running(trio.camera, plan, most_waiting=0) as camera:
        camera.serve(1)
        with pytest.raises(Busy, match="step judge on camera"):  # nobody else holds it
            camera.router.infer_task("find", inputs)


def test_more_requests_than_may_be_under_way_are_turned_away_at_once(trio: Trio) -> None:
    plan = trio.plan()
    install(plan, trio.all)
    with (
        running(trio.box, plan),
        running(trio.server, plan),
        member_in_this_process(trio.camera.folder, trio.camera.device, most_requests=0) as camera,
    ):
        camera.hold(plan)
        camera.serve(1)
        with pytest.raises(Busy, match="0 requests are under way already"):
            camera.router.infer_task("find", some_inputs())


def test_a_second_device_is_asked_where_the_first_takes_longer_than_nearly_ever(trio: Trio) -> None:
    plan = trio.plan(deadline_s=5.0)
    install(plan, trio.all)
    host, port = trio.box.address.split(":")
    with FaultProxy((host, int(port))) as link:
        behind = at(plan, trio.box.device, f"127.0.0.1:{link.port}")
        with running(trio.box, plan), running(trio.server, plan), running(trio.camera, behind) as camera:
            camera.serve(1, beating=False)
            inputs = some_inputs()
            for _ in range(30):
                check(camera.router.infer_task("find", inputs), inputs)
            link.latency_s = 2.0
            begun = time.monotonic()
            answer = camera.router.infer_task("find", inputs)
            check(answer, inputs)
            assert time.monotonic() - begun < 1.0
            (see,) = (hop for hop in answer.steps if hop.step == "see")
            assert (see.device, see.hedged, see.tries) == ("server", True, 1)


def test_applications_that_do_not_wait_take_no_device_from_the_others(
    answering: tuple[Trio, SitePlan, SiteMember],
) -> None:
    _, _, camera = answering
    inputs = some_inputs()
    for _ in range(10):
        with pytest.raises(DeadlineOver):
            camera.router.infer_task("find", inputs, deadline_s=0.0055)
    answer = camera.router.infer_task("find", inputs)
    check(answer, inputs)
    assert {hop.device for hop in answer.steps} == {"camera", "box", "server"}


# plans


@contextlib.contextmanager
def peer_of(
    trio: Trio, plan: SitePlan, member: MadeMember, *, title: str | None = None, measured: SiteMeter | None = None
) -> Iterator[Peer]:
    """Yield a member as the camera asks it."""
    context = client_context(plan, plan.member[trio.camera.device], trio.camera.folder / "device.key")
    peer = Peer(
        plan.member[member.device],
        title=title or plan.title,
        server_name=plan.server_name,
        context=context,
        most_bytes=1 << 20,
        measured=measured or SiteMeter(),
    )
    yield peer
    peer.drop("the test is over")


def ask_vision(peer: Peer, plan: SitePlan, **change: Any) -> Mapping[str, Array]:
    module = replace(plan.modules["vision"], **change)
    inputs = {"x": some_inputs()["image"]}
    until = time.monotonic() + 5
    return peer.infer(module, inputs, ["y"], until=until, request="r", trace=None, ask=Ask()).outputs


def test_round_trips_and_large_bodies_are_measured_over_connections_that_were_there(
    answering: tuple[Trio, SitePlan, SiteMember],
) -> None:
    trio, plan, _ = answering
    measured = SiteMeter()
    with peer_of(trio, plan, trio.box, measured=measured) as peer:
        for _ in range(10):
            peer.is_there(1.0)
        assert measured.links() == (), "the first one made its connection"
        peer.is_there(1.0)
        (link,) = measured.links()
        assert (link.device, link.round_trip.count, link.sent) == (trio.box.device, 10, None)
        assert 0 < link.round_trip.p10 <= link.round_trip.median < 0.5
        until = time.monotonic() + 20
        module, x = plan.modules["vision"], np.ones((40_000, WIDTH), np.float32)
        for _ in range(6):
            peer.infer(module, {"x": x}, ["y"], until=until, request="r", trace=None, ask=Ask())
        assert measured.links()[0].sent is None, "as much came back"
    with peer_of(trio, plan, trio.camera, measured=measured) as peer:
        for _ in range(11):
            peer.is_there(1.0)
        both = {"left": x, "right": x}
        for _ in range(6):
            peer.infer(plan.modules["head"], both, ["release"], until=until, request="r", trace=None, ask=Ask())
        link = next(one for one in measured.links() if one.device == trio.camera.device)
        assert (link.sent.count, link.received) == (6, None)
        assert link.sent.median < 1e-6, "a megabyte takes no second here"


def test_a_request_under_another_plan_or_for_another_release_is_refused_by_name(
    answering: tuple[Trio, SitePlan, SiteMember],
) -> None:
    trio, plan, _ = answering
    with peer_of(trio, plan, trio.box) as peer:
        assert set(ask_vision(peer, plan)) == {"y"}
        with pytest.raises(NotHeld, match="vision@2 is not held here"):
            ask_vision(peer, plan, release=2)
    said = "under plan line-3/2, its connection under line-3/1"
    with peer_of(trio, plan, trio.box, title="line-3/2") as peer, pytest.raises(OtherPlan, match=said):
        ask_vision(peer, plan)


def test_a_certificate_of_one_plan_opens_nothing_of_another(trio: Trio) -> None:
    old, new = trio.plan(1), trio.plan(2, release=2)
    install(old, trio.all)
    install(new, trio.all)
    with running(trio.box, old) as box:
        with peer_of(trio, new, trio.box) as peer, pytest.raises(Unreachable):
            ask_vision(peer, new)
        box.hold(new)
        with peer_of(trio, new, trio.box) as peer:
            assert set(ask_vision(peer, new)) == {"y"}
            mixed = replace(old, number=2)  # asks for the new plan's name, and shows the old one's certificate
            with peer_of(trio, mixed, trio.box) as other, pytest.raises(Unreachable):
                ask_vision(other, mixed)
            box.let_go(2)
            with pytest.raises(NotHeld, match="not held here any more"):  # over the connection that is still open
                ask_vision(peer, new)


def test_a_plan_that_is_over_begins_and_answers_nothing_by_signed_time(trio: Trio) -> None:
    plan = trio.plan()
    install(plan, trio.all)
    ahead = [timedelta()]

    def clock() -> datetime:
        return datetime.now(UTC) + ahead[0]

    with (
        member_in_this_process(trio.box.folder, trio.box.device, trio.box.address) as box,
        running(trio.server, plan),
        member_in_this_process(trio.camera.folder, trio.camera.device) as camera,
    ):
        box.hold(plan, clock)
        camera.hold(plan, clock)
        camera.serve(1)
        inputs = some_inputs()
        check(camera.router.infer_task("find", inputs), inputs)
        ahead[0] = timedelta(hours=2)
        with pytest.raises(PlanExpired, match=r"plan line-3/1 ended at"):
            camera.router.infer_task("find", inputs)
        with peer_of(trio, plan, trio.box) as peer, pytest.raises(PlanExpired):
            ask_vision(peer, plan)


def test_while_the_plan_changes_under_load_every_answer_is_wholly_of_one_plan(trio: Trio) -> None:
    old, new = trio.plan(1), trio.plan(2, release=2)
    install(old, trio.all)
    install(new, trio.all)
    answers: list[tuple[Mapping[str, Array], TaskAnswer]] = []
    wrong: list[BaseException] = []
    stop = threading.Event()
    with running(trio.box, old) as box, running(trio.server, old) as server, running(trio.camera, old) as camera:
        camera.serve(1)

        def ask(seed: int) -> None:
            turn = 0
            while not stop.is_set():
                inputs = some_inputs(2, seed * 10_000 + turn)
                turn += 1
                try:
                    answers.append((inputs, camera.router.infer_task("find", inputs)))
                except BaseException as bad:  # noqa: BLE001  # told below
                    wrong.append(bad)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        for member in (box, server, camera):
            member.hold(new)
        camera.serve(2)
        before = len(answers)
        while len(answers) < before + 50:
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join(20)
        for member in (camera, server, box):
            member.let_go(1)
    assert wrong == []
    plans = {answer.plan for _, answer in answers}
    assert plans == {"line-3/1", "line-3/2"}
    for inputs, answer in answers:
        release = int(answer.plan[-1])
        assert {hop.release for hop in answer.steps} == {release}
        check(answer, inputs, dict.fromkeys(("vision", "text", "head"), release))
