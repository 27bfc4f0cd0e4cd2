"""Members that moved: found by multicast DNS on loopback, believed by their certificate alone; the plan comes first."""

import contextlib
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import UUID, uuid4

import ifaddr
import pytest
from site_member import SiteMember, member_in_this_process
from three_members import Trio, check, install, own_port, running, some_inputs, trio_in
from zeroconf import DNSAddress, DNSOutgoing, DNSService, DNSText, Zeroconf

from sprat_client.agent.site import mdns, whereabouts
from sprat_client.agent.site.failures import NotHeld, Unreachable
from sprat_client.agent.site.mdns import MdnsHints
from sprat_client.agent.site.whereabouts import Hint, Whereabouts
from sprat_shared.protocol.site_plan import SitePlan

LOOPBACK = "127.0.0.1"


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    return trio_in(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "_HINT_EVERY_S", 0.2)
    monkeypatch.setattr(whereabouts, "_HOME_EVERY_S", 0.5)
    monkeypatch.setattr(mdns, "_LOOK_S", 0.2)


@contextlib.contextmanager
def elsewhere(trio: Trio, plan: SitePlan) -> Iterator[tuple[SiteMember, tuple[str, int]]]:
    """The server, at another port than the plan's, and saying so."""
    port = own_port()
    with member_in_this_process(trio.server.folder, trio.server.device, f"{LOOPBACK}:{port}", mdns=True) as server:
        server.hold(plan)
        yield server, (LOOPBACK, port)


