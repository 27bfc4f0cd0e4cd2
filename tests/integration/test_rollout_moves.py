"""What people do to rollouts: abort and keep or revert, resume after a halt, undo, supersede, approve."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from fastapi import FastAPI
from fleet_calls import join, made, published
from http_calls import Api, as_scope
from rollout_calls import House
from sqlalchemy import update

from sprat_server.access.tokens import Scope
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.fleet.models import Device
from sprat_shared.protocol.enrol import PLAYED
from sprat_shared.protocol.holdout_report import HoldoutReport
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def house(app: FastAPI) -> House:
    """A model with two releases, six devices on release 1."""
    house = House(app, 6)
    house.everyone_on_1()
    return house


def test_after_an_abort_every_exposed_device_is_told_the_old_release_again(house: House) -> None:
    rollout = house.begin(waves=["4", "100%"])
    house.commit(rollout, most=2)
    committed = house.parts(rollout, "committed")[0]
    house.move(rollout, "abort")
    assert set(house.wishes().values()) == {1}
    assert house.look(rollout)["state"] == "aborted"
    wish = house.devices[committed].wish()
    assert wish is not None
    assert wish.path == (), "nothing is sent: the release is in a slot"


def test_an_abort_that_keeps_leaves_the_release_where_it_was_committed_and_nowhere_else(house: House) -> None:
    rollout = house.begin(waves=["4", "100%"])
    house.commit(rollout, most=2)
    committed = house.parts(rollout, "committed")
    house.move(rollout, "abort", keep=True)
    assert {one for one, release in house.wishes().items() if release == 2} == set(committed)
    assert house.actions()[0] == ("rollout.abort", "a test")
    assert made(house.operator.get("/api/v1/audit"))["items"][0]["after"]["keep"] is True


def test_a_halt_is_resumed_when_its_failures_are_acknowledged_and_they_halt_no_more(house: House) -> None:
    rollout = house.begin(waves=["3", "100%"])
    first, second, third = house.parts(rollout, "exposed")
    house.devices[first].tell(Outcome.COMMITTED)
    house.fail(second)
    assert house.look(rollout)["state"] == "halted"
    assert set(house.wishes().values()) == {1}
    assert house.refused(rollout, "resume") == "rollout.halted"
    resumed = house.move(rollout, "resume", acknowledge=True)
    assert (resumed["state"], resumed["excused"], resumed["failed"], resumed["ended_at"]) == ("running", 1, 0, None)
    wishes = house.wishes()
    assert (wishes[first], wishes[second], wishes[third]) == (2, 1, 2), "who failed is left as it is"
    wish = house.devices[first].wish()
    assert wish is not None
    house.commit(rollout)
    assert house.look(rollout)["state"] == "succeeded"
    assert house.states(rollout) == {"committed": 5, "excused": 1}
    assert house.assigned(first) == [1, 2, 1, 2]
    assert "rollout.resume" in [action for action, _ in house.actions()]


def test_a_new_failure_after_an_acknowledged_one_halts_again(house: House) -> None:
    rollout = house.begin(waves=["3", "100%"])
    house.fail(house.parts(rollout, "exposed")[0])
    house.move(rollout, "resume", acknowledge=True)
    house.fail(house.parts(rollout, "exposed")[0])
    assert house.look(rollout)["state"] == "halted"
    assert set(house.wishes().values()) == {1}


def test_a_halt_that_another_rollout_followed_is_not_resumed(house: House) -> None:
    rollout = house.begin(waves=["3", "100%"])
    house.fail(house.parts(rollout, "exposed")[0])
    house.begin(1, waves=["100%"])
    assert house.refused(rollout, "resume", acknowledge=True) == "rollout.overtaken"


def test_what_was_undone_is_back_everywhere_and_for_no_bytes(house: House, app: FastAPI) -> None:
    rollout = house.begin(waves=["100%"])
    assert house.refused(rollout, "undo") == "rollout.wrong-state"
    house.commit(rollout)
    (newcomer,) = join(app, house.operator, 1)
    told = newcomer.wish()
    assert told is not None
    assert told.release == 2
    undone = house.move(rollout, "undo")
    assert (undone["state"], undone["reason"]) == ("undone", "a test")
    wishes = {one: device.wish() for one, device in house.devices.items()}
    assert {(wish.release, wish.path) for wish in wishes.values() if wish is not None} == {(1, ())}
    back = newcomer.wish()
    assert back is not None
    assert back.release == 1, "it has what a new device gets now"
    assert house.refused(rollout, "undo") == "rollout.wrong-state"
    assert house.actions()[0] == ("rollout.undo", "a test")


def test_undoing_leaves_devices_that_were_taken_further_meanwhile(house: House, app: FastAPI) -> None:
    rollout = house.begin(waves=["100%"])
    house.commit(rollout)
    published(app, base=2)
    further = sorted(house.devices)[:2]
    house.commit(house.begin(3, waves=["100%"], devices=further))
    house.move(rollout, "undo")
    assert {one: release for one, release in house.wishes().items() if release == 3} == dict.fromkeys(further, 3)
    assert sorted(release or 0 for release in house.wishes().values()) == [1, 1, 1, 1, 3, 3]


def test_undoing_what_nobody_has_any_more_is_refused(house: House) -> None:
    rollout = house.begin(waves=["100%"])
    house.commit(rollout)
    house.commit(house.begin(1, waves=["100%"]))
    assert house.refused(rollout, "undo") == "rollout.nothing-to-undo"


def test_an_abort_that_kept_can_be_undone(house: House) -> None:
    rollout = house.begin(waves=["3", "100%"])
    house.commit(rollout, most=2)
    house.move(rollout, "abort", keep=True)
    house.move(rollout, "undo")
    assert set(house.wishes().values()) == {1}


def test_a_later_rollout_supersedes_the_running_one_and_takes_its_devices_along(house: House, app: FastAPI) -> None:
    published(app, base=2)
    earlier = house.begin(waves=["3", "100%"])
    has_it, in_flight, other = house.parts(earlier, "exposed")
    house.devices[has_it].tell(Outcome.COMMITTED)
    apart = next(one for one in house.devices if one not in {has_it, in_flight, other})
    assert house.refused(house.draft(3, waves=["100%"]), "start") == "rollout.busy"
    later = house.begin(3, waves=["100%"], devices=[apart], supersede=True)
    assert house.look(earlier)["state"] == "superseded"
    assert set(house.parts(later)) == {has_it, in_flight, other, apart}
    assert house.states(later) == {"exposed": 4}
    previous = {part["device"]: part["previous"] for part in house.devices_of(later, wave=1)}
    assert previous == {has_it: 2, in_flight: 1, other: 1, apart: 1}, "who never took it goes back to what it holds"
    house.fail(apart)
    assert house.look(later)["state"] == "halted"
    wishes = house.wishes()
    assert (wishes[has_it], wishes[in_flight], wishes[other], wishes[apart]) == (2, 1, 1, 1)
    assert ("rollout.supersede", f"superseded by rollout {later}") in house.actions()


def test_the_next_update_starts_from_what_a_device_really_has(house: House, app: FastAPI) -> None:
    """Devices that went back from release 2 are led to release 3 from release 1, or from the 2 they still hold."""
    published(app, base=2)
    rollout = house.begin(waves=["100%"])
    one, other = house.parts(rollout, "exposed")[:2]
    house.devices[one].tell(Outcome.COMMITTED)
    house.move(rollout, "abort")
    house.devices[one].tell(Outcome.RETURNED)
    house.devices[other].tell(Outcome.RETURNED)
    house.begin(3, waves=["100%"])
    ways = {device: wish.path for device in (one, other) if (wish := house.devices[device].wish()) is not None}
    assert ways[one] == ("mnist/3/from-2",), "2 is still in its other slot"
    assert ways[other] == ("mnist/2/from-1", "mnist/3/from-2")


def test_a_draft_waits_for_the_approval_of_somebody_else(house: House, app: FastAPI, releaser: Api) -> None:
    rollout = house.draft(waves=["100%"], approvals=2)
    assert house.look(rollout)["waits_for"] == [f"2 more approvals of others than {house.look(rollout)['created_by']}"]
    assert house.refused(rollout, "start") == "rollout.unapproved"
    assert house.ask(rollout, "prefetch").json()["code"] == "rollout.unapproved"
    assert house.refused(rollout, "approve", by=house.releaser) == "rollout.own-approval"
    assert house.refused(rollout, "approve", by=house.operator) == "access.scope"
    house.move(rollout, "approve", by=releaser)
    approved = house.move(rollout, "approve", by=releaser)
    assert [one["reason"] for one in approved["approvals"]] == ["a test"], "one person counts once"
    assert house.refused(rollout, "start") == "rollout.unapproved"
    house.move(rollout, "approve", by=as_scope(app, Scope.ADMIN))
    assert house.move(rollout, "start")["state"] == "running"
    assert house.refused(rollout, "approve", by=releaser) == "rollout.wrong-state"


def test_a_halted_release_goes_out_again_only_with_a_reason_and_is_free_once_it_succeeded(house: House) -> None:
    waiting = house.draft(waves=["100%"])
    rollout = house.begin(waves=["1", "100%"])
    house.fail(house.parts(rollout, "exposed")[0])
    shown = made(house.operator.get("/api/v1/models/mnist/releases/2"))
    assert shown["quarantine"]["rollout"] == rollout
    listed = made(house.operator.get("/api/v1/models/mnist/releases"))["items"]
    assert [one["quarantine"] is None for one in listed] == [False, True]
    body = {"model": "mnist", "release": 2, "waves": ["100%"]}
    assert house.releaser.post("/api/v1/rollouts", json=body).json()["code"] == "release.quarantined"
    assert house.refused(waiting, "start") == "release.quarantined"
    again = house.begin(waves=["100%"], override_quarantine="the disk was full")
    assert made(house.operator.get("/api/v1/models/mnist/releases/2"))["quarantine"] is not None
    house.commit(again)
    assert made(house.operator.get("/api/v1/models/mnist/releases/2"))["quarantine"] is None
    assert house.move(waiting, "start")["state"] == "succeeded"


def test_every_move_needs_a_reason(house: House) -> None:
    rollout = house.draft(waves=["100%"])
    for verb in ("approve", "start", "pause", "resume", "promote", "abort", "undo"):
        for body in ({}, {"reason": ""}):
            answer = house.releaser.post(f"/api/v1/rollouts/{rollout}/{verb}", json=body)
            assert answer.status_code == 422, (verb, answer.text)


def say_how_it_does(house: House, device: str, *, release: int, right: int) -> None:
    """Let a device report its holdout of ten samples."""
    one = house.devices[device]
    one.sequence += 1
    said = HoldoutReport(
        device=one.id,
        sequence=one.sequence,
        model="mnist",
        release=release,
        samples=10,
        added=10,
        classes=((0, 10),),
        others=0,
        confidences=(0,) * 9 + (10,),
        correct=(0,) * 9 + (right,),
        agent="0.1.0",
    )
    assert one.send(said).status_code == 204


def test_devices_that_are_held_back_never_get_it_and_take_part_in_the_next_rollout(house: House) -> None:
    rollout = house.begin(waves=["1", "100%"], control="20%")
    assert house.states(rollout) == {"waiting": 3, "exposed": 1, "control": 2}
    controls = [part["device"] for part in house.devices_of(rollout, state="control")]
    assert house.look(rollout)["controls"] == 2
    house.commit(rollout)
    assert house.look(rollout)["state"] == "succeeded"
    assert {house.wishes()[one] for one in controls} == {1}
    say_how_it_does(house, controls[0], release=1, right=6)
    for one in house.parts(rollout, "committed")[:2]:
        say_how_it_does(house, one, release=2, right=9)
    why = made(house.operator.get(f"/api/v1/rollouts/{rollout}/why"))
    assert why["control"] == {"devices": 2, "reported": 1, "samples": 10, "accuracy": 0.6}
    assert why["treated"] == {"devices": 4, "reported": 2, "samples": 20, "accuracy": 0.9}
    again = house.begin(waves=["100%"])
    assert sorted(house.parts(again, "exposed")) == sorted(controls), "the others have it and count as committed"


def test_no_more_devices_are_in_flight_than_allowed(house: House) -> None:
    rollout = house.begin(waves=["100%"], in_flight=2)
    seen = []
    while exposed := house.parts(rollout, "exposed"):
        seen.append(len(exposed))
        house.devices[exposed[0]].tell(Outcome.COMMITTED)
    assert seen == [2, 2, 2, 2, 2, 1]
    assert house.look(rollout)["state"] == "succeeded"


def test_a_failure_that_may_pass_is_tried_again_before_it_counts(house: House) -> None:
    rollout = house.begin(waves=["1", "100%"], retries={"disk": 2, "first_wait_s": 60})
    (one,) = house.parts(rollout, "exposed")
    for attempt in (1, 2):
        now = datetime.now(UTC)
        house.fail(one, "disk.no-space")
        shown = house.look(rollout)
        assert (shown["state"], shown["failed"], shown["retrying"]) == ("running", 0, 1)
        assert "failed devices that are asked again" in shown["waits_for"][0]
        before = house.assigned(one)
        house.upkeep(now + timedelta(seconds=30))
        assert house.assigned(one) == before, "it is not time yet"
        house.upkeep(now + timedelta(minutes=5))
        assert house.assigned(one) == [*before, 2]
        assert house.devices_of(rollout)[0]["retries"] == attempt
    house.fail(one, "disk.no-space")
    halted = house.look(rollout)
    assert (halted["state"], house.devices_of(rollout, state="failed")[0]["failure"]) == ("halted", "disk")
    why = made(house.operator.get(f"/api/v1/rollouts/{rollout}/why"))
    assert (why["failed"], why["failures"]) == (1, {"disk": 1})


def test_a_device_that_tries_again_by_itself_needs_no_retry(house: House) -> None:
    rollout = house.begin(waves=["1", "100%"])
    (one,) = house.parts(rollout, "exposed")
    house.fail(one, "link.down")
    house.devices[one].tell(Outcome.COMMITTED)
    shown = house.look(rollout)
    assert (shown["committed"], shown["retrying"], shown["waves"][0]["state"]) == (1, 0, "succeeded")


def test_what_says_something_of_the_release_is_not_tried_again(house: House) -> None:
    rollout = house.begin(waves=["1", "100%"], retries={"disk": 5, "link": 5, "busy": 5})
    house.fail(house.parts(rollout, "exposed")[0], "validation.worse", Outcome.REFUSED)
    assert house.look(rollout)["state"] == "halted"


def test_a_device_that_waits_for_its_retry_goes_back_with_the_others_when_the_rollout_ends(house: House) -> None:
    rollout = house.begin(waves=["2", "100%"])
    one, _ = house.parts(rollout, "exposed")
    house.fail(one, "link.down")
    house.move(rollout, "abort")
    house.upkeep(datetime.now(UTC) + timedelta(days=1))
    assert set(house.wishes().values()) == {1}
    assert house.look(rollout)["retrying"] == 0


def test_a_rehearsal_on_played_devices_says_nothing_of_the_release_and_real_ones_have_none(house: House) -> None:
    body = {"model": "mnist", "release": 2, "waves": ["100%"], "rehearsal": True}
    everybody = house.releaser.post("/api/v1/rollouts", json=body)
    assert everybody.json()["code"] == "rollout.rehearsal"
    mixed = {**body, "devices": list(house.devices)[:1]}
    assert "is real" in house.releaser.post("/api/v1/rollouts", json=mixed).json()["detail"]
    with house.app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(Device).values(attributes=PLAYED))
    rollout = house.begin(waves=["100%"], devices=list(house.devices), rehearsal=True)
    house.fail(house.parts(rollout, "exposed")[0])
    assert house.look(rollout)["state"] == "halted"
    assert made(house.operator.get("/api/v1/models/mnist/releases/2"))["quarantine"] is None
    report = made(house.operator.post("/api/v1/reports/savings", json={}))
    assert (report["devices"], report["rows"]) == (0, [])


def test_a_rollout_to_everybody_passes_over_played_devices(house: House) -> None:
    played = next(iter(house.devices))
    with house.app.state.database.transaction(DEFAULT_PROJECT) as session:
        session.execute(update(Device).where(Device.id == UUID(played)).values(attributes=PLAYED))
    rollout = house.begin(waves=["100%"])
    assert set(house.parts(rollout, "exposed")) == set(house.devices) - {played}
