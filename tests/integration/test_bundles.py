"""Bundles: what devices without a network should run, exported by the real server and read as a device reads them."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from fastapi import FastAPI
from fleet_calls import TestDevice, held_after, join, made, published
from http_calls import Api
from poll_calls import bring_to
from sqlalchemy import select

from sprat_client.agent.bundle_file import BundleFile
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.publish.models import SignedMetadata
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.poll import PollAnswer
from sprat_shared.protocol.report import Outcome
from sprat_shared.trust.assignments import Assigned


@pytest.fixture
def devices(app: FastAPI, operator: Api) -> list[TestDevice]:
    """Two devices that run release 1 and should run release 2."""
    published(app)
    joined = join(app, operator, 2)
    bring_to(app, 1)
    for device in joined:
        device.tell(Outcome.COMMITTED)
    published(app, base=1)
    bring_to(app, 2)
    return joined


def export(operator: Api, tmp_path: Path, **body: object) -> BundleFile:
    answer = operator.post("/api/v1/bundles", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.sprat.bundle"
    file = tmp_path / "a.bundle"
    file.write_bytes(answer.content)
    opened = BundleFile(file)
    opened.check()
    return opened


def signed(parts: dict[str, bytes], start: str) -> dict:  # type: ignore[type-arg]
    (found,) = [data for name, data in parts.items() if name.startswith(start.partition("*")[0]) and start[-6:] in name]
    said: dict = json.loads(found)["signed"]  # type: ignore[type-arg]
    return said


def named(device: TestDevice) -> list[str]:
    return [str(device.id)]


def test_a_bundle_holds_what_a_poll_would_bring_and_each_payload_once(
    operator: Api, devices: list[TestDevice], tmp_path: Path
) -> None:
    polled = PollAnswer.from_bytes(devices[0].poll(inline=1 << 20).content)
    with export(operator, tmp_path, model="mnist") as bundle:
        assert sorted(bundle.payloads) == sorted(
            sha256(part.data).digest() for part in polled.parts if part.kind == "blob"
        )
        for device in devices:
            parts = bundle.metadata(device.id)
            ((path, target),) = signed(parts, "director/*gets.j")["targets"].items()
            assigned = Assigned.from_custom(path, target["custom"])
            assert (assigned.device, assigned.release, assigned.path) == (device.id, 2, ("mnist/2/from-1",))
            image = {name: data for name, data in parts.items() if name.startswith("image/")}
            assert image == {
                part.name: part.data
                for part in PollAnswer.from_bytes(device.poll().content).parts
                if part.name.startswith("image/")
            }


def test_a_bundle_is_for_the_devices_that_are_named_and_for_no_other(
    operator: Api, devices: list[TestDevice], tmp_path: Path
) -> None:
    with export(operator, tmp_path, devices=named(devices[0])) as bundle:
        assert bundle.metadata(devices[0].id)
        with pytest.raises(InvalidInput, match="is for") as caught:
            bundle.metadata(devices[1].id)
        assert caught.value.code == "bundle.other-device"


def test_the_next_poll_goes_on_from_what_the_bundle_brought(
    operator: Api, devices: list[TestDevice], tmp_path: Path
) -> None:
    before = held_after(PollAnswer.from_bytes(devices[0].poll().content))
    with export(operator, tmp_path, devices=named(devices[0]), valid_days=60) as bundle:
        parts = bundle.metadata(devices[0].id)
    brought = {name: json.loads(data)["signed"]["version"] for name, data in parts.items()}
    for item in before:
        if item.role in {"timestamp", "snapshot"}:
            newer = max(v for name, v in brought.items() if name.startswith(item.repository) and item.role in name)
            assert newer > item.version or item.repository == "image", "no device takes it for a rollback"
    held = {
        item: next(d for n, d in parts.items() if n.startswith(item.repository) and n.endswith(f"{item.role}.json"))
        for item in before
    }
    carried = {
        type(item)(item.repository, item.role, json.loads(data)["signed"]["version"]): data
        for item, data in held.items()
    }
    answer = devices[0].poll(held=list(carried))
    read = PollAnswer.from_bytes(answer.content, b"".join(carried.values()))
    assert [part.name for part in read.parts] == ["image/timestamp.json", "director/timestamp.json"]
    after = held_after(read, carried)
    assert devices[0].poll(held=list(after)).status_code == 304
    for part in read.parts:
        said = json.loads(part.data)["signed"]
        assert datetime.fromisoformat(said["expires"]) < datetime.now(UTC) + timedelta(days=9), "polls live no longer"
        assert "device" not in said.get("sprat", {})


def test_a_bundle_is_good_for_as_long_as_was_asked(operator: Api, devices: list[TestDevice], tmp_path: Path) -> None:
    for days in (1, 20, 90):
        answer = operator.post("/api/v1/bundles", json={"devices": named(devices[0]), "valid_days": days})
        until = datetime.fromisoformat(answer.headers["sprat-valid-until"])
        assert until >= datetime.now(UTC) + timedelta(days=days) - timedelta(minutes=1)
        (tmp_path / "b").write_bytes(answer.content)
        with BundleFile(tmp_path / "b") as bundle:
            newest = [
                json.loads(data)["signed"]["expires"]
                for name, data in bundle.metadata(devices[0].id).items()
                if not name.endswith("root.json")
            ]
            assert min(map(datetime.fromisoformat, newest)) == until


@pytest.mark.usefixtures("devices")
def test_without_days_the_image_repository_signs_nothing(app: FastAPI, operator: Api, tmp_path: Path) -> None:
    def versions() -> list[tuple[str, int]]:
        with app.state.database.transaction(DEFAULT_PROJECT) as session:
            rows = session.scalars(select(SignedMetadata).where(SignedMetadata.repository == "image"))
            return sorted((row.role, row.version) for row in rows)

    before = versions()
    export(operator, tmp_path, model="mnist").__exit__(None, None, None)
    assert versions() == before
    export(operator, tmp_path, model="mnist", valid_days=30).__exit__(None, None, None)
    assert len(versions()) > len(before)


def test_a_device_of_which_nothing_is_known_gets_the_full_update(
    app: FastAPI, operator: Api, devices: list[TestDevice], tmp_path: Path
) -> None:
    assert devices
    fresh = join(app, operator, 1)[0]
    full = made(operator.get("/api/v1/models/mnist/releases/2"))
    sizes = {update["base"]: update["bytes"] for update in full["updates"]}
    with export(operator, tmp_path, devices=named(fresh)) as bundle:
        assert sizes[None] in bundle.payloads.values()
    with export(operator, tmp_path, devices=named(devices[0])) as bundle:
        assert sizes[None] not in bundle.payloads.values()
    with export(operator, tmp_path, devices=named(devices[0]), full=True) as bundle:
        assert {sizes[None], sizes[1]} <= set(bundle.payloads.values())


def test_what_makes_no_bundle_is_refused_with_what_to_do(
    app: FastAPI, operator: Api, viewer: Api, devices: list[TestDevice]
) -> None:
    def code(answer: httpx.Response) -> tuple[int, str]:
        return answer.status_code, answer.json()["code"]

    def post(**body: object) -> tuple[int, str]:
        return code(operator.post("/api/v1/bundles", json=body))

    assert post() == (422, "input.invalid")
    assert post(model="mnist", devices=named(devices[0])) == (422, "input.invalid")
    assert post(model="nothing") == (404, "model.unknown")
    assert post(devices=[str(UUID(int=7))]) == (404, "device.unknown")
    assert post(model="mnist", valid_days=91) == (422, "request.invalid")
    published(app, model="other")
    assert post(model="other") == (422, "bundle.empty")
    made(operator.post(f"/api/v1/devices/{devices[1].id}/revoke", json={"reason": "stolen"}))
    assert post(devices=named(devices[1])) == (409, "device.revoked")
    assert viewer.post("/api/v1/bundles", json={"model": "mnist"}).status_code == 403


def test_an_export_is_in_the_audit_log(operator: Api, devices: list[TestDevice], tmp_path: Path) -> None:
    export(operator, tmp_path, model="mnist", valid_days=10).__exit__(None, None, None)
    newest = made(operator.get("/api/v1/audit"))["items"][0]
    assert newest["action"] == "bundle.export"
    assert newest["subject"].startswith("bundle:sha256:")
    assert newest["after"]["devices"] == sorted(str(device.id) for device in devices)
    assert newest["after"]["valid_days"] == 10


def test_a_bundle_holds_no_key_and_no_token(
    app: FastAPI, operator: Api, devices: list[TestDevice], tmp_path: Path
) -> None:
    with export(operator, tmp_path, model="mnist", valid_days=10, full=True) as bundle:
        told = b"".join(_everything(bundle, devices))
    for device in devices:
        assert device.key.private_bytes_raw() not in told
        assert (device.api.token or "").encode() not in told
    for key in app.state.settings.keys_dir.glob("*.pem"):
        assert key.read_bytes().splitlines()[1] not in told


def _everything(bundle: BundleFile, devices: list[TestDevice]) -> Iterator[bytes]:
    yield (bundle._file.seek(0), bundle._file.read())[1]
    for device in devices:
        yield from bundle.metadata(device.id).values()
