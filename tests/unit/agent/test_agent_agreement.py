"""What both repositories must agree on before anything is fetched, and what is checked again before it is installed."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_onnx
from device_server import DeviceServer
from one_trust import OneTrust, assigned_trust, tiny_server

from sprat_client.agent.trust.store import VerifiedUpdate
from sprat_client.agent.trust.workflow import Offer
from sprat_shared.errors import (
    BaseMismatch,
    DigestMismatch,
    UntrustedUpdate,
    WireVersionUnsupported,
)
from sprat_shared.ids import new_id
from sprat_shared.trust.assignments import Assigned
from sprat_shared.trust.targets import UpdateTarget

MODEL = "tiny"
PATH = "tiny/1/full"


@pytest.fixture
def server() -> DeviceServer:
    return tiny_server()


@pytest.fixture
def trust(server: DeviceServer, tmp_path: Path) -> OneTrust:
    return assigned_trust(tmp_path / "device", server)


# agreement ---------------------------------------------------------------------------------------------------------


def test_the_role_of_a_model_that_is_no_longer_assigned_is_let_go_and_its_mark_stays(
    trust: OneTrust, server: DeviceServer
) -> None:
    server.add_release("other", tiny_onnx.weights(3))
    server.assign("other", 1, trust.device)
    assert {wish.model for wish in trust.take().desired} == {MODEL, "other"}
    del trust.device.wishes["other"]
    trust.take()
    assert "image/m.other" not in trust.versions()
    assert trust.poll() == {}, "nothing is new"
    assert trust.keeper.marks("image").versions["m.other"] == 1


def foreign(said: Assigned) -> Assigned:
    return replace(said, device=new_id())


def test_an_assignment_of_another_device_is_refused(trust: OneTrust, server: DeviceServer) -> None:
    server.says = foreign
    agreed = trust.take()
    assert [bad.code for bad in agreed.foreign] == ["trust.other-device"]
    assert agreed.desired == ()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"profile": "camera-s"}, "trust.other-profile"),
        ({"path": ("tiny/9/from-1",)}, "trust.disagreement"),
        ({"path": ("tiny/1/full",)}, "trust.disagreement"),
    ],
)
def test_an_assignment_that_is_not_for_this_device_or_leads_elsewhere_is_refused(
    trust: OneTrust, server: DeviceServer, changes: dict[str, Any], code: str
) -> None:
    server.says = lambda said: replace(said, **changes)
    agreed = trust.take()
    assert [(one.assigned.assignment, one.why.code) for one in agreed.refused] == [(1, code)]
    assert agreed.desired == ()


def test_a_release_that_the_image_repository_does_not_sign_is_refused(trust: OneTrust, server: DeviceServer) -> None:
    trust.take()
    (said, file), *_ = server.director.devices[trust.device.id].said or []
    server.director.direct(trust.device.id, [(replace(said, release=9, path=()), file)])
    server._assignments = lambda _: server.director.devices[trust.device.id].said or []  # type: ignore[method-assign]
    agreed = trust.take()
    assert [one.why.code for one in agreed.refused] == ["trust.disagreement"]


@pytest.mark.parametrize("lie", [{"length": 1}, {"hashes": {"sha256": "00" * 32}}])
def test_a_file_that_the_two_sign_differently_is_refused(
    trust: OneTrust, server: DeviceServer, lie: dict[str, Any]
) -> None:
    trust.take()
    (said, file), *_ = server.director.devices[trust.device.id].said or []
    swapped = copy.deepcopy(file)
    for name, value in lie.items():
        setattr(swapped, name, value)
    server._assignments = lambda _: [(said, swapped)]  # type: ignore[method-assign]
    agreed = trust.take()
    assert [one.why.code for one in agreed.refused] == ["trust.disagreement"]
    assert "sign different files" in str(agreed.refused[0].why)


# verify ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def payloads(server: DeviceServer, tmp_path: Path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name, data in server.blobs.items():
        (folder / name).write_bytes(data)
    return folder


def test_only_verification_makes_what_the_rebuild_takes(trust: OneTrust, server: DeviceServer, payloads: Path) -> None:
    (wish,) = trust.take().desired
    (update,) = trust.store.verify(wish, wish.path, server.models[MODEL][1].digest, payloads)
    assert update.target.weights == server.models[MODEL][2].digest
    assert update.payload.read_bytes() == server.models[MODEL][2].update
    with pytest.raises(TypeError, match="only TrustStore"):
        VerifiedUpdate(update.target, update.payload, seal=object())


def test_an_update_for_other_weights_is_refused(trust: OneTrust, server: DeviceServer, payloads: Path) -> None:
    (wish,) = trust.take().desired
    with pytest.raises(BaseMismatch):
        trust.store.verify(wish, wish.path, server.models[MODEL][2].digest, payloads)


@pytest.mark.parametrize("lie", [{"release": 7}, {"weights": f"sha256:{'00' * 32}"}])
def test_a_wish_that_the_metadata_contradict_is_refused(
    trust: OneTrust, server: DeviceServer, payloads: Path, lie: dict[str, Any]
) -> None:
    (wish,) = trust.take().desired
    with pytest.raises(UntrustedUpdate, match="the signed target says"):
        trust.store.verify(replace(wish, **lie), wish.path, server.models[MODEL][1].digest, payloads)


def test_a_step_that_nobody_signed_is_refused(trust: OneTrust, server: DeviceServer, payloads: Path) -> None:
    (wish,) = trust.take().desired
    with pytest.raises(UntrustedUpdate, match="not signed"):
        trust.store.verify(wish, ["tiny/2/from-9"], server.models[MODEL][1].digest, payloads)


def test_a_payload_with_other_bytes_is_refused(trust: OneTrust, server: DeviceServer, payloads: Path) -> None:
    (wish,) = trust.take().desired
    for file in payloads.iterdir():
        file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(DigestMismatch):
        trust.store.verify(wish, wish.path, server.models[MODEL][1].digest, payloads)


@pytest.mark.parametrize("needs", [{"wire": 2}, {"min_agent": "99.0.0"}])
def test_an_update_for_a_newer_agent_is_refused_by_name(
    trust: OneTrust, server: DeviceServer, payloads: Path, needs: dict[str, Any]
) -> None:
    signed = server.repository.models[MODEL].targets["tiny/2/from-1"].unrecognized_fields
    target = UpdateTarget.from_custom("tiny/2/from-1", signed["custom"])
    signed["custom"] = replace(target, **needs).to_custom()
    server.repository.publish(MODEL)
    (wish,) = trust.take().desired
    with pytest.raises(WireVersionUnsupported, match="update the agent"):
        trust.store.verify(wish, wish.path, server.models[MODEL][1].digest, payloads)


def test_an_offer_without_a_network_asks_nobody(trust: OneTrust) -> None:
    trust.take()
    assert trust.store.image.look_up([PATH], Offer())
    assert trust.asked == []
