"""Entity tags: what is known is not sent again, and a change for what has changed meanwhile is refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI
from fleet_calls import join, made, published
from http_calls import Api

GROUP = "/api/v1/groups/lab"


@pytest.fixture
def group(operator: Api) -> str:
    """A saved group's entity tag."""
    made(operator.post("/api/v1/groups", json={"name": "lab", "where": 'labels.site = "lab"'}))
    return operator.get(GROUP).headers["ETag"]


def test_whoever_has_an_answer_is_not_sent_it_again(operator: Api, group: str) -> None:
    same = operator.get(GROUP, headers={"If-None-Match": f'"other", {group}'})
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", group)
    made(operator.request("PUT", GROUP, json={"where": 'labels.site = "roof"'}))
    other = operator.get(GROUP, headers={"If-None-Match": group})
    assert other.status_code == 200
    assert other.headers["ETag"] != group


@pytest.mark.usefixtures("group")
def test_lists_have_entity_tags_too(operator: Api) -> None:
    tag = operator.get("/api/v1/groups").headers["ETag"]
    assert operator.get("/api/v1/groups", headers={"If-None-Match": tag}).status_code == 304
    operator.delete(GROUP)
    assert operator.get("/api/v1/groups", headers={"If-None-Match": tag}).status_code == 200


def test_a_change_of_what_was_seen_is_made_once(operator: Api, group: str) -> None:
    seen = {"If-Match": group}
    assert operator.request("PUT", GROUP, json={"where": 'labels.site = "roof"'}, headers=seen).status_code == 200
    late = operator.request("PUT", GROUP, json={"where": 'labels.site = "cellar"'}, headers=seen)
    assert (late.status_code, late.json()["code"]) == (412, "request.changed-meanwhile")
    assert made(operator.get(GROUP))["where"] == 'labels.site = "roof"'
    assert operator.delete(GROUP, headers=seen).status_code == 412
    assert operator.delete(GROUP, headers={"If-Match": operator.get(GROUP).headers["ETag"]}).status_code == 200


def test_of_changes_at_once_for_one_state_one_is_made(operator: Api, group: str) -> None:
    def change(site: int) -> int:
        asked = {"where": f'labels.site = "{site}"'}
        return operator.request("PUT", GROUP, json=asked, headers={"If-Match": group}).status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(change, range(6)))
    assert statuses == [200, *[412] * 5]


@pytest.mark.usefixtures("group")
def test_any_state_will_do_where_that_is_said(operator: Api) -> None:
    assert operator.delete(GROUP, headers={"If-Match": "*"}).status_code == 200


def test_a_rollout_is_started_as_it_was_reviewed(app: FastAPI, operator: Api, releaser: Api, viewer: Api) -> None:
    published(app)
    published(app, base=1)
    join(app, operator, 1)
    rollout = made(releaser.post("/api/v1/rollouts", json={"model": "mnist", "release": 2}))
    url = f"/api/v1/rollouts/{rollout['id']}"
    reviewed = viewer.get(url).headers["ETag"]
    made(operator.post(f"{url}/start", json={"reason": "reviewed"}, headers={"If-Match": reviewed}))
    late = operator.post(f"{url}/pause", json={"reason": "?"}, headers={"If-Match": reviewed})
    assert late.status_code == 412
    assert made(viewer.get(url))["state"] == "running"


def test_labels_by_themselves_change_with_labels_alone(app: FastAPI, operator: Api, viewer: Api) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    url = f"/api/v1/devices/{device.id}/labels"
    tag = viewer.get(url).headers["ETag"]
    device.poll()
    assert viewer.get(url).headers["ETag"] == tag
    assert operator.patch(url, json={"site": "lab"}, headers={"If-Match": tag}).status_code == 200
    assert made(viewer.get(url)) == {"site": "lab"}
    assert operator.patch(url, json={"site": "roof"}, headers={"If-Match": tag}).status_code == 412


def test_where_a_precondition_would_not_be_asked_it_is_refused(app: FastAPI, operator: Api, group: str) -> None:
    published(app)
    (device,) = join(app, operator, 1)
    refused = operator.post(f"/api/v1/devices/{device.id}/revoke", json={"reason": "x"}, headers={"If-Match": group})
    assert (refused.status_code, refused.json()["code"]) == (422, "request.no-precondition")
    assert made(operator.get(f"/api/v1/devices/{device.id}"))["revoked_at"] is None
