"""The image repository: what is signed, that it is accepted by python-tuf's own client, and what is refused."""

import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from custody_calls import updater
from fastapi import FastAPI
from fleet_calls import publish, published
from http_calls import Api
from securesystemslib.signer import CryptoSigner
from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError

from sprat_server.db.blobs import Blobs
from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.db.session import Database
from sprat_server.flows import upkeep
from sprat_server.publish import drafts, repository
from sprat_server.publish.image import open_repository
from sprat_server.publish.keys import KeysUnusable, key_path
from sprat_server.publish.models import SignedMetadata
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release
from sprat_server.settings import Settings
from sprat_shared.trust.targets import UpdateTarget


def versions(database: Database) -> dict[str, int]:
    with database.transaction(DEFAULT_PROJECT) as session:
        return repository.newest_versions(session)


def test_python_tufs_client_accepts_releases_updates_and_graphs(app: FastAPI, viewer: Api, tmp_path: Path) -> None:
    first, second = published(app), published(app, base=1)
    client = updater(app, tmp_path / "trust")
    client.refresh()
    info = client.get_targetinfo("mnist/2/from-1")
    assert info is not None
    target = UpdateTarget.from_custom(info.path, info.custom)
    assert (target.release, target.weights, target.base_release) == (2, second.weights_digest, 1)
    assert target.base_weights == first.weights_digest
    info.verify_length_and_hashes(viewer.get(f"/blobs/sha256/{info.hashes['sha256']}").content)
    graph = client.get_targetinfo(f"mnist/graph/{second.graph_digest[7:]}")
    assert graph is not None
    graph.verify_length_and_hashes(b"the graph of mnist")
    assert client.get_targetinfo("mnist/1/full") is not None
    assert client.get_targetinfo("mnist/3/full") is None


def test_a_client_follows_from_release_to_release_and_model_to_model(app: FastAPI, tmp_path: Path) -> None:
    published(app)
    updater(app, tmp_path / "trust").refresh()
    published(app, model="pcb")
    published(app, base=1)
    client = updater(app, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("mnist/2/from-1") is not None
    assert client.get_targetinfo("pcb/1/full") is not None


def test_a_model_role_is_not_trusted_for_another_model(app: FastAPI, tmp_path: Path) -> None:
    published(app)
    published(app, model="pcb")
    database, settings = app.state.database, app.state.settings
    with database.transaction(DEFAULT_PROJECT) as session:
        repo = open_repository(session, settings)
        stolen = repo.targets("m.mnist").targets["mnist/1/full"]
        stolen.path = "pcb/2/full"
        repo.set_targets("mnist", [stolen], reason="a taken key")
    client = updater(app, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("pcb/2/full") is None


@pytest.mark.parametrize("file", ["2.timestamp.json", "snapshot.json", "9.root.json", "root.json", "x", "1.m.no.json"])
def test_a_metadata_file_that_is_not_there_is_a_clear_404(app: FastAPI, viewer: Api, file: str) -> None:
    published(app)
    answer = viewer.get(f"/tuf/image/{file}")
    assert (answer.status_code, answer.json()["code"]) == (404, "metadata.unknown")


def test_keys_are_files_that_only_their_owner_reads(database: Database, settings: Settings) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
    files = sorted(settings.keys_dir.iterdir())
    assert [file.name for file in files] == [
        f"image-{purpose}.pem" for purpose in ("root", "snapshot", "targets", "timestamp")
    ]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(settings.keys_dir.stat().st_mode) == 0o700


def test_starting_again_changes_nothing(database: Database, settings: Settings) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
    before = versions(database)
    with database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
        assert upkeep.sign_due(session, settings) == []
    assert versions(database) == before


@pytest.mark.parametrize("purpose", ["timestamp", "snapshot", "auto"])
def test_a_missing_key_is_named_with_what_to_do(
    database: Database, blobs: Blobs, settings: Settings, purpose: str
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings)
    path = key_path(settings.keys_dir, purpose)
    path.unlink()
    with (
        pytest.raises(KeysUnusable, match=f"{path} is missing .*; copy"),
        database.transaction(DEFAULT_PROJECT) as session,
    ):
        open_repository(session, settings)
    assert not path.exists()


def test_a_foreign_key_is_refused(database: Database, settings: Settings) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        open_repository(session, settings)
    key_path(settings.keys_dir, "timestamp").write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    with (
        pytest.raises(KeysUnusable, match="not the key that devices trust"),
        database.transaction(DEFAULT_PROJECT) as session,
    ):
        open_repository(session, settings)


@pytest.mark.parametrize("content", [b"", b"not a key", CryptoSigner.generate_ecdsa().private_bytes])
def test_a_file_that_is_no_ed25519_key_is_refused(database: Database, settings: Settings, content: bytes) -> None:
    settings.keys_dir.mkdir(parents=True)
    path = key_path(settings.keys_dir, "root")
    path.write_bytes(content)
    with (
        pytest.raises(KeysUnusable, match=f"{path} (cannot be read|is not)"),
        database.transaction(DEFAULT_PROJECT) as session,
    ):
        open_repository(session, settings)
    assert path.read_bytes() == content, "what a person may still need is not overwritten"


def test_two_processes_that_start_at_once_make_one_set_of_keys(database: Database, settings: Settings) -> None:
    def start() -> None:
        with database.transaction(DEFAULT_PROJECT) as session:
            open_repository(session, settings)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions(database) == {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 1}
    start()


def test_releases_go_on_without_root_and_targets_keys_and_a_new_model_waits_for_the_targets_key(
    database: Database, blobs: Blobs, settings: Settings
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings)
    key_path(settings.keys_dir, "root").unlink()
    key_path(settings.keys_dir, "targets").unlink()
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings, base=1)
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings, model="pcb")
        waiting = {draft.role: draft.metadata.signatures for draft in drafts.all_drafts(session)}
        assert set(waiting) == {"targets", "m.pcb"}
        assert not waiting["targets"]
        assert repository.newest(session, "m.pcb") is None


