"""What a member of a site gives to strangers, and to members that send nonsense: nothing, or an error by name."""

import contextlib
import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_sites import WIDTH, at, made_plan
from site_member import SiteMember
from three_members import Trio, a_member, all_answering, check, install, running, some_inputs, trio_in

from sprat_client.agent.site.failures import Unreachable, said_by
from sprat_client.agent.site.tls import client_context
from sprat_client.runtime.tensor_bodies import encode_tensors
from sprat_shared.errors import SpratError
from sprat_shared.protocol.site_plan import SitePlan


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    return trio_in(tmp_path)


@pytest.fixture
def answering(trio: Trio) -> Iterator[tuple[Trio, SitePlan, SiteMember]]:
    with all_answering(trio) as one:
        yield one


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

    def send(
        self, body: bytes, path: str = "vision/versions/1/infer", method: str = "POST", **changes: str | None
    ) -> tuple[int, bytes]:
        host, port = self.address.split(":")
        named = {name.replace("_", "-"): value for name, value in changes.items()}
        headers = {name: value for name, value in (self.headers | named).items() if value is not None}
        with (
            socket.create_connection((host, int(port)), 10) as sock,
            self.context.wrap_socket(sock, server_hostname=self.plan.server_name) as tls,
        ):
            connection = http.client.HTTPConnection(host)
            connection.sock = tls
            connection.request(method, f"/v2/models/{path}", body, headers)
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


def test_a_module_says_whether_it_is_ready_and_what_it_takes(raw: Raw) -> None:
    status, body = raw.send(b"", "vision/versions/1/ready", method="GET")
    assert (status, json.loads(body)) == (200, {"name": "vision", "version": "1", "ready": True})
    said = json.loads(raw.send(b"", "vision/versions/1", method="GET")[1])
    assert said["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, WIDTH], "type": f"float32[n, {WIDTH}]"}]
    for path in ("vision/versions/2/ready", "head/versions/1"):
        bad = named(*raw.send(b"", path, method="GET"))
        assert bad.code == "site.not-held"


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
