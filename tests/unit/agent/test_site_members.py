"""Members of a site on loopback, some as processes: right answers, one plan each, nothing for strangers, no hanging."""

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import made_sites
import numpy as np
import pytest
import site_member
from demo.fault_proxy import FaultProxy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_sites import WIDTH, MadeMember, at, expected_find, made_plan
from site_member import SiteMember, member_in_this_process

from sprat_client.agent.site.failures import (
    DeadlineOver,
    NoSuchTask,
    NotHeld,
    OtherPlan,
    PlanExpired,
    Unreachable,
    said_by,
)
from sprat_client.agent.site.peer import Ask, Peer
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_client.agent.site.tls import client_context
from sprat_client.runtime.tensor_bodies import encode_tensors
from sprat_shared.errors import InvalidInput, SpratError
from sprat_shared.protocol.site_plan import SitePlan

Array = np.ndarray[Any, Any]
FIRST = {"vision": 1, "text": 1, "head": 1, "small": 1}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def a_member(name: str, folder: Path) -> MadeMember:
    return MadeMember(name, folder / name, f"127.0.0.1:{free_port()}")


def install(plan: SitePlan, members: Sequence[MadeMember], *, slow: int = 0) -> None:
    """Write plan and modules into the folders of its members."""
    for member in members:
        (member.folder / f"{plan.number}.plan").write_bytes(plan.to_bytes())
        for one in plan.modules_of(member.device):
            folder = member.folder / f"{one.model}@{one.release}"
            folder.mkdir(exist_ok=True)
            (folder / "graph.onnx").write_bytes(made_sites.graph(one.model, one.release, slow=slow))


def some_inputs(rows: int = 3, seed: int = 0) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal((rows, WIDTH)).astype(np.float32) for name in ("image", "words")}


def check(answer: TaskAnswer, inputs: Mapping[str, Array], releases: Mapping[str, int] = FIRST) -> None:
    """Hold an answer of the task's own graph against the modules in one process."""
    for name, value in expected_find(releases, inputs["image"], inputs["words"]).items():
        np.testing.assert_allclose(answer.outputs[name], value, rtol=1e-4, atol=1e-5)


def check_fallback(answer: TaskAnswer, inputs: Mapping[str, Array]) -> None:
    assert answer.fallback
    assert {hop.device for hop in answer.steps} == {"camera"}
    np.testing.assert_allclose(
        answer.outputs["score"], made_sites.expected("small", 1, list(inputs.values()))["y"], rtol=1e-4, atol=1e-5
    )


@dataclass
class Trio:
    """A camera that is asked, and two that hold what it needs: both vision, the server text; head is the camera's."""

    camera: MadeMember
    box: MadeMember
    server: MadeMember

    @property
    def all(self) -> list[MadeMember]:
        return [self.camera, self.box, self.server]

    def plan(self, number: int = 1, release: int = 1, **more: Any) -> SitePlan:
        modules = {
            "vision": (release, [self.box, self.server]),
            "text": (release, [self.server]),
            "head": (release, [self.camera]),
            "small": (1, [self.camera]),
        }
        return made_plan(self.all, modules, number=number, **more)


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    return Trio(*(a_member(name, tmp_path) for name in ("camera", "box", "server")))


@contextlib.contextmanager
def running(member: MadeMember, plan: SitePlan, **changes: Any) -> Iterator[SiteMember]:
    with member_in_this_process(member.folder, member.device, member.address, **changes) as one:
        one.hold(plan)
        yield one


