"""Targeting: filters mean the same in SQL and in memory; saved groups follow each device's change."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, join, made, published
from http_calls import Api
from hypothesis import given, settings
from hypothesis import strategies as st
from poll_calls import bring_to
from sqlalchemy import event, select, update
from sqlalchemy.orm import Session

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.fleet.filter_grammar import parse
from sprat_server.fleet.filters import holds
from sprat_server.fleet.models import Device, DeviceSlots, SavedGroup
from sprat_server.flows import targeting, upkeep
from sprat_server.registry.models import Model
from sprat_shared.protocol.facts_report import FactsReport
from sprat_shared.protocol.report import Outcome

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
TEXTS = [
    "lab",
    "Lab",
    "",
    "4",
    "04",
    "4.0",
    "-3.25",
    "1e5",
    "٣",
    "a%b",
    "a_b",
    "a\\b",
    'a"b',
    "axb",
    "a\nb",
    "ä",
    "9" * 15,
]
MOMENTS = [NOW - timedelta(days=days, microseconds=tick) for days in (0, 1, 7) for tick in (-1, 0, 1)]
MODELS = ("digits", "gate-2")


@pytest.fixture(autouse=True)
def first_release(app: FastAPI) -> None:
    """A server that was started: devices can join it."""
    published(app)


def text_of(value: str) -> str:
    """Write a text as filters take it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


texts = st.sampled_from([one for one in TEXTS if "\n" not in one]).map(text_of)
patterns = st.text(alphabet="*?abLx4%_\\", max_size=4).map(text_of)
numbers = st.sampled_from(["4", "-3.25", "3", "999999999999999", "4.000000"])
times = st.sampled_from(["7d ago", "1d ago", "0s ago", "2026-11-29T12:00Z", "2026-11-23T12:00:00", "2026-11-24"])
order = st.sampled_from(["<", "<=", ">", ">="])
loose = st.sampled_from(["labels.a", "attributes.a", "labels.gone"])
plain = st.sampled_from(["name", "site", "profile", "agent"])
counts = st.sampled_from([f"model.{name}.{member}" for name in MODELS for member in ("active", "previous")])
moments = st.sampled_from(["enrolled", "last_seen", "model.digits.reported"])
flags = st.sampled_from(["failed", "model.digits.failed", "model.gate-2.failed"])
equal = st.sampled_from(["=", "!="])
atoms = st.one_of(
    st.tuples(loose | plain, equal, texts).map(" ".join),
    st.tuples(loose | plain, st.just("~"), patterns).map(" ".join),
    st.tuples(loose | counts, equal | order, numbers).map(" ".join),
    st.tuples(moments, order, times).map(" ".join),
    st.tuples(loose | plain, st.sampled_from(["in", "not in"]), st.lists(texts, min_size=1, max_size=3)).map(
        lambda said: f"{said[0]} {said[1]} ({', '.join(said[2])})"
    ),
    st.tuples(loose | counts, st.lists(numbers, min_size=1, max_size=3)).map(
        lambda said: f"{said[0]} in ({', '.join(said[1])})"
    ),
    flags,
    (loose | plain | counts | moments | flags).map(lambda fact: f"has {fact}"),
)
filters = st.recursive(
    atoms,
    lambda inner: st.one_of(
        inner.map(lambda one: f"not ({one})"),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: "(" + " and ".join(some) + ")"),
        st.lists(inner, min_size=2, max_size=3).map(lambda some: "(" + " or ".join(some) + ")"),
    ),
    max_leaves=6,
)


