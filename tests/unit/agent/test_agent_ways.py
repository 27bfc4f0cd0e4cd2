"""The cheapest way to a release: held against every way there is, and taken by a real agent."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_onnx
from hypothesis import given
from hypothesis import strategies as st
from one_device import MODEL, OneDevice, one_device

from sprat_client.agent import ways
from sprat_client.agent.ways import Step, cheapest_way
from sprat_shared.protocol.report import Outcome

WISHED_RELEASE, WISHED_WEIGHTS = 6, "w6"
HELD = st.sets(st.sampled_from(["w1", "w2", "w3"]))


@st.composite
def many_steps(draw: st.DrawFn) -> list[Step]:
    """Updates between up to six releases, forwards, backwards and full, of costs that often tie."""
    pairs = draw(st.sets(st.tuples(st.integers(0, 6), st.integers(1, 6)), max_size=14))
    return [
        Step(
            path=f"m/{release}/{f'from-{base}' if base else 'full'}",
            base=f"w{base}" if base else None,
            weights=f"w{release}",
            release=release,
            cost=draw(st.integers(0, 9)),
        )
        for base, release in sorted(pairs)
        if base != release
    ]


def every_way(steps: Sequence[Step], here: str | None, way: tuple[Step, ...], most: int) -> Iterator[tuple[Step, ...]]:
    if way and (way[-1].release, way[-1].weights) == (WISHED_RELEASE, WISHED_WEIGHTS):
        yield way
        return
    for step in steps:
        detour = step.base is None and step.release != WISHED_RELEASE
        if step.base == here and step not in way and len(way) < most and not detour:
            yield from every_way(steps, step.weights, (*way, step), most)


def rank(way: Sequence[Step]) -> tuple[int, int, list[str]]:
    return sum(step.cost for step in way), len(way), [step.path for step in way]


@given(many_steps(), HELD, st.integers(1, 16))
def test_no_way_from_what_is_held_costs_less(steps: list[Step], held: set[str], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ways, "MOST_STEPS", most)
        found = cheapest_way(steps, held, release=WISHED_RELEASE, weights=WISHED_WEIGHTS)
    best = min((way for start in (None, *held) for way in every_way(steps, start, (), most)), key=rank, default=())
    assert found == best


def test_two_releases_of_the_same_weights_are_told_apart() -> None:
    same = Step(path="m/5/from-1", base="w1", weights="w6", release=5, cost=1)
    wished = Step(path="m/6/from-1", base="w1", weights="w6", release=6, cost=9)
    assert cheapest_way([same, wished], {"w1"}, release=6, weights="w6") == (wished,)
    assert cheapest_way([same], {"w1"}, release=6, weights="w6") == ()


# a real agent ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    """A device that holds release 2 and, in its other slot, release 1; payloads are asked for one by one."""
    with one_device(tmp_path) as device:
        add(device, base=1)
        device.take(2)
        device.server.inline = False
        yield device


def add(device: OneDevice, *, base: int) -> str:
    """Add a release; return the digest of the update from `base`."""
    releases = device.server.models[MODEL]
    weights = tiny_onnx.nudged(releases[base].weights, len(releases) + 1)
    update = device.server.add_release(MODEL, weights, base=base).update
    assert update is not None
    return sha256_of(update)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fetched(device: OneDevice, release: int) -> list[str]:
    """Bring the device to a release; return the digests of the payloads that it asked for."""
    before = len(device.server.requests)
    code, report = device.take(release)
    assert (code, report.outcome, device.serves()) == (0, Outcome.COMMITTED, release)
    asked = [path for _, path, _ in device.server.requests[before:] if path.startswith("/blobs/")]
    return [path.rpartition("/")[2] for path in asked]


def test_both_slots_are_starts_whatever_the_director_offers(device: OneDevice) -> None:
    from_the_other = add(device, base=1)
    assert fetched(device, 3) == [from_the_other]
    on_from_there = add(device, base=3)
    assert fetched(device, 4) == [on_from_there]


def test_a_chain_is_taken_where_it_is_smaller_than_the_full_update(device: OneDevice) -> None:
    chain = [add(device, base=2), add(device, base=3)]
    assert fetched(device, 4) == chain


def test_a_start_that_is_damaged_is_left_for_another_way(device: OneDevice) -> None:
    add(device, base=1)
    add(device, base=3)
    with device.agent() as agent:
        shelf = agent._machines[MODEL].shelf
        active, previous = shelf.slots().active, shelf.slots().previous
        assert active is not None
        assert previous is not None
        shared = set(shelf.manifest(active.release_id).files)
        own = [sha256 for sha256 in shelf.manifest(previous.release_id).files if sha256 not in shared]
        for sha256 in own:
            file = agent._shop.store.path(sha256)
            data = bytearray(file.read_bytes())
            data[0] ^= 0xFF
            file.chmod(0o600)
            file.write_bytes(bytes(data))
    assert own
    assert fetched(device, 4) == [sha256_of(device.server.models[MODEL][4].full)]


def test_a_payload_that_is_here_already_costs_nothing(device: OneDevice) -> None:
    add(device, base=2)
    full = device.server.models[MODEL][3].full
    counter = device.server.assign(MODEL, 3)
    with device.agent() as agent:
        agent._poll()
        (device.folder / "downloads").mkdir(exist_ok=True)
        (device.folder / "downloads" / sha256_of(full)).write_bytes(full)
        before = device.server.blob_bytes_sent
        assert agent.run(once=True) == 0
    assert device.server.wait_for_report(counter).received_bytes == 0
    assert device.server.blob_bytes_sent == before


def test_a_step_that_is_pruned_while_it_is_fetched_is_chosen_anew(device: OneDevice) -> None:
    pruned = add(device, base=2)
    device.server.cut_after = [5] * 50
    counter = device.server.assign(MODEL, 3)
    with device.agent() as agent:
        agent.turn()
        work = agent._shop.journal.record(MODEL).work
        assert work is not None
        assert work.steps == (f"{MODEL}/3/from-2",)
        with device.server.lock:
            del device.server.repository.models[MODEL].targets[f"{MODEL}/3/from-2"]
            device.server.repository.publish(MODEL)
            del device.server.blobs[pruned]
            device.server.cut_after = []
            device.server.says = lambda assigned: replace(assigned, path=())
        agent._next_poll = 0.0
        assert agent.run(once=True) == 0
    assert device.server.wait_for_report(counter).outcome is Outcome.COMMITTED
