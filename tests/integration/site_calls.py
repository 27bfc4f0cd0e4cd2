"""A server with the modules of a task, and the devices of a site that behave; what tests of sites share."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import TestDevice, device_of, enrol_request, made, signed_in
from http_calls import MADE, Api
from onnx import TensorProto, helper, numpy_helper
from training_calls import carried_out

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import rollout_upkeep
from sprat_server.flows.publishing import publish_release
from sprat_server.jobs.runner import Runner
from sprat_server.publish import director_root
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.service import NewUpdate
from sprat_shared.errors import NotFound
from sprat_shared.protocol.facts_report import FactsReport
from sprat_shared.protocol.measures_report import LinkFigures, MeasuresReport, ModuleFigures
from sprat_shared.protocol.poll import PollAnswer
from sprat_shared.protocol.report import Outcome, format_signature
from sprat_shared.protocol.site_plan import SitePlan
from sprat_shared.protocol.site_report import PlanState, SiteReport
from sprat_shared.trust.site_targets import SignedPlan, is_site_path
from sprat_shared.wire.tensors import TensorSpec, TensorTable, weights_digest

TASK: dict[str, Any] = {
    "name": "find",
    "inputs": {"image": "float32[n, 8]", "words": "int64[n, 4]"},
    "steps": {
        "see": {"model": "vision", "inputs": {"x": "image"}},
        "read": {"model": "text", "inputs": {"ids": "words"}},
        "judge": {"model": "head", "inputs": {"a": "see.out", "b": "read.out"}},
    },
    "outputs": {"score": "judge.out"},
    "deadline_s": 0.5,
}
Port = tuple[str, int, list[int | str]]
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
GRAPHS: dict[str, tuple[list[Port], Port]] = {
    "vision": ([("x", FLOAT, ["n", 8])], ("out", FLOAT, ["n", 3])),
    "text": ([("ids", INT, ["n", 4])], ("out", FLOAT, ["n", 2])),
    "head": ([("a", FLOAT, ["m", 3]), ("b", FLOAT, ["m", 2])], ("out", FLOAT, ["m", 1])),
}
HOSTS = {"vision": ["box", "desk"], "text": ["box"], "head": ["camera"]}
PLANS = "/api/v1/sites/line-3/plans"
NAMES = ("camera", "box", "desk")


def graph_bytes(inputs: list[Port], output: Port) -> bytes:
    """Return a graph with these ports and a weight `w`; it is read, and not run."""
    ports = [helper.make_tensor_value_info(*port) for port in inputs]
    node = helper.make_node("Sum", [inputs[0][0], "w"], [output[0]])
    weight = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    graph = helper.make_graph([node], "module", ports, [helper.make_tensor_value_info(*output)], [weight])
    model: bytes = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString()
    return model


class Site:
    """A server with three modules, and a site of three devices on which one task runs."""

    def __init__(self, app: FastAPI, worker: Runner, api: Api, blobs: Blobs, names: tuple[str, ...] = NAMES) -> None:
        self.app, self.worker, self.api, self.blobs = app, worker, api, blobs
        for model in GRAPHS:
            self.release(model)
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            director_root.ensure(session, app.state.settings)
        token = made(api.post("/api/v1/enrolment-tokens", json={"uses": len(names)}))["token"]
        self.devices = {name: self.join(token, name, f"10.0.0.{at}:8478") for at, name in enumerate(names, start=1)}

    def join(self, token: str, name: str, address: str | None, profile: str | None = None) -> TestDevice:
        """Let a device join that says where it can be reached."""
        key = Ed25519PrivateKey.generate()
        asked = enrol_request(name, key)
        attributes = dict(asked.attributes) | ({} if address is None else {"site-address": address})
        body = type(asked)(
            name=asked.name, public_key=asked.public_key, agent=asked.agent, profile=profile, attributes=attributes
        ).to_json()
        headers = {"Sprat-Signature": format_signature(key.sign(body))}
        answer = Api(self.app, token).post("/device/v1/enrol", content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        return device_of(self.app, answer, name, key)

    def says(self, name: str, address: str) -> None:
        """Let a device say that it is reached elsewhere now."""
        device = self.devices[name]
        device.sequence += 1
        said = FactsReport(
            device=device.id, sequence=device.sequence, attributes={"site-address": address}, agent="0.1.0"
        )
        assert device.send(said).status_code == 204

    def release(self, model: str, graph: tuple[list[Port], Port] | None = None) -> int:
        """Publish the next release of a module, of another signature where a graph is given."""
        table = TensorTable([TensorSpec("w", "F32", (500,))])
        weights = np.random.default_rng(next(MADE)).standard_normal(500).astype("<f4").tobytes()
        graph_blob = self.blobs.put_bytes(graph_bytes(*(graph or GRAPHS[model])))
        full = self.blobs.put_bytes(weights)
        with self.app.state.database.transaction(DEFAULT_PROJECT) as session:
            open_repository(session, self.app.state.settings)
            try:
                lineage, base = registry.get_model(session, model), None
                base = registry.latest_release(session, lineage).number
            except NotFound:
                lineage, base = registry.create_model(session, name=model, recipe=None, example=None), None
            updates = [NewUpdate(None, full.digest, full.length)]
            if base is not None:
                small = self.blobs.put_bytes(b"update " + weights[:93])
                updates.append(NewUpdate(base, small.digest, small.length))
            return publish_release(
                session,
                self.blobs,
                self.app.state.settings,
                model=lineage,
                graph_blob=graph_blob.digest,
                weights_blob=full.digest,
                table=table,
                weights_digest=weights_digest(table, [hashlib.sha256(weights).digest()]),
                updates=updates,
                metrics={},
                origin="registered" if base is None else "created",
                base=base,
            ).number

    def task(self, **changed: Any) -> dict[str, Any]:
        """Have a task checked and kept; return the job as it ended."""
        return carried_out(self.worker, self.api, "/tasks", **(TASK | changed))

    def create(self, task: dict[str, Any] = TASK, **changed: Any) -> dict[str, Any]:
        """Make the site and its task."""
        done = carried_out(self.worker, self.api, "/tasks", **task)
        assert done["state"] == "succeeded", done
        body = {"name": "line-3", "devices": [{"name": name} for name in self.devices]} | changed
        return made(self.api.post("/api/v1/sites", json=body))

    def planned(self, **changed: Any) -> int:
        """Have a plan made by hand; return its number."""
        done = self.plan_job(**changed)
        assert done["state"] == "succeeded", done
        number: int = done["result"]["plan"]
        return number

    def plan_job(self, **changed: Any) -> dict[str, Any]:
        """Have a plan made; return the job as it ended."""
        return carried_out(
            self.worker, self.api, "/sites/line-3/plans", **({"tasks": ["find"], "hosts": HOSTS} | changed)
        )

    def apply(self, number: int) -> dict[str, Any]:
        """Apply a plan; it must be allowed."""
        return made(self.api.post(f"/api/v1/sites/line-3/plans/{number}/apply", json={}))

    def look(self, number: int) -> dict[str, Any]:
        """Return a plan as it is shown."""
        return made(self.api.get(f"/api/v1/sites/line-3/plans/{number}"))

    def served(self, **changed: Any) -> int:
        """Make a plan, apply it, and bring it all the way; return its number."""
        number = self.planned(**changed)
        self.apply(number)
        self.everyone(number, PlanState.READY)
        self.everyone(number, PlanState.SERVING)
        assert self.look(number)["state"] == "serving"
        return number

    def everyone(self, number: int, state: PlanState) -> None:
        """Let every device say how far it is."""
        for name in self.devices:
            self.say(name, number, state)

    def say(self, name: str, number: int, state: PlanState, **changed: Any) -> None:
        """Let a device say how far it is with a plan; it must be taken."""
        device = self.devices[name]
        device.sequence += 1
        said: dict[str, Any] = {"site": "line-3", "plan": number, "state": state, "agent": "0.1.0"} | changed
        answer = device.send(SiteReport(device=device.id, sequence=device.sequence, **said))
        assert answer.status_code == 204, answer.text

    def measure(self, name: str, modules: Sequence[ModuleFigures] = (), links: Sequence[LinkFigures] = ()) -> Any:
        """Let a device say what it measured; return the server's answer."""
        device = self.devices[name]
        device.sequence += 1
        return device.send(
            MeasuresReport(
                device=device.id, sequence=device.sequence, modules=tuple(modules), links=tuple(links), agent="0.1.0"
            )
        )

    def fetch(self, name: str, model: str, outcome: Outcome = Outcome.READY) -> None:
        """Let a device say how its fetching of a module ended."""
        more = {"error_code": None, "error_detail": None} if outcome == Outcome.READY else {}
        self.devices[name].tell(outcome, model, serving_release=None, serving_weights=None, **more)

    def signed(self, name: str) -> dict[int, str]:
        """Return the plans that are signed for a device: number -> phase."""
        targets = signed_in(PollAnswer.from_bytes(self.devices[name].poll().content))["director", "targets"]["targets"]
        plans = [SignedPlan.from_custom(p, said["custom"]) for p, said in targets.items() if is_site_path(p)]
        return {plan.number: plan.phase.value for plan in plans}

    def wish(self, name: str, model: str) -> tuple[int, bool] | None:
        """Return the release of a model that a device is told to have, and whether only at hand."""
        wish = self.devices[name].wish(model)
        return None if wish is None else (wish.release, wish.assigned.prefetch)

    def file(self, number: int) -> SitePlan:
        """Return a plan as a device reads it."""
        digest = self.look(number)["digest"]
        answer = self.devices["camera"].api.get(f"/blobs/sha256/{digest[7:]}")
        assert answer.status_code == 200, answer.text
        return SitePlan.from_bytes(answer.content)

    def upkeep(self, now: Any) -> None:
        """Let the clock be so late, and the server look after its plans."""
        assert rollout_upkeep.look_after(self.app.state.database, self.app.state.settings, now)

    def events(self) -> list[Mapping[str, Any]]:
        """Return the events of sites, oldest first."""
        items = made(self.api.get("/api/v1/events", params={"limit": 200}))["items"]
        return [one for one in reversed(items) if one["type"].startswith("site.")]


def refused(answer: Any) -> tuple[int, str]:
    """Return status and code of an answer that refuses."""
    assert answer.is_client_error, answer.text
    return answer.status_code, answer.json()["code"]
