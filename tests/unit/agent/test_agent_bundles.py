"""A device without a network installs what somebody carries to it, verified as over the network."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tiny_onnx
from carried import bundle_for
from device_server import ENROLMENT_TOKEN, Device
from one_device import MODEL, OneDevice, agent_on, one_device, release_of

from sprat_client.agent.bundle_file import BundleFile
from sprat_client.agent.durable import PosixDisk
from sprat_client.agent.enrol import enrol
from sprat_client.agent.identity import Identity
from sprat_client.agent.trust.clock import Clock
from sprat_shared.errors import Conflict, InvalidInput, LimitExceeded, SpratError
from sprat_shared.protocol.bundle import PREFIX_BYTES, Head, head_bytes, read_head
from sprat_shared.protocol.report import Outcome


@pytest.fixture
def device(tmp_path: Path) -> Iterator[OneDevice]:
    """A device that runs release 1 of two."""
    with one_device(tmp_path) as device:
        add(device)
        yield device


def add(device: OneDevice) -> None:
    releases = device.server.models[MODEL]
    weights = tiny_onnx.nudged(releases[len(releases)].weights, len(releases) + 1)
    device.server.add_release(MODEL, weights, base=len(releases))


def known(device: OneDevice) -> Device:
    return next(iter(device.server.devices.values()))


def carried(device: OneDevice, release: int, **how: bool) -> bytes:
    """Assign a release and export a bundle."""
    device.server.assign(MODEL, release, known(device))
    return bundle_for(device.server, known(device), **how)


def install(device: OneDevice, bundle: bytes, clock: Clock | None = None, folder: Path | None = None) -> int:
    """Install a bundle and hold it against the network: nothing may be asked of the server."""
    file = device.folder.parent / "a.bundle"
    file.write_bytes(bundle)
    asked = len(device.server.requests)
    try:
        with BundleFile(file) as opened, agent_on(folder or device.folder, clock=clock, offline=True) as agent:
            return agent.install(opened)
    finally:
        assert len(device.server.requests) == asked


def refused(device: OneDevice, bundle: bytes, clock: Clock | None = None) -> str:
    """Return the code with which a bundle is refused; what served before serves still."""
    before = device.serves()
    with pytest.raises(SpratError) as caught:
        install(device, bundle, clock)
    assert device.serves() == before
    return caught.value.code


def test_a_bundle_brings_a_release_without_a_request_and_the_next_poll_takes_the_report(device: OneDevice) -> None:
    assert install(device, carried(device, 2)) == 0
    assert device.serves() == 2
    assert len(known(device).reports) == 1, "the device had no network"
    with device.agent() as agent:
        assert agent.run(once=True) == 0
    report = known(device).reports[-1]
    assert (report.outcome, report.release, report.received_bytes) == (Outcome.COMMITTED, 2, 0)
    assert known(device).refusals == []
    add(device)
    assert device.take(3)[1].outcome is Outcome.COMMITTED


def test_the_same_bundle_again_changes_nothing(device: OneDevice) -> None:
    bundle = carried(device, 2)
    assert [install(device, bundle), install(device, bundle)] == [0, 0]
    assert device.serves() == 2


def test_a_release_that_does_worse_is_refused_as_over_the_network(device: OneDevice) -> None:
    weights = {**tiny_onnx.weights(99), "steps": tiny_onnx.weights(1)["steps"]}
    device.server.add_release(MODEL, weights, base=1)
    file = device.folder.parent / "a.bundle"
    file.write_bytes(carried(device, 3))
    with BundleFile(file) as opened, device.agent(offline=True) as agent:
        assert agent.install(opened) == 76
    assert device.serves() == 1


@pytest.fixture
def neighbour(device: OneDevice, tmp_path: Path) -> Path:
    """The folder of another device of the fleet, whose director's versions are higher."""
    folder = tmp_path / "neighbour"
    url = Identity.load(device.folder).server_url
    enrol(folder, PosixDisk(), server_url=url, token=ENROLMENT_TOKEN, name="gate-8")
    for release in (1, 2, 1, 2):
        device.server.assign(MODEL, release, device.server.devices["gate-8"])
        device.server.director.direct(
            device.server.devices["gate-8"].id, device.server._assignments(device.server.devices["gate-8"])
        )
    return folder


def test_one_bundle_serves_several_devices_and_holds_each_payload_once(device: OneDevice, neighbour: Path) -> None:
    device.server.assign(MODEL, 2, known(device))
    alone = bundle_for(device.server, known(device), full=True)
    both = bundle_for(device.server, *device.server.devices.values(), full=True)
    assert len(both) < len(alone) + len(device.server.models[MODEL][2].full)
    assert install(device, both) == 0
    assert install(device, both, folder=neighbour) == 0
    with agent_on(neighbour, offline=True) as agent:
        assert release_of(agent, device.server) == 2


