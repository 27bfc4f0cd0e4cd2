"""What applications ask of an agent whose site runs tasks: over loopback HTTP, in Python, by the command."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tiny_onnx
from one_device import INPUTS, MODEL, one_device
from site_member import SiteMember
from site_of_two import WORDS, SiteOfTwo, check, serving, until

from sprat_client.agent.commands import main
from sprat_client.agent.endpoint import Endpoint
from sprat_client.agent.site.task_answer import TaskAnswer
from sprat_client.runtime.tensor_bodies import decode_tensors, encode_tensors
from sprat_shared.errors import InvalidInput, NotFound


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SiteOfTwo]:
    with one_device(tmp_path) as device:
        yield SiteOfTwo(device, tmp_path)


@pytest.fixture
def served(site: SiteOfTwo) -> Iterator[tuple[SiteOfTwo, str, SiteMember]]:
    with site.boxed() as box, site.running(port=0) as agent:
        plan = site.plan()
        box.hold(plan)
        serving(site, plan)
        yield site, agent.url, box


def kserve(**inputs: Any) -> dict[str, Any]:
    entries = [
        {"name": name, "shape": list(value.shape), "datatype": "FP32", "data": value.ravel().tolist()}
        for name, value in inputs.items()
    ]
    return {"inputs": entries}


def test_applications_ask_for_tasks_and_models_over_loopback(
    served: tuple[SiteOfTwo, str, SiteMember], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site, url, _ = served
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    with Endpoint(site.device.folder) as endpoint:
        check(site, endpoint.infer_task("find", {"image": INPUTS, "words": WORDS}, deadline_s=3.0, trace=trace))
        (task,) = endpoint.tasks()
        assert (task["name"], task["plan"], task["fallback"]) == ("find", "line-3/1", False)
        with pytest.raises(NotFound, match="served: find"):
            endpoint.infer_task("lose", {"image": INPUTS})
        with pytest.raises(InvalidInput, match="the task takes image"):
            endpoint.infer_task("find", {"image": INPUTS})
    with httpx.Client(base_url=url) as client:
        asked = kserve(image=INPUTS, words=WORDS)
        said = client.post("/v2/tasks/find/infer", json=asked, headers={"Sprat-Request-Id": "r-7"}).json()
        assert (said["model_name"], said["model_version"], said["id"]) == ("find", "line-3/1", "r-7")
        outputs = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in said["outputs"]}
        check(site, TaskAnswer.of(said["parameters"], outputs))
        late = client.post("/v2/tasks/find/infer", json=asked, headers={"Sprat-Deadline-Ms": "soon"})
        assert (late.status_code, late.json()["code"]) == (400, "input.invalid")
        # a model, as existing clients ask
        assert client.get("/v2").json()["name"] == "sprat-agent"
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        described = client.get(f"/v2/models/{MODEL}").json()
        assert (described["versions"], described["inputs"][0]["datatype"]) == (["1"], "FP32")
        assert described["inputs"][0]["shape"] == [-1, tiny_onnx.FEATURES]
        said = client.post(f"/v2/models/{MODEL}/infer", json=kserve(inputs=INPUTS)).json()
        logits = np.array(said["outputs"][0]["data"]).reshape(said["outputs"][0]["shape"])
        body = encode_tensors({"inputs": INPUTS})
        kind = {"Content-Type": "application/vnd.safetensors"}
        binary = client.post(f"/v2/models/{MODEL}/infer", content=body, headers=kind)
        for found in (logits, decode_tensors(binary.content)["logits"]):
            weights = site.server.models[MODEL][1].weights
            np.testing.assert_allclose(found, tiny_onnx.logits(weights, INPUTS), rtol=1e-4)
        metrics = client.get("/metrics").text
        assert "# TYPE sprat_agent_tasks_total counter" in metrics
        assert 'sprat_agent_tasks_total{task="find",outcome="answered"} 2' in metrics
        assert 'sprat_agent_task_steps_total{task="find",step="theirs",route="peer"} 2' in metrics
        assert 'sprat_agent_site_circuit{site="line-3",device="box"} 0' in metrics
        assert client.get("/healthz").json()["site"][0]["phase"] == "serve"
    # the command
    for name, value in (("image", INPUTS), ("words", WORDS)):
        np.save(tmp_path / f"{name}.npy", value)
    named = [part for name in ("image", "words") for part in ("--input", f"{name}={tmp_path}/{name}.npy")]
    assert main(["infer", "find", "--dir", str(site.device.folder), *named]) == 0
    printed = json.loads(capsys.readouterr().out)
    check(
        site,
        TaskAnswer.of(
            {k: v for k, v in printed.items() if k != "outputs"},
            {k: np.array(v) for k, v in printed["outputs"].items()},
        ),
    )
    assert main(["infer", "--dir", str(site.device.folder)]) == 65


def test_a_device_that_does_not_answer_is_named_in_healthz(served: tuple[SiteOfTwo, str, SiteMember]) -> None:
    _, url, box = served
    assert httpx.get(f"{url}/healthz").json()["status"] == "ok"
    assert box.listener is not None
    box.listener.close()
    box.listener = None
    said = until(lambda: (found := httpx.get(f"{url}/healthz").json())["status"] == "degraded" and found)
    assert [(one["code"], one["detail"][:4]) for one in said["wrong"]] == [("site.unreachable", "box:")]
