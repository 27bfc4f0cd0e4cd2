"""Rollouts over HTTP to devices that behave: what tests of rollouts share."""

from collections import Counter
from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from fleet_calls import join, made, published
from http_calls import Api, as_scope
from sqlalchemy import select

from sprat_server.access.tokens import Scope
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Assignment
from sprat_server.flows import rollout_upkeep
from sprat_shared.protocol.report import Outcome


def parts_of(viewer: Api, rollout: str, **asked: Any) -> list[dict[str, Any]]:
    """Return the parts of a rollout's devices, first waves first; those without a wave last."""
    page = made(viewer.get(f"/api/v1/rollouts/{rollout}/devices", params={"limit": 200, **asked}))
    assert page["next"] is None
    parts: list[dict[str, Any]] = page["items"]
    return parts


class House:
    """A server with a model of two releases (more on demand), its devices and its people."""

    def __init__(self, app: FastAPI, count: int) -> None:
        self.app = app
        self.operator, self.releaser = as_scope(app, Scope.OPERATOR), as_scope(app, Scope.RELEASER)
        published(app)
        published(app, base=1)
        self.devices = {str(device.id): device for device in join(app, self.operator, count)}

    def draft(self, release: int = 2, **more: Any) -> str:
        """Draft a rollout; return its id."""
        body = {"model": "mnist", "release": release, **more}
        rollout: str = made(self.releaser.post("/api/v1/rollouts", json=body))["id"]
        return rollout

    def begin(self, release: int = 2, **more: Any) -> str:
        """Draft and start a rollout; return its id."""
        rollout = self.draft(release, **more)
        self.move(rollout, "start")
        return rollout

    def move(self, rollout: str, verb: str, *, by: Api | None = None, **more: Any) -> dict[str, Any]:
        """Move a rollout; it must be allowed."""
        return made(self.ask(rollout, verb, by=by, **more))

    def refused(self, rollout: str, verb: str, *, by: Api | None = None, **more: Any) -> str:
        """Ask for a move that is refused; return the code."""
        answer = self.ask(rollout, verb, by=by, **more)
        assert answer.is_client_error, answer.text
        code: str = answer.json()["code"]
        return code

    def ask(self, rollout: str, verb: str, *, by: Api | None = None, **more: Any) -> Any:
        """Ask for a move."""
        body = {"reason": "a test", **more}
        return (by or self.operator).post(f"/api/v1/rollouts/{rollout}/{verb}", json=body)

    def look(self, rollout: str) -> dict[str, Any]:
        """Return a rollout as it is shown."""
        return made(self.operator.get(f"/api/v1/rollouts/{rollout}"))

    def parts(self, rollout: str, state: str | None = None) -> list[str]:
        """Return the devices in the rollout's waves, in this state, first waves first."""
        asked = {} if state is None else {"state": state}
        return [part["device"] for part in self.devices_of(rollout, **asked) if part["wave"] is not None]

    def devices_of(self, rollout: str, **asked: Any) -> list[dict[str, Any]]:
        """Return the parts of a rollout's devices, first waves first; those without a wave last."""
        return parts_of(self.operator, rollout, **asked)

    def states(self, rollout: str) -> Counter[str]:
        """Return how many devices are in which state, controls and unplaced ones among them."""
        parts = self.devices_of(rollout)
        assert len({part["device"] for part in parts}) == len(parts), "a device is there twice"
        return Counter(part["state"] for part in parts)

    def commit(self, rollout: str, most: int = 1000) -> int:
        """Let exposed devices commit, wave after wave, until none is exposed or `most` did."""
        told = 0
        while told < most and (exposed := self.parts(rollout, "exposed")):
            for one in exposed[: most - told]:
                self.devices[one].tell(Outcome.COMMITTED)
                told += 1
        return told

    def fail(self, device: str, code: str = "rebuild.failed", outcome: Outcome = Outcome.FAILED) -> None:
        """Let a device say that it could not."""
        serving = self.serves(device)
        said = {"serving_release": serving, "serving_weights": self.weights(serving)}
        self.devices[device].tell(outcome, error_code=code, error_detail="a test", **said)

    def serves(self, device: str) -> int | None:
        """Return the release that a device said last that it serves."""
        models = made(self.operator.get(f"/api/v1/devices/{device}"))["models"]
        return next((one["active"] for one in models), None)

    def weights(self, number: int | None) -> str | None:
        """Return the weights digest of a release."""
        if number is None:
            return None
        digest: str = made(self.operator.get(f"/api/v1/models/mnist/releases/{number}"))["weights"]
        return digest

    def wishes(self) -> dict[str, int | None]:
        """Return the release that each device is told to run."""
        said = {one: device.wish() for one, device in self.devices.items()}
        return {one: None if wish is None else wish.release for one, wish in said.items()}

    def assigned(self, device: str) -> list[int | None]:
        """Return every release that a device was ever assigned, oldest first."""
        query = select(Assignment.number).where(Assignment.device_id == UUID(device)).order_by(Assignment.counter)
        with self.app.state.database.transaction(DEFAULT_PROJECT) as session:
            return list(session.scalars(query))

    def everyone_on_1(self) -> None:
        """Bring all devices to release 1."""
        self.commit(self.begin(1, waves=["100%"]))

    def upkeep(self, now: datetime) -> None:
        """Let the clock be so late, and the server look after its rollouts."""
        assert rollout_upkeep.look_after(self.app.state.database, self.app.state.settings, now)

    def actions(self) -> list[tuple[str, Any]]:
        """Return the newest records of the audit log: action, and the reason given."""
        items = made(self.operator.get("/api/v1/audit"))["items"]
        return [(one["action"], (one["after"] or {}).get("reason")) for one in items]
