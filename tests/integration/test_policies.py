"""Policies of devices: an operator sets them, the director signs them, and the next poll brings them."""

import json
from asyncio import to_thread
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from fleet_calls import TestDevice, device_of, enrol, join, made, published
from http_calls import Api
from poll_calls import Asking, bring_to, while_running

from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.policy import DevicePolicy, Wanted

URL = "/api/v1/models/mnist/policy"
STRICT = {"min_samples": 200, "too_few": "refuse", "fetch": {"unmetered": True}}


@pytest.fixture
def device(app: FastAPI, operator: Api) -> TestDevice:
    """A device of the fleet that was assigned the first of two releases."""
    published(app)
    published(app, base=1)
    joined = join(app, operator, 1)[0]
    bring_to(app, 1)
    return joined


def put(api: Api, policy: Any, profile: str | None = None) -> dict[str, Any]:
    return made(api.request("PUT", URL, json=policy, params={} if profile is None else {"profile": profile}))


def policy_of(device: TestDevice) -> DevicePolicy:
    wish = device.wish()
    assert wish is not None
    return wish.assigned.policy


def test_nothing_is_asked_of_devices_before_anybody_said_so(viewer: Api, device: TestDevice) -> None:
    shown = made(viewer.get(URL))
    assert (shown["source"], shown["policy"], shown["set_by"], shown["profiles"]) == ("agent", {}, None, [])
    assert policy_of(device) == DevicePolicy()


def test_a_policy_that_says_nothing_takes_no_byte_of_what_is_signed(operator: Api, device: TestDevice) -> None:
    polled = device.poll()
    before = device.api.get("/tuf/director/1.targets.json").content
    assert b"policy" not in before
    put(operator, {})
    assert device.poll().content == polled.content
    assert device.api.get("/tuf/director/1.targets.json").content == before


def test_a_policy_is_signed_for_every_device_that_has_the_model(operator: Api, device: TestDevice) -> None:
    shown = put(operator, STRICT)
    assert (shown["source"], shown["policy"]) == ("model", STRICT)
    assert policy_of(device) == DevicePolicy(min_samples=200, too_few="refuse", fetch=Wanted(unmetered=True))


def test_a_profiles_policy_stands_in_the_place_of_the_models_as_a_whole(
    app: FastAPI, operator: Api, device: TestDevice
) -> None:
    token = made(operator.post("/api/v1/enrolment-tokens", json={"uses": 1}))["token"]
    key = Ed25519PrivateKey.generate()
    gate = device_of(app, enrol(app, token, "gate-1", key, profile="gate"), "gate-1", key)
    for rollout in made(operator.get("/api/v1/rollouts"))["items"]:
        made(operator.post(f"/api/v1/rollouts/{rollout['id']}/abort", json={"reason": "once more, with both"}))
    bring_to(app, 1)
    put(operator, STRICT)
    assert policy_of(gate) == policy_of(device)
    put(operator, {"trial_s": 60}, "gate")
    assert policy_of(gate) == DevicePolicy(trial_s=60.0)
    assert policy_of(device).min_samples == 200
    shown = made(operator.get(URL, params={"profile": "gate"}))
    assert (shown["source"], shown["policy"], shown["profiles"]) == ("profile", {"trial_s": 60.0}, ["gate"])
    assert made(operator.get(URL, params={"profile": "other"}))["source"] == "model"
    cleared = made(operator.delete(URL, params={"profile": "gate"}))
    assert (cleared["source"], policy_of(gate).min_samples) == ("model", 200)


def test_a_change_reaches_a_device_that_was_told_that_nothing_is_new(
    app: FastAPI, operator: Api, device: TestDevice
) -> None:
    async def body(asking: Asking) -> None:
        assert (await asking.ask()).status_code == 304
        for change, wanted in (
            (lambda: put(operator, {"trial_s": 60}), {"trial_s": 60.0}),
            (lambda: put(operator, {"trial_s": 90}), {"trial_s": 90.0}),
            (lambda: made(operator.delete(URL)), None),
        ):
            await to_thread(change)
            answer = asking.keep(await asking.changed_within())
            said = {part.name: part.data for part in answer.parts}
            (targets,) = [data for name, data in said.items() if name.endswith("targets.json")]
            assert not [name for name in said if name.startswith("image/")], "nothing else is new"
            ((path, target),) = json.loads(targets)["signed"]["targets"].items()
            assert target["custom"]["sprat"].get("policy") == wanted
            assert Assigned.from_custom(path, target["custom"]).assignment == 1, "it is the same assignment"
            await asking.settled()

    while_running(app, device, body)


def test_a_device_that_has_committed_gets_the_newer_policy_too(operator: Api, device: TestDevice) -> None:
    device.tell(Outcome.COMMITTED)
    put(operator, {"attempts": 3})
    assert policy_of(device) == DevicePolicy(attempts=3)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"colour": "red"}, "has no 'colour'"),
        ({"tolerance": 2}, "tolerance must be a number from 0 to 1"),
        ({"fetch": {"windows": [{"from": "25:00", "to": "05:00"}]}}, "no time of day"),
        ({"too_few": "panic"}, "accept, refuse"),
        ({"min_samples": 10**400}, "min_samples"),
    ],
)
@pytest.mark.usefixtures("device")
def test_a_policy_that_cannot_be_meant_is_refused_and_changes_nothing(
    operator: Api, policy: dict[str, Any], words: str
) -> None:
    put(operator, STRICT)
    answer = operator.request("PUT", URL, json=policy)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["code"] == "policy.invalid"
    assert words in answer.json()["detail"]
    assert made(operator.get(URL))["policy"] == STRICT


@pytest.mark.usefixtures("device")
def test_what_was_never_set_cannot_be_cleared(operator: Api) -> None:
    put(operator, STRICT)
    answer = operator.delete(URL, params={"profile": "gate"})
    assert (answer.status_code, answer.json()["code"]) == (404, "policy.unknown")
    assert operator.request("PUT", URL, json={}, params={"profile": "Not Plain"}).status_code == 422
    assert operator.get("/api/v1/models/none/policy").status_code == 404


@pytest.mark.usefixtures("device")
def test_every_change_is_in_the_audit_log_with_what_was_before(operator: Api) -> None:
    put(operator, {"attempts": 3})
    put(operator, {"attempts": 5})
    put(operator, {"attempts": 7}, "gate")
    made(operator.delete(URL))
    records = [one for one in made(operator.get("/api/v1/audit"))["items"] if one["action"].startswith("policy.")]
    assert [(one["action"], one["subject"], one["before"], one["after"]) for one in reversed(records)] == [
        ("policy.set", "model:mnist", None, {"attempts": 3}),
        ("policy.set", "model:mnist", {"attempts": 3}, {"attempts": 5}),
        ("policy.set", "model:mnist/gate", None, {"attempts": 7}),
        ("policy.clear", "model:mnist", {"attempts": 5}, None),
    ]
