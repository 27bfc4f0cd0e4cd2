"""What applications ask of an agent beside answers: errors, samples, health, numbers; and how it ends under them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http import client as http_client
from pathlib import Path

import httpx
import numpy as np
import pytest
import tiny_onnx
from device_server import DeviceServer
from one_device import INPUTS, LABELS, MODEL, OneDevice, one_device

from sprat_client.agent import Endpoint
from sprat_client.agent.http_endpoint import SAFETENSORS
from sprat_client.agent.loop import Agent
from sprat_client.runtime.tensor_bodies import encode_tensors
from sprat_shared.errors import InvalidInput, NotFound, TryLater


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    with one_device(tmp_path) as device:
        yield device


@pytest.fixture
def agent(device: OneDevice) -> Iterator[Agent]:
    with device.agent(port=0, holdouts={}) as agent:
        yield agent


@pytest.fixture
def http(agent: Agent) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=agent.url, trust_env=False) as client:
        yield client


ERRORS, SAMPLES = f"/v1/models/{MODEL}/errors", f"/v1/models/{MODEL}/samples"


def test_errors_are_counted_against_the_release_that_gave_the_answer(http: httpx.Client, agent: Agent) -> None:
    assert http.post(ERRORS, json={"text": "no board was there"}).json() == {"model": MODEL, "release": 1}
    assert http.post(ERRORS, json={"text": "no board was there", "release": 7}).json()["release"] == 7
    assert agent._shop.servings.of(MODEL).reported == 1
    assert http.get(f"/v1/models/{MODEL}").json()["reported"] == 1


UNREADABLE = [
    b"{",
    b"[]",
    b"{}",
    b'{"text": 3}',
    b'{"text": ""}',
    b'{"text": "x", "release": "1"}',
    b'{"text": "x", "release": 0}',
    b'{"text": "x", "release": true}',
    b'{"text": "x", "samples": []}',
    json.dumps({"text": "x" * 501}).encode(),
    b" " * 9000,
]


@pytest.mark.parametrize("body", UNREADABLE)
def test_an_error_that_cannot_be_read_is_a_bad_request(http: httpx.Client, body: bytes) -> None:
    assert http.post(ERRORS, content=body).status_code == 400


@pytest.mark.parametrize("path", [ERRORS, SAMPLES])
def test_a_web_page_in_a_browser_of_the_device_changes_nothing(http: httpx.Client, agent: Agent, path: str) -> None:
    said = {"text": "x"} if path == ERRORS else {"inputs": INPUTS.tolist(), "labels": LABELS.tolist()}
    for origin in ("https://evil.example", "null"):
        assert http.post(path, json=said, headers={"Origin": origin}).status_code == 400
    assert agent._shop.servings.of(MODEL).reported == 0
    assert len(agent._shop.holdouts.of(MODEL)) == 0


def test_of_a_model_that_is_not_served_nothing_is_reported_or_kept(http: httpx.Client) -> None:
    assert http.post("/v1/models/other/errors", json={"text": "x"}).status_code == 404
    assert http.post("/v1/models/other/samples", json={"inputs": [], "labels": []}).status_code == 404


def test_samples_come_as_json_and_as_safetensors(http: httpx.Client, agent: Agent) -> None:
    said = {"inputs": INPUTS[:2].tolist(), "labels": LABELS[:2].tolist()}
    assert http.post(SAMPLES, json=said).json() == {"model": MODEL, "kept": 2}
    body = encode_tensors({"inputs": INPUTS, "labels": LABELS})
    assert http.post(SAMPLES, content=body, headers={"Content-Type": SAFETENSORS}).json()["kept"] == 66
    spec = agent._shop.servings.of(MODEL).host.inputs[0]
    kept = agent._shop.holdouts.of(MODEL).load(spec)
    assert kept is not None
    np.testing.assert_array_equal(kept.inputs, np.concatenate([INPUTS[:2], INPUTS]))


@pytest.mark.parametrize(
    "said",
    [
        {"inputs": [[1, 2], [3]], "labels": [0, 1]},
        {"inputs": [[1.0] * 12]},
        {"inputs": [[1.0] * 12], "labels": ["cat"]},
    ],
)
def test_samples_that_cannot_be_used_are_a_bad_request(http: httpx.Client, said: dict[str, object]) -> None:
    answer = http.post(SAMPLES, json=said)
    assert answer.status_code == 400, answer.text
    assert http.get("/healthz").status_code == 200


def test_writes_are_held_to_a_rate_and_answers_are_not(http: httpx.Client, agent: Agent) -> None:
    answers = [http.post(ERRORS, json={"text": "x"}) for _ in range(40)]
    late = [answer for answer in answers if answer.status_code == 429]
    assert 10 <= len(late) <= 20
    assert (late[0].headers["Retry-After"], late[0].json()["code"]) == ("1", "endpoint.too-many")
    assert agent._shop.servings.of(MODEL).reported == 40 - len(late)
    assert http.post(f"/v1/models/{MODEL}/infer", json={"inputs": INPUTS.tolist()}).status_code == 200


def test_the_python_call_reports_errors_and_adds_samples(device: OneDevice, agent: Agent) -> None:
    with Endpoint(device.folder) as endpoint:
        release = endpoint.infer(MODEL, INPUTS).release
        assert endpoint.report_error(MODEL, "no board was there", release=release) == 1
        assert endpoint.add_labelled(MODEL, INPUTS, LABELS) == 64
        assert endpoint.add_labelled(MODEL, INPUTS[0:1], [1]) == 65
        with pytest.raises(InvalidInput, match="1 to 500"):
            endpoint.report_error(MODEL, " ")
        with pytest.raises(InvalidInput, match="counted from 0"):
            endpoint.add_labelled(MODEL, INPUTS[:1], [-1])
        with pytest.raises(NotFound):
            endpoint.report_error("other", "x")
        with pytest.raises(TryLater, match="at once"):
            list(map(endpoint.report_error, [MODEL] * 30, ["x"] * 30))
    assert agent.report_error(MODEL, "in this process") == 1


def test_healthz_says_what_is_wrong_and_fails_where_a_model_does_not_answer(
    device: OneDevice, agent: Agent, http: httpx.Client
) -> None:
    assert http.get("/healthz").json() == {"status": "ok", "models": [MODEL], "wrong": []}
    bad = {**tiny_onnx.weights(99), "steps": tiny_onnx.weights(1)["steps"]}
    device.server.add_release(MODEL, bad, base=1, lossless=True)
    agent.add_labelled(MODEL, INPUTS, LABELS)
    device.server.assign(MODEL, 2)
    assert agent.run(once=True) == 76
    answer = http.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["wrong"][0] | {"detail": ""} == {"code": "validation.worse", "model": MODEL, "detail": ""}
    agent._shop.servings.swap(MODEL, None)
    answer = http.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")
    assert "model.not-served" in {wrong["code"] for wrong in answer.json()["wrong"]}


LINE = re.compile(r'(sprat_agent_[a-z_]+)(\{(?:[a-z]+="[^"]*",?)*\})? (-?[0-9.e+-]+)')


def test_metrics_are_prometheus_text_with_counts_by_release(http: httpx.Client, agent: Agent) -> None:
    for _ in range(3):
        http.post(f"/v1/models/{MODEL}/infer", json={"inputs": INPUTS.tolist()})
    http.post(ERRORS, json={"text": "x"})
    agent.add_labelled(MODEL, INPUTS, LABELS)
    answer = http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    values, typed = {}, set[str]()
    for line in answer.text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) sprat_agent_[a-z_]+ .+", line)
            typed.add(line.split()[2])
            continue
        match = LINE.fullmatch(line)
        assert match, line
        assert re.sub("_(bucket|sum|count)$", "", match[1]) in typed
        values[f"{match[1]}{match[2] or ''}".removeprefix("sprat_agent_")] = float(match[3])
    of = f'{{model="{MODEL}",release="1"}}'
    assert values[f"requests_total{of}"] == values[f"request_seconds_count{of}"] == 3
    assert values[f'request_seconds_bucket{{model="{MODEL}",release="1",le="+Inf"}}'] == 3
    assert values[f"reported_errors_total{of}"] == 1
    assert values[f'state{{model="{MODEL}",state="idle"}}'] == 1
    assert values[f'release{{model="{MODEL}"}}'] == 1
    assert values[f'holdout_samples{{model="{MODEL}"}}'] == 64
    assert values[f'swaps_total{{model="{MODEL}"}}'] == 1
    assert (values["reports_waiting"], values["wrong"]) == (0, 0)
    assert values["resident_bytes"] > 1 << 20
    assert 0 < values["private_bytes"] < values["resident_bytes"]
    assert values["private_bytes"] / 2 < values["proportional_bytes"] <= values["resident_bytes"] * 1.1


def test_models_answer_side_by_side(device: OneDevice, agent: Agent, http: httpx.Client) -> None:
    device.server.add_release("other", tiny_onnx.weights(3))
    device.server.assign("other", 1)
    assert agent.run(once=True) == 0
    serving, go_on, begun = agent._shop.servings.of(MODEL), threading.Event(), threading.Event()
    run = serving.host.run

    class Hanging:
        inputs, outputs = serving.host.inputs, serving.host.outputs

        def run(self, values: dict[str, np.ndarray]) -> list[np.ndarray]:
            begun.set()
            go_on.wait(10)
            return run(values)

    serving.host = Hanging()
    late: list[int] = []
    waiting = threading.Thread(
        target=lambda: late.append(
            httpx.post(f"{agent.url}/v1/models/{MODEL}/infer", json={"inputs": INPUTS.tolist()}).status_code
        )
    )
    waiting.start()
    assert begun.wait(10)
    try:
        answer = http.post("/v1/models/other/infer", json={"inputs": INPUTS.tolist()}, timeout=5)
        assert answer.status_code == 200
        assert late == []
    finally:
        go_on.set()
        waiting.join()
    assert late == [200]


# the end ----------------------------------------------------------------------------------------------------------

_SLOW_AGENT = """
import sys, time, signal
from pathlib import Path
from one_device import agent_on
from spoiled_runtime import SpoiledRuntime