def until(look: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, what
        time.sleep(0.02)


@contextlib.contextmanager
def saying(device: UUID, port: int) -> Iterator[None]:
    """Somebody says that a device is at a port of this machine."""
    stranger = MdnsHints(device, (LOOPBACK, port))
    stranger.announce()
    try:
        yield
    finally:
        stranger.close()


# members that moved


def test_a_member_at_another_port_than_its_plan_s_is_found_and_the_plan_s_is_taken_again(trio: Trio) -> None:
    plan = trio.plan()
    install(plan, trio.all)
    inputs = some_inputs()
    with running(trio.box, plan), running(trio.camera, plan, mdns=True) as camera:
        held = camera.serve(1)
        peer = held.peers[trio.server.device]
        with elsewhere(trio, plan) as (_, where):
            until(lambda: peer.moved == where and not peer.breaker.away, "it is not found")
            check(camera.router.infer_task("find", inputs), inputs)
            assert f"{trio.server.address}, found at {LOOPBACK}:{where[1]}" in peer.said
            moved = {
                labels["device"]: value for name, _, labels, value in camera.router.gauges() if name == "site_moved"
            }
            assert moved == {"box": 0, "server": 1}
            with running(trio.server, plan):
                until(lambda: peer.moved is None, "the plan's address is not taken again")
                check(camera.router.infer_task("find", inputs), inputs)
            until(lambda: peer.moved == where, "it is not found a second time")
            check(camera.router.infer_task("find", inputs), inputs)
        until(lambda: bool(peer.breaker.away), "it is gone, and still believed to be there")
        assert peer.moved is None
        with elsewhere(trio, plan) as (_, where):
            until(lambda: peer.moved == where and not peer.breaker.away, "it is not found after it moved once more")
            check(camera.router.infer_task("find", inputs), inputs)


class Listening:
    """Takes connections, keeps what comes, and says nothing."""

    def __init__(self) -> None:
        self.socket = socket.create_server((LOOPBACK, 0))
        self.port: int = self.socket.getsockname()[1]
        self.came: list[bytes] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self.socket.accept()
                with one:
                    one.settimeout(5)
                    came = b""
                    with contextlib.suppress(OSError):
                        while more := one.recv(65536):
                            came += more
                    self.came.append(came)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def test_strangers_under_a_member_s_id_get_one_handshake_each_and_the_member_is_found_all_the_same(
    trio: Trio, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plan = trio.plan()
    install(plan, trio.all)
    forged = trio.plan()  # the same names and ids, by another authority
    stranger_port, silent = own_port(), Listening()

    def wrong() -> set[str]:
        return {one.hint for one in caplog.records if one.message.endswith("was wrong")}  # type: ignore[attr-defined]

    with (
        running(trio.box, plan),
        member_in_this_process(trio.server.folder, trio.server.device, f"{LOOPBACK}:{stranger_port}") as stranger,
        saying(trio.server.device, stranger_port),  # with a certificate of its own
        saying(trio.server.device, int(trio.box.address.split(":")[1])),  # with one of the plan, of another member
        saying(trio.server.device, silent.port),  # with none
        running(trio.camera, plan, mdns=True) as camera,
    ):
        stranger.hold(forged)
        peer = camera.serve(1).peers[trio.server.device]
        said = {f"{LOOPBACK}:{stranger_port}", trio.box.address, f"{LOOPBACK}:{silent.port}"}
        until(lambda: wrong() == said, "not all were tried")
        assert peer.moved is None
        assert peer.breaker.away
        with elsewhere(trio, plan) as (_, where):
            until(lambda: peer.moved == where and not peer.breaker.away, "it is not found")
            inputs = some_inputs()
            check(camera.router.infer_task("find", inputs), inputs)
    silent.close()
    reasons = {one.hint: one.detail for one in caplog.records if one.message.endswith("was wrong")}  # type: ignore[attr-defined]
    assert "certificate verify failed" in reasons[f"{LOOPBACK}:{stranger_port}"]
    assert "is another member" in reasons[trio.box.address]
    assert silent.came
    for came in silent.came:
        assert came[:1] == b"\x16", "a handshake, and nothing else"
        assert b"/v2/" not in came


class Counting:
    """Hints that lead nowhere; notes who asks for them."""

    def __init__(self) -> None:
        self.asked: list[tuple[UUID, str]] = []
        self._port = own_port()

    def of(self, device: UUID) -> Sequence[Hint]:
        self.asked.append((device, threading.current_thread().name))
        return [Hint(LOOPBACK, self._port, len(self.asked))]


def test_nobody_is_looked_for_while_all_answer_and_no_request_ever_looks(trio: Trio) -> None:
    plan = trio.plan(deadline_s=1.0)
    install(plan, trio.all)
    hints, inputs = Counting(), some_inputs()
    with running(trio.box, plan), running(trio.camera, plan) as camera:
        with running(trio.server, plan):
            peer = camera.serve(1, hints=hints).peers[trio.server.device]
            for _ in range(10):
                check(camera.router.infer_task("find", inputs), inputs)
                time.sleep(0.1)
            assert hints.asked == []
        until(lambda: bool(peer.breaker.away), "nobody noticed")
        for _ in range(5):
            begun = time.monotonic()
            with pytest.raises(Unreachable, match="server"):
                camera.router.infer_task("find", inputs)
            assert time.monotonic() - begun < 0.9
        with running(trio.server, plan):
            until(lambda: not peer.breaker.away, "wrong hints keep it from the plan's address")
            check(camera.router.infer_task("find", inputs), inputs)
    assert set(hints.asked) == {(trio.server.device, "site-server")}


# one member, step by step


class Place:
    """Stands for a peer: is where it is, and notes where it is looked for."""

    def __init__(self, trio: Trio, plan: SitePlan) -> None:
        self.member = plan.member[trio.server.device]
        self.said = self.member.name
        self.moved: tuple[str, int] | None = None
        self.at: tuple[str, int] | None = None
        self.looked: list[tuple[str, int]] = []
        self.refusal: Exception = Unreachable("nobody")

    def is_there(self, _: float) -> float:
        return self._look(self.moved or self.member.host)

    def try_at(self, where: tuple[str, int] | None, _: float) -> float:
        took_s = self._look(where or self.member.host)
        self.moved = where
        return took_s

    def ask_at(self, where: tuple[str, int] | None) -> None:
        self.moved = where

    def _look(self, where: tuple[str, int]) -> float:
        self.looked.append(where)
        if where != self.at:
            raise self.refusal
        return 0.0


class Heard:
    def __init__(self) -> None:
        self.hints: list[Hint] = []

    def of(self, _: UUID) -> Sequence[Hint]:
        return self.hints


def test_each_hint_is_tried_once_until_it_is_heard_again_and_the_plan_s_address_before_each(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whereabouts, "_HINT_EVERY_S", 1.0)
    monkeypatch.setattr(whereabouts, "_HOME_EVERY_S", 5.0)
    peer, heard, now = Place(trio, trio.plan()), Heard(), [0.0]
    one = Whereabouts(peer, 0.6, heard, lambda: now[0])  # type: ignore[arg-type]
    home, first, second = peer.member.host, ("10.0.0.1", 1), ("10.0.0.2", 2)

    def beat(seconds: float) -> list[tuple[str, int]]:
        now[0] += seconds
        peer.looked.clear()
        with contextlib.suppress(Unreachable):
            one.beat()
        return list(peer.looked)

    heard.hints = [Hint(*second, 4), Hint(*home, 2), Hint(*first, 3)]
    assert beat(10) == [home, first]
    assert beat(0.3) == [home], "one hint a second"
    assert beat(0.8) == [home, second]
    assert beat(60) == [home], "each once"
    heard.hints = [Hint(*first, 9)]
    assert beat(1) == [home, first]
    peer.at = second
    heard.hints = [Hint(*second, 12)]
    assert beat(1) == [home, second]
    assert peer.moved == second
    assert beat(1) == [second]
    assert beat(5) == [home, second], "the plan's address is tried again"
    assert beat(1) == [second]
    peer.at = home
    assert beat(0.1) == [second]
    assert peer.moved is None
    assert beat(0.1) == [home]


def test_a_member_that_answers_but_not_under_this_plan_is_not_looked_for(trio: Trio) -> None:
    peer, heard = Place(trio, trio.plan()), Heard()
    heard.hints, peer.refusal = [Hint("10.0.0.1", 1, 0)], NotHeld("it holds another plan")
    with pytest.raises(NotHeld):
        Whereabouts(peer, 0.6, heard).beat()  # type: ignore[arg-type]
    assert peer.looked == [peer.member.host]


# what is heard


def told(*records: DNSService | DNSAddress | DNSText) -> DNSOutgoing:
    out = DNSOutgoing(0x8400)  # an answer, RFC 1035
    for record in records:
        out.add_answer_at_time(record, 0)
    return out


def test_whatever_is_announced_little_is_kept_and_only_addresses_near_by_of_who_is_looked_for() -> None:
    device, hints = uuid4(), MdnsHints(uuid4(), (LOOPBACK, 9))
    hints.announce()
    name = f"{device}.{mdns._TYPE}"
    with Zeroconf(interfaces=[LOOPBACK], use_asyncio=False) as stranger:
        until(lambda: hints._info is not None, "it does not say where it is")
        assert list(hints.of(device)) == []

        def say(of: str, address: str, port: int) -> None:
            host = f"{of.partition('.')[0]}.local."
            stranger.send(
                told(
                    DNSService(of, 33, 1, 4500, 0, 0, port, host),
                    DNSAddress(host, 1, 1, 4500, socket.inet_aton(address)),
                    DNSText(of, 16, 1, 4_000_000_000, bytes(7000)),
                )
            )

        for number in range(300):
            say(f"{uuid4()}.{mdns._TYPE}", LOOPBACK, 1000 + number)
            say(name, f"127.0.1.{number % 250}", 2000 + number)
            say(name, "192.0.2.7", 3000 + number)
            say(name, LOOPBACK, 0)
            time.sleep(0.002)
        say(name, "127.0.3.3", 33)
        until(lambda: ("127.0.3.3", 33) in {(one.host, one.port) for one in hints.of(device)}, "it is not heard")
        heard = hints.of(device)
        assert len(heard) == 4
        assert all(one.host.startswith("127.") and one.port for one in heard)
        assert list(hints._wanted) == [name]
        zeroconf = hints._zeroconf
        assert zeroconf is not None
        kept = sum(len(zeroconf.cache.entries_with_name(one)) for one in zeroconf.cache.names())
        assert kept <= 8, f"{kept} records of 3,600 are kept"
        assert len(zeroconf.cache._expire_heap) < 250
    hints.close()
    assert not hints._thread.is_alive()


def test_a_device_that_nobody_asks_for_any_more_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "_LAPSE_S", 0.5)
    hints = MdnsHints(uuid4(), (LOOPBACK, 9))
    hints.of(uuid4())
    assert len(hints._wanted) == 1
    until(lambda: not hints._wanted, "it is looked for still")
    hints.close()


def test_without_a_network_it_waits_for_one_and_then_says_where_this_device_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, broken = ifaddr.get_adapters, [True]

    def adapters() -> object:
        if broken[0]:
            raise OSError(19, "no such device")
        return real()

    monkeypatch.setattr(ifaddr, "get_adapters", adapters)
    device, other = uuid4(), MdnsHints(uuid4(), (LOOPBACK, 9))
    one = MdnsHints(device, (LOOPBACK, 10))
    one.announce()
    time.sleep(1)
    assert not other.of(device)
    said = [line for line in caplog.records if "by mDNS just now" in line.message]
    assert len(said) == 2, "each says it once"
    broken[0] = False
    until(lambda: [(hint.host, hint.port) for hint in other.of(device)] == [(LOOPBACK, 10)], "it is not heard")
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("bound", "where"),
    [
        (("10.0.0.5", 1), ["10.0.0.5/24"]),
        (("0.0.0.0", 1), ["10.0.0.5/24", "169.254.3.4/16"]),
        (("::", 1), ["10.0.0.5/24", "169.254.3.4/16", "fd00::5/64"]),
        (None, ["10.0.0.5/24", "169.254.3.4/16"]),
        (("10.9.9.9", 1), []),
    ],
)
def test_it_says_the_addresses_that_it_is_reached_at(
    bound: tuple[str, int] | None, where: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ip(address: str, prefix: int) -> ifaddr.IP:
        return ifaddr.IP((address, 0, 0) if ":" in address else address, prefix, "eth0")

    ips = [ip("10.0.0.5", 24), ip("169.254.3.4", 16), ip("fd00::5", 64), ip("fe80::5", 64), ip("127.0.0.1", 8)]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: [ifaddr.Adapter("eth0", "eth0", ips)])
    monkeypatch.setattr(MdnsHints, "_start", lambda *_: None)
    hints = MdnsHints(uuid4(), bound)
    assert [str(one) for one in hints._interfaces()] == where
    hints.close()


def test_nothing_of_it_is_loaded_where_it_is_not_asked_for() -> None:
    code = (
        "import sys; import sprat_client.agent.loop, sprat_client.agent.site.running, sprat_client.agent.site.plans; "
        "print(sorted({'zeroconf', 'ifaddr'} & sys.modules.keys()))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == "[]\n"