def a_fleet(session: Session) -> list[Device]:
    """Devices that differ in all that filters look at, made in the order of their numbers."""
    devices = []
    for number in range(60):
        device = Device(
            name=f"device-{number}-{TEXTS[number % len(TEXTS)] or 'x'}",
            device_group=TEXTS[number % 3] or "default",
            public_key=number.to_bytes(32, "big"),
            agent="0.1.0" if number % 2 else "a%b",
            profile=None if number % 3 else "lab",
            attributes={} if number % 4 == 0 else {"a": TEXTS[number % len(TEXTS)]},
            labels={} if number % 5 == 0 else {"a": TEXTS[(number * 7) % len(TEXTS)]},
            enrolled_at=MOMENTS[number % len(MOMENTS)],
            last_seen_at=None if number % 6 == 0 else MOMENTS[(number * 2) % len(MOMENTS)],
        )
        session.add(device)
        devices.append(device)
    session.flush()
    ids = dict(session.execute(select(Model.name, Model.id)).all())
    for number, device in enumerate(devices):
        for place, name in enumerate(MODELS):
            if (number >> place) % 2:
                continue
            session.add(
                DeviceSlots(
                    device_id=device.id,
                    model_id=ids[name],
                    active=[None, 1, 2][number % 3],
                    previous=[None, 2, 1][number % 3],
                    outcome=["committed", "refused", "failed", "rolled_back", "returned"][number % 5],
                    reported_at=MOMENTS[(number * 4) % len(MOMENTS)],
                )
            )
    session.flush()
    return devices


