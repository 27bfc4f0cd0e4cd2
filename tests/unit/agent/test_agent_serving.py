"""What applications on the device see: answers over loopback, swapped without a dropped request, digests on request."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tiny_onnx
import uvicorn
from one_device import INPUTS, MODEL, OneDevice, one_device
from swap_load import load

from sprat_client.agent import Endpoint
from sprat_client.agent.http_endpoint import SAFETENSORS, HttpEndpoint
from sprat_client.agent.loop import Agent
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput, NotFound


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        yield device


@pytest.fixture
def agent(device: OneDevice) -> Iterator[Agent]:
    with device.agent(port=0) as agent:
        yield agent


@pytest.fixture
def http(agent: Agent) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=agent.url, trust_env=False) as client:
        yield client


def expected(device: OneDevice, release: int = 1) -> np.ndarray:
    return tiny_onnx.logits(device.server.models[MODEL][release].weights, INPUTS)


def test_json_is_answered_with_the_release_that_answered(device: OneDevice, http: httpx.Client) -> None:
    answer = http.post(f"/v1/models/{MODEL}/infer", json={"inputs": INPUTS.tolist()}).json()
    assert (answer["model"], answer["release"]) == (MODEL, 1)
    np.testing.assert_allclose(answer["outputs"]["logits"], expected(device), rtol=1e-4)
    named = http.post(f"/v1/models/{MODEL}/infer", json={"inputs": {"inputs": INPUTS.tolist()}}).json()
    assert named == answer


def test_safetensors_are_answered_in_kind(device: OneDevice, http: httpx.Client) -> None:
    body = encode_tensors({"inputs": INPUTS})
    answer = http.post(f"/v1/models/{MODEL}/infer", content=body, headers={"Content-Type": SAFETENSORS})
    assert answer.headers["Content-Type"] == SAFETENSORS
    assert answer.headers["Sprat-Release"] == "1"
    np.testing.assert_allclose(decode_tensors(answer.content)["logits"], expected(device), rtol=1e-4)


def test_the_python_call_asks_the_agent_that_runs_on_a_folder(device: OneDevice, agent: Agent) -> None:
    assert agent.url
    with Endpoint(device.folder) as endpoint:
        answer = endpoint.infer(MODEL, INPUTS)
        assert answer.release == 1
        np.testing.assert_allclose(answer.outputs["logits"], expected(device), rtol=1e-4)
        with pytest.raises(InvalidInput, match="takes shape"):
            endpoint.infer(MODEL, INPUTS[:, :3])
        with pytest.raises(NotFound, match="not served here"):
            endpoint.infer("other", INPUTS)
        assert endpoint.describe(MODEL, verify=True)["digest_matches"]


def test_the_python_call_says_where_no_agent_runs(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="sprat-agent run"):
        Endpoint(tmp_path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "the body must be"),
        (b'{"inputs": [[1, 2], [3]]}', "equally long rows"),
        (b'{"inputs": [[1, 2]]}', "the model takes shape ?x12, got 1x2"),
        (b'{"inputs": [["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]]}', "the model takes float32"),
        (b'{"inputs": {"image": [[1]]}}', "the model takes inputs; got image"),
    ],
)
def test_inputs_that_do_not_fit_are_a_bad_request_and_do_not_count_against_the_release(
    agent: Agent, http: httpx.Client, body: bytes, said: str
) -> None:
    answer = http.post(f"/v1/models/{MODEL}/infer", content=body)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert agent._shop.servings.of(MODEL).failed == 0


def test_what_is_not_there_is_not_found(http: httpx.Client) -> None:
    assert http.get("/v1/models/other").status_code == 404
    assert http.get("/elsewhere").status_code == 404
    assert http.delete(f"/v1/models/{MODEL}").status_code == 404


def test_a_name_that_a_web_page_could_point_here_is_refused(http: httpx.Client) -> None:
    assert http.get("/healthz").status_code == 200
    assert http.get("/healthz", headers={"Host": "evil.example"}).status_code == 400


def test_the_digest_is_recomputed_from_the_mapped_files_on_request(device: OneDevice, http: httpx.Client) -> None:
    plain = http.get(f"/v1/models/{MODEL}").json()
    assert "digest" not in plain
    said = http.get(f"/v1/models/{MODEL}?verify=1").json()
    assert (said["digest"], said["digest_matches"]) == (device.server.models[MODEL][1].digest, True)
    assert [item["release"] for item in http.get("/v1/models").json()["items"]] == [1]


@pytest.mark.parametrize("index", range(5))
def test_one_corrupted_byte_in_a_store_file_is_seen(device: OneDevice, http: httpx.Client, index: int) -> None:
    (release,) = (device.folder / "models" / MODEL / "releases").iterdir()
    inode = (release / "t" / str(index)).stat().st_ino
    stored = next(path for path in (device.folder / "store").rglob("*") if path.stat().st_ino == inode)
    stored.chmod(0o600)
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    said = http.get(f"/v1/models/{MODEL}?verify=1").json()
    assert said["digest_matches"] is False
    assert said["digest"] != said["weights"]


def test_no_request_is_dropped_while_releases_are_swapped_and_each_answer_is_of_the_release_it_names(
    tmp_path: Path,
) -> None:
    seen, swaps = load(tmp_path, swaps=12, clients=3)
    assert seen.failures == []
    assert seen.foreign == []
    assert swaps >= 12
    assert len(seen.answers) >= 4
    assert seen.changes >= 12


def test_a_port_that_is_taken_is_said_so_and_the_folder_is_free_again(agent: Agent, tmp_path: Path) -> None:
    taken = int(agent.url.rpartition(":")[2])
    (tmp_path / "other").mkdir()
    with one_device(tmp_path / "other") as other:
        with pytest.raises(InvalidInput, match=f"--port {taken}"), other.agent(port=taken):
            pass
        assert other.serves() == 1


def test_an_address_that_is_told_is_never_refused(device: OneDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Event()
    run = uvicorn.Server.run

    def late(self: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        begin.wait()
        run(self, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", late)
    with device.agent() as agent:
        endpoint = HttpEndpoint(agent._applications, 0)
    url = httpx.URL(endpoint.start())
    try:
        with socket.create_connection((url.host, url.port or 0), timeout=5) as early:
            begin.set()
            early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert early.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        begin.set()
        endpoint.stop()