@pytest.mark.parametrize(
    ("days", "signed"),
    [
        (1, []),
        (4, ["timestamp"]),
        (16, ["snapshot", "timestamp"]),
        (200, ["m.mnist", "snapshot", "targets", "timestamp"]),
        (400, ["m.mnist", "root", "snapshot", "targets", "timestamp"]),
    ],
)
def test_metadata_are_signed_again_at_half_of_their_life_and_still_accepted(
    app: FastAPI, tmp_path: Path, days: int, signed: list[str]
) -> None:
    published(app)
    before = versions(app.state.database)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        again = upkeep.sign_due(session, app.state.settings, datetime.now(UTC) + timedelta(days=days))
    assert sorted(again) == signed
    after = versions(app.state.database)
    assert (after["timestamp"] > before["timestamp"]) == bool(signed)
    client = updater(app, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("mnist/1/full") is not None


@pytest.mark.parametrize("version", [1, 2, 4])
def test_the_database_refuses_a_version_that_is_not_the_next(
    database: Database, blobs: Blobs, settings: Settings, version: int
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings)
    assert versions(database)["timestamp"] == 2
    row = SignedMetadata(
        repository="image",
        role="timestamp",
        version=version,
        body=b"{}",
        expires_at=datetime.now(UTC) + timedelta(days=1),
    )
    with (
        pytest.raises(IntegrityError, match=r"next version|pk_signed_metadata"),
        database.transaction(DEFAULT_PROJECT) as session,
    ):
        session.add(row)


def test_signed_metadata_are_never_changed_or_deleted(database: Database, blobs: Blobs, settings: Settings) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings)
    for statement in (delete(SignedMetadata), update(SignedMetadata).values(body=b"{}")):
        with pytest.raises(IntegrityError, match="are facts"), database.transaction(DEFAULT_PROJECT) as session:
            session.execute(statement)


def test_a_commit_that_fails_leaves_neither_release_nor_metadata(
    database: Database, blobs: Blobs, settings: Settings
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings)
    before = versions(database)

    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings, base=1)
        assert repository.newest_versions(session)["timestamp"] == before["timestamp"] + 1
        session.rollback()
    with database.transaction(DEFAULT_PROJECT) as session:
        assert session.scalar(select(func.count()).select_from(Release)) == 1
    assert versions(database) == before


def test_a_blob_that_was_never_uploaded_is_not_published(
    database: Database, blobs: Blobs, settings: Settings, tmp_path: Path
) -> None:
    empty = Blobs.open(str(tmp_path / "empty"))

    class Forgetful(Blobs):
        def put_bytes(self, data: bytes | memoryview):  # type: ignore[no-untyped-def]
            return blobs.put_bytes(data)

    forgetful = Forgetful(empty._store, folder=tmp_path / "empty")
    with pytest.raises(Exception, match="upload it first"), database.transaction(DEFAULT_PROJECT) as session:
        publish(session, forgetful, settings)
    assert versions(database) == {}


def test_a_release_and_the_periodic_look_do_not_wait_for_each_other_for_ever(
    database: Database, blobs: Blobs, settings: Settings
) -> None:
    with database.transaction(DEFAULT_PROJECT) as session:
        publish(session, blobs, settings)
    with database.transaction(DEFAULT_PROJECT) as release, database.transaction(DEFAULT_PROJECT) as look:
        registry.lock_model(release, registry.get_model(release, "mnist"))
        open_repository(look, settings)  # which the release will wait for
        row = select(Model.id).where(Model.name == "mnist")
        assert look.scalar(row.with_for_update(key_share=True, read=True, nowait=True)) is not None, (
            "a foreign key asks"
        )