@contextlib.contextmanager
def process(member: MadeMember) -> Iterator[subprocess.Popen[bytes]]:
    """Run a member by itself, until it is ready; whatever was done to it, it is gone in the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}
    command = [sys.executable, site_member.__file__, str(member.folder), str(member.device), member.address[10:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == b"ready\n"
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                started.send_signal(signal.SIGCONT)
            started.kill()


@pytest.fixture
def answering(trio: Trio) -> Iterator[tuple[Trio, SitePlan, SiteMember]]:
    """All three in this process, serving."""
    plan = trio.plan(fallback=False)
    install(plan, trio.all)
    with running(trio.box, plan), running(trio.server, plan), running(trio.camera, plan) as camera:
        camera.serve(1)
        yield trio, plan, camera


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


# strangers


def handshake(address: str, context: ssl.SSLContext, name: str) -> bytes:
    """Open a connection and ask for something; return what came, empty where nothing did."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 5) as sock, context.wrap_socket(sock, server_hostname=name) as tls:
        tls.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        return tls.recv(100)


def test_a_stranger_without_a_certificate_of_the_plan_gets_nothing(
    answering: tuple[Trio, SitePlan, SiteMember], tmp_path: Path
) -> None:
    trio, plan, _ = answering
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    stranger = a_member("stranger", tmp_path)
    others = made_plan([stranger], {name: (1, [stranger]) for name in ("vision", "text", "head")})
    for context in (
        bare,
        client_context(replace(others, authority=plan.authority), others.members[0], stranger.folder / "device.key"),
    ):
        for name in (plan.server_name, "8.line-3.plan.sprat", others.server_name, "localhost"):
            got = b""
            with contextlib.suppress(OSError):
                got = handshake(trio.box.address, context, name)
            assert got == b""
    host, port = trio.box.address.split(":")
    with socket.create_connection((host, int(port)), 5) as plain:
        plain.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert not plain.recv(100).startswith(b"HTTP")


def test_many_handshakes_that_never_end_keep_no_member_out(answering: tuple[Trio, SitePlan, SiteMember]) -> None:
    trio, _, camera = answering
    host, port = trio.server.address.split(":")
    with contextlib.ExitStack() as open_ones:
        for _ in range(20):
            open_ones.enter_context(socket.create_connection((host, int(port)), 5))
        inputs = some_inputs()
        check(camera.router.infer_task("find", inputs), inputs)


def test_a_device_at_another_one_s_address_is_told_nothing(trio: Trio) -> None:
    plan = trio.plan()
    install(plan, trio.all)
    swapped = at(plan, trio.server.device, trio.box.address)  # as after addresses were given anew
    with running(trio.box, plan), running(trio.camera, swapped) as camera:
        camera.serve(1, beating=False)
        with pytest.raises(Unreachable, match="another member"):
            camera.router.infer_task("find", some_inputs())


# plans


@contextlib.contextmanager
def peer_of(trio: Trio, plan: SitePlan, member: MadeMember, *, title: str | None = None) -> Iterator[Peer]:
    """Yield a member as the camera asks it."""
    context = client_context(plan, plan.member[trio.camera.device], trio.camera.folder / "device.key")
    peer = Peer(
        plan.member[member.device],
        title=title or plan.title,
        server_name=plan.server_name,
        context=context,
        most_bytes=1 << 20,
    )
    yield peer
    peer.drop("the test is over")


def ask_vision(peer: Peer, plan: SitePlan, **change: Any) -> Mapping[str, Array]:
    module = replace(plan.modules["vision"], **change)
    inputs = {"x": some_inputs()["image"]}
    until = time.monotonic() + 5
    return peer.infer(module, inputs, ["y"], until=until, request="r", trace=None, ask=Ask()).outputs


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


# what is malformed