def test_a_filter_means_the_same_in_sql_and_in_memory(app: FastAPI, database: Database) -> None:
    for name in MODELS:
        published(app, model=name)
        published(app, model=name, base=1)
    with database.transaction(DEFAULT_PROJECT) as session:
        devices = a_fleet(session)
        facts = targeting.facts_of(session, devices)
        seen = {True: 0, False: 0}

        @settings(max_examples=150, deadline=None, database=None)
        @given(filters)
        def check(text: str) -> None:
            read = parse(text)
            there = set(session.scalars(select(Device.id).where(targeting.fits(session, read, NOW))))
            here = {device.id for device in devices if holds(read.root, facts[device.id], NOW)}
            assert there == here
            seen[bool(here) and len(here) < len(devices)] += 1

        check()
        assert seen[True] > 25  # some were in and some out: it was not empty talk


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collect the statements that the block has the database execute."""
    said: list[str] = []

    def hear(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        said.append(statement)

    event.listen(database.engine, "before_cursor_execute", hear)
    try:
        yield said
    finally:
        event.remove(database.engine, "before_cursor_execute", hear)


def group(operator: Api, name: str, where: str) -> dict:  # type: ignore[type-arg]
    return made(operator.post("/api/v1/groups", json={"name": name, "where": where}))


def inside(viewer: Api, name: str) -> set[str]:
    return {one["name"] for one in made(viewer.get(f"/api/v1/groups/{name}/devices"))["items"]}


def label(operator: Api, device: TestDevice, **changes: str | None) -> dict:  # type: ignore[type-arg]
    return made(operator.request("PATCH", f"/api/v1/devices/{device.id}/labels", json=changes))


def test_a_group_follows_labels_reports_attributes_and_leaving(app: FastAPI, operator: Api) -> None:
    first, second = join(app, operator, 2)
    assert group(operator, "canary", 'labels.ring = "canary"')["devices"] == 0
    group(operator, "has-one", "model.mnist.active = 1")
    group(operator, "trouble", "failed")
    group(operator, "imx", 'attributes.camera ~ "imx*"')
    assert label(operator, first, ring="canary", site="lab")["labels"] == {"ring": "canary", "site": "lab"}
    assert inside(operator, "canary") == {first.name}
    bring_to(app, 1)
    first.tell(Outcome.COMMITTED)
    second.tell(Outcome.REFUSED)
    assert (inside(operator, "has-one"), inside(operator, "trouble")) == ({first.name}, {second.name})
    second.sequence += 1
    said = FactsReport(device=second.id, sequence=second.sequence, attributes={"camera": "imx219"}, agent="0.1.0")
    assert second.send(said).status_code == 204
    assert inside(operator, "imx") == {second.name}
    reports = made(operator.get(f"/api/v1/devices/{second.id}/reports"))["items"]
    assert (reports[0]["kind"], reports[0]["attributes"]) == ("facts", {"camera": "imx219"})
    label(operator, first, ring=None)
    assert inside(operator, "canary") == set()
    made(operator.post(f"/api/v1/devices/{second.id}/revoke", json={"reason": "stolen"}))
    assert (inside(operator, "imx"), inside(operator, "trouble")) == (set(), set())


def test_a_device_that_joins_is_in_the_groups_at_once(app: FastAPI, operator: Api) -> None:
    group(operator, "all", 'name ~ "*"')
    joined = join(app, operator, 2)
    assert inside(operator, "all") == {device.name for device in joined}


@pytest.mark.parametrize("fleet", [3, 30])
def test_a_device_s_change_takes_as_few_statements_in_a_large_fleet(app: FastAPI, operator: Api, fleet: int) -> None:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        for number in range(fleet):
            session.add(
                Device(
                    name=f"d{number}", device_group="x", public_key=number.to_bytes(32, "big"), agent="1", attributes={}
                )
            )
        session.flush()
        changed = session.scalars(select(Device.id).where(Device.name == "d1")).one()
    for number in range(10):
        group(operator, f"g{number}", f'labels.n = "{number}" or labels.all = "yes"')
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        targeting.label(session, changed, {"n": "3"})
    with app.state.database.transaction(DEFAULT_PROJECT) as session, statements(app.state.database) as said:
        targeting.share(session)
        session.execute(update(Device).where(Device.id == changed).values(labels={"all": "yes"}))
        said.clear()
        moved = targeting.look_again(session, changed)
    assert (moved.joined, moved.left) == (9, 0)
    assert len(said) <= 7, said


def test_upkeep_moves_devices_as_time_passes(app: FastAPI, operator: Api) -> None:
    joined = join(app, operator, 2)
    group(operator, "fresh", "last_seen > 1h ago")
    group(operator, "still", 'name ~ "*"')
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(Device).where(Device.id == joined[0].id).values(last_seen_at=datetime.now(UTC)))
    assert inside(operator, "fresh") == set()
    upkeep.refill_groups(app.state.database)
    assert inside(operator, "fresh") == {joined[0].name}
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert targeting.refill_moving(session) == {}
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        later = targeting.refill_moving(session, datetime.now(UTC) + timedelta(hours=2))
    assert set(later) == {"fresh"}
    assert inside(operator, "fresh") == set()


def test_a_group_s_filter_can_be_changed_and_the_group_deleted(app: FastAPI, operator: Api) -> None:
    first, second = join(app, operator, 2)
    group(operator, "one", f'name = "{first.name}"')
    edited = made(operator.request("PUT", "/api/v1/groups/one", json={"where": f'name = "{second.name}"'}))
    assert edited["devices"] == 1
    assert edited["edited_at"] is not None
    assert made(operator.get("/api/v1/audit"))["items"][0]["after"] == {
        "where": f'name = "{second.name}"',
        "joined": 1,
        "left": 1,
    }
    assert inside(operator, "one") == {second.name}
    again = operator.post("/api/v1/groups", json={"name": "one", "where": "failed"})
    assert (again.status_code, again.json()["code"]) == (409, "group.name-taken")
    assert made(operator.get("/api/v1/groups"))["items"][0]["where"] == f'name = "{second.name}"'
    made(operator.delete("/api/v1/groups/one"))
    assert operator.get("/api/v1/groups/one").json()["code"] == "group.unknown"
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalars(select(SavedGroup)).all() == []


def test_a_preview_counts_and_shows_some_and_changes_nothing(app: FastAPI, viewer: Api, operator: Api) -> None:
    joined = sorted(join(app, operator, 3), key=lambda device: device.name)
    answer = made(viewer.post("/api/v1/devices/preview", json={"where": "not failed", "limit": 2}))
    assert (answer["count"], answer["live"]) == (3, 3)
    assert [one["name"] for one in answer["sample"]] == [device.name for device in joined[:2]]
    group(operator, "one", f'name = "{joined[0].name}"')
    assert made(viewer.post("/api/v1/devices/preview", json={"group": "one"}))["count"] == 1
    for wrong in ({}, {"where": "failed", "group": "one"}):
        assert viewer.post("/api/v1/devices/preview", json=wrong).json()["code"] == "filter.which"
    unknown = viewer.post("/api/v1/devices/preview", json={"where": "failed and model.mnits.active = 1"})
    assert unknown.status_code == 422
    assert unknown.json()["detail"] == (
        "filter, column 12: there is no model 'mnits'; known are mnist\n"
        "  failed and model.mnits.active = 1\n"
        "             ^"
    )


def test_devices_are_listed_by_a_filter_and_in_an_order_page_by_page(app: FastAPI, viewer: Api, operator: Api) -> None:
    joined = join(app, operator, 5)
    gone = join(app, operator, 1)[0]
    made(operator.post(f"/api/v1/devices/{gone.id}/revoke", json={"reason": "gone"}))
    label(operator, joined[0], site="lab")
    there = made(viewer.get("/api/v1/devices", params={"where": 'labels.site = "lab"'}))["items"]
    assert [one["name"] for one in there] == [joined[0].name]
    assert there[0]["labels"] == {"site": "lab"}
    for sort in ("name", "-name", "site", "-last_seen", "enrolled", "profile", "-agent"):
        seen: list[str] = []
        cursor = None
        while True:
            asked = {"where": "not failed", "sort": sort, "limit": "2"} | ({} if cursor is None else {"cursor": cursor})
            page = made(viewer.get("/api/v1/devices", params=asked))
            seen += [one["name"] for one in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert sorted(seen) == sorted(device.name for device in joined), sort
        if sort.endswith("name"):
            ups = [one < other for one, other in pairwise(seen)]
            assert all(ups) if sort == "name" else not any(ups)
    first = made(viewer.get("/api/v1/devices", params={"sort": "name", "limit": "2"}))["next"]
    other = viewer.get("/api/v1/devices", params={"sort": "-name", "cursor": first})
    assert (other.status_code, "begin without" in other.json()["detail"]) == (422, True)


def test_many_devices_are_labelled_together_or_not_at_all(app: FastAPI, operator: Api, viewer: Api) -> None:
    joined = join(app, operator, 3)
    group(operator, "lab", 'labels.site = "lab"')
    where = f'name in ("{joined[0].name}", "{joined[1].name}")'
    asked = {"where": where, "labels": {"site": "lab", "ring": None}}
    assert made(operator.post("/api/v1/devices/labels", json=asked)) == {"devices": 2}
    assert inside(operator, "lab") == {joined[0].name, joined[1].name}
    assert made(viewer.get("/api/v1/audit"))["items"][0]["after"] == asked | {"group": None, "devices": 2}
    label(operator, joined[0], **{f"k{number}": "v" for number in range(31)})
    full = operator.post("/api/v1/devices/labels", json={"group": "lab", "labels": {"one": "more"}})
    assert full.json()["code"] == "label.too-many"
    assert made(viewer.post("/api/v1/devices/preview", json={"where": "has labels.one"}))["count"] == 0


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"Site": "lab"}, "label.bad"),
        ({"a": ""}, "label.bad"),
        ({"a": "x" * 201}, "label.bad"),
        ({"a": "line\nbreak"}, "label.bad"),
        ({f"k{number}": "v" for number in range(33)}, "label.too-many"),
    ],
)
def test_labels_are_few_short_texts(app: FastAPI, operator: Api, changes: dict[str, str], code: str) -> None:
    device = join(app, operator, 1)[0]
    answer = operator.request("PATCH", f"/api/v1/devices/{device.id}/labels", json=changes)
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_a_change_of_labels_is_in_the_audit_log(app: FastAPI, operator: Api, viewer: Api) -> None:
    device = join(app, operator, 1)[0]
    label(operator, device, site="lab")
    label(operator, device, site="field")
    newest = made(viewer.get("/api/v1/audit"))["items"][0]
    assert (newest["action"], newest["subject"]) == ("device.label", f"device:{device.id}")
    assert (newest["before"], newest["after"]) == ({"site": "lab"}, {"site": "field"})


def test_matching_among_some(app: FastAPI, operator: Api) -> None:
    joined = join(app, operator, 3)
    label(operator, joined[0], ring="a")
    label(operator, joined[1], ring="a")
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        some: set[UUID] = {joined[1].id, joined[2].id}
        assert targeting.matching(session, 'labels.ring = "a"') == {joined[0].id, joined[1].id}
        assert targeting.matching(session, 'labels.ring = "a"', some) == {joined[1].id}