def late(outputs):
    time.sleep(1.0)
    return outputs

with agent_on(Path(sys.argv[1]), runtime=SpoiledRuntime(1, late), port=0) as agent:
    signal.signal(signal.SIGTERM, lambda *_: agent.stop())
    print(agent.url, flush=True)
    agent.run()
"""


def test_a_request_under_way_is_answered_when_the_agent_is_told_to_end(device: OneDevice) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW_AGENT, str(device.folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as said:
        url = said.readline().strip()
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
            client.get("/healthz")  # the connection is kept
            answers.append(client.post(f"/v1/models/{MODEL}/infer", json={"inputs": INPUTS.tolist()}))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)
    for asker in askers:
        asker.join()
    assert process.wait(20) == 0
    assert [answer.status_code for answer in answers] == [200, 200]
    assert {answer.json()["release"] for answer in answers} == {1}


def test_an_idle_connection_is_kept_for_longer_than_clients_keep_it(agent: Agent) -> None:
    url = httpx.URL(agent.url)
    kept = http_client.HTTPConnection(url.host, url.port, timeout=10)
    with closing(kept):
        kept.connect()
        first = kept.sock
        for pause_s in (0.0, 6.0):  # httpx closes idle ones after five seconds, others later or never
            time.sleep(pause_s)
            kept.request("GET", "/healthz")
            answer = kept.getresponse()
            assert (answer.status, answer.read()[:1]) == (200, b"{")
        assert kept.sock is first


def test_nothing_of_this_needs_the_simulated_server_to_be_there(device: OneDevice) -> None:
    assert isinstance(device.server, DeviceServer)
    device.server.unavailable = 10**6
    with device.agent(port=0, holdouts={}) as agent:
        agent.turn()
        answer = httpx.post(f"{agent.url}/v1/models/{MODEL}/infer", json={"inputs": INPUTS.tolist()})
        assert answer.status_code == 200
        assert (
            httpx.post(f"{agent.url}{SAMPLES}", json={"inputs": INPUTS.tolist(), "labels": LABELS.tolist()}).status_code
            == 200
        )