def test_a_bundle_of_another_device_is_refused_by_name(device: OneDevice, neighbour: Path) -> None:
    assert neighbour.exists()
    assert (
        refused(device, bundle_for(device.server, device.server.devices["gate-8"], full=True)) == "bundle.other-device"
    )


def test_who_swaps_the_devices_of_a_bundle_poisons_neither(device: OneDevice, neighbour: Path) -> None:
    """The versions of the neighbour are higher: who took them would refuse its own metadata from then on."""
    assert neighbour.exists()
    right = carried(device, 2)
    theirs = bundle_for(device.server, device.server.devices["gate-8"], full=True)
    mine, other = known(device).id.bytes, device.server.devices["gate-8"].id.bytes
    assert refused(device, renamed(theirs, other, mine)) == "bundle.other-device"
    assert install(device, right) == 0


def test_metadata_of_a_poll_that_name_no_device_are_not_taken_from_a_bundle(device: OneDevice) -> None:
    device.server.assign(MODEL, 2, known(device))
    assert refused(device, bundle_for(device.server, known(device), bound=False)) == "bundle.other-device"


def renamed(bundle: bytes, old: bytes, new: bytes) -> bytes:
    """Return a bundle whose head names another device, its digest made anew."""
    end = PREFIX_BYTES + head_bytes(bundle[:PREFIX_BYTES])
    head = bundle[PREFIX_BYTES:end].replace(old, new)
    assert head != bundle[PREFIX_BYTES:end]
    return bundle[: PREFIX_BYTES - 32] + hashlib.sha256(head).digest() + head + bundle[end:]


def test_an_expired_bundle_is_refused_by_name(device: OneDevice) -> None:
    bundle = carried(device, 2)
    late = Clock(wall=lambda: datetime.now(UTC) + timedelta(days=4000))
    assert refused(device, bundle, late) == "trust.expired"
    assert install(device, bundle) == 0


def test_an_older_bundle_is_a_replay(device: OneDevice) -> None:
    older = carried(device, 2)
    add(device)
    assert install(device, carried(device, 3, full=True)) == 0
    assert refused(device, older) == "trust.rollback"


def test_a_bundle_that_lacks_what_this_device_needs_says_so(device: OneDevice) -> None:
    add(device)
    device.server.offered[3] = (f"{MODEL}/3/from-2",)  # as if the device had reported release 2
    assert refused(device, carried(device, 3)) == "bundle.incomplete"
    assert install(device, bundle_for(device.server, known(device), full=True)) == 0
    assert device.serves() == 3


def test_a_file_that_is_cut_anywhere_is_refused_and_the_whole_one_taken(device: OneDevice) -> None:
    bundle = carried(device, 2)
    for end in sorted({0, 1, 11, 12, PREFIX_BYTES - 1, PREFIX_BYTES, *range(60, len(bundle), 211), len(bundle) - 1}):
        with pytest.raises(InvalidInput) as caught:
            install(device, bundle[:end])
        assert caught.value.code in {"bundle.damaged", "bundle.unknown"}, end
    assert refused(device, bundle + b"!") == "bundle.damaged"
    assert install(device, bundle) == 0


ZSTD_MAGIC = bytes.fromhex("28b52ffd")


def test_a_file_in_which_any_byte_was_changed_is_refused_and_the_right_one_taken(device: OneDevice) -> None:
    bundle = carried(device, 2)
    for at in sorted({0, 12, 13, 17, PREFIX_BYTES, *range(5, len(bundle), 97), len(bundle) - 1}):
        changed = bytearray(bundle)
        changed[at] ^= 0x10
        if changed[at - 4 : at] == ZSTD_MAGIC:  # the bit of a frame's header that means nothing (RFC 8878, 3.1.1.1.1)
            continue
        with pytest.raises((InvalidInput, LimitExceeded)) as caught:
            install(device, bytes(changed))
        assert caught.value.code.startswith(("bundle.", "update.limit")), (at, caught.value)
    assert install(device, bundle) == 0


def test_no_memory_is_taken_for_what_a_head_merely_declares(device: OneDevice) -> None:
    prefix = b"sprat-bundle\x01" + (1 << 31).to_bytes(4, "little") + bytes(32)
    with pytest.raises(LimitExceeded):
        head_bytes(prefix)
    huge = Head(1 << 30, {known(device).id: 5}, {}).to_bytes()
    with pytest.raises(LimitExceeded):
        read_head(huge[:PREFIX_BYTES], huge[PREFIX_BYTES:], file_bytes=1 << 31)


def test_while_an_agent_runs_on_the_folder_a_bundle_waits(device: OneDevice) -> None:
    bundle = carried(device, 2)
    with device.agent(), pytest.raises(Conflict, match="stop it"):
        install(device, bundle)
    assert install(device, bundle) == 0