class Raw:
    """A member that sends whatever it likes."""

    def __init__(self, trio: Trio, plan: SitePlan, address: str) -> None:
        self.plan, self.address = plan, address
        self.context = client_context(plan, plan.member[trio.camera.device], trio.camera.folder / "device.key")
        self.headers = {
            "Sprat-Plan": plan.title,
            "Sprat-Deadline-Ms": "5000",
            "Content-Type": "application/vnd.safetensors",
        }

    def send(self, body: bytes, path: str = "vision/versions/1/infer", **changes: str | None) -> tuple[int, bytes]:
        host, port = self.address.split(":")
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        headers = {name: value for name, value in (self.headers | named).items() if value is not None}
        with (
            socket.create_connection((host, int(port)), 10) as sock,
            self.context.wrap_socket(sock, server_hostname=self.plan.server_name) as tls,
        ):
            connection = http.client.HTTPConnection(host)
            connection.sock = tls
            connection.request("POST", f"/v2/models/{path}", body, headers)
            with connection.getresponse() as response:
                return response.status, response.read()


def named(status: int, body: bytes) -> SpratError:
    """Return the error of an answer that must be one by name, and must be of the kind that says what was wrong."""
    assert 400 <= status < 500, (status, body)
    assert b'"code"' in body
    return said_by(status, body)


@pytest.fixture
def raw(answering: tuple[Trio, SitePlan, SiteMember]) -> Raw:
    trio, plan, _ = answering
    return Raw(trio, plan, trio.box.address)


GOOD = encode_tensors({"x": np.ones((2, WIDTH), np.float32)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Sprat_Plan": None}, "under plan None"),
        ({"Sprat_Deadline_Ms": None}, "Sprat-Deadline-Ms"),
        ({"Sprat_Deadline_Ms": "-5"}, "Sprat-Deadline-Ms"),
        ({"Sprat_Deadline_Ms": "9" * 40}, "Sprat-Deadline-Ms"),
        ({"Content_Type": "application/x-pickle"}, "Content-Type must be"),
        ({"Content_Length": "99999999999"}, "bytes; 67108864 may come"),
        ({"path": "vision/versions/1/infer?output=z"}, "no output 'z'"),
        ({"path": "vision/versions/2/infer"}, "not held here"),
        ({"path": "../../etc/passwd"}, "no such route"),
        ({f"H_{n}": "x" for n in range(60)}, "headers; 50 may come"),
    ],
)
def test_a_request_that_is_malformed_is_refused_by_name(raw: Raw, change: dict[str, Any], said: str) -> None:
    assert raw.send(GOOD)[0] == 200
    bad = named(*raw.send(GOOD, **change))
    assert said in str(bad)


def test_a_body_that_does_not_come_is_waited_for_no_longer_than_the_deadline(raw: Raw) -> None:
    begun = time.monotonic()
    bad = named(*raw.send(GOOD[:-4], Content_Length=str(len(GOOD)), Sprat_Deadline_Ms="300"))
    assert "not all came in time" in str(bad)
    assert time.monotonic() - begun < 3


def with_header(head: bytes, rest: bytes = b"") -> bytes:
    return len(head).to_bytes(8, "little") + head + rest


def with_byte(at_: int, byte: int) -> bytes:
    return GOOD[:at_] + bytes([byte]) + GOOD[at_ + 1 :]


def with_tensor(shape: list[int], name: str) -> bytes:
    return encode_tensors({name: np.zeros(shape, np.float32)})


def with_shape(shape: list[int]) -> bytes:
    return with_header(f'{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}'.encode())


BODIES = st.one_of(
    st.binary(max_size=300),
    st.builds(with_header, st.binary(max_size=100), st.binary(max_size=50)),
    st.builds(with_byte, st.integers(0, len(GOOD) - 1), st.integers(0, 255)),
    st.integers(0, len(GOOD) - 1).map(lambda end: GOOD[:end]),
    st.builds(with_tensor, st.lists(st.integers(0, 5), max_size=5), st.sampled_from(["x", "z"])),
    st.lists(st.integers(-5, 1 << 70), max_size=4).map(with_shape),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(with_shape([50_000, 5_500_000]))
@given(BODIES)
def test_whatever_body_comes_is_answered_or_refused_by_name(raw: Raw, body: bytes) -> None:
    status, answer = raw.send(body)
    if status != 200:
        named(status, answer)
