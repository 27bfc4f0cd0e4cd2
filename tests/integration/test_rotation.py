"""Keys change while devices are away: python-tuf's own client follows, and what old keys sign counts no more."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from custody_calls import OverHttp, updater
from fastapi import FastAPI
from fleet_calls import published
from http_calls import Api
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import signing, upkeep
from sprat_server.observe.actors import SYSTEM
from sprat_server.publish import image, repository
from sprat_server.publish.keys import KeyRing, key_path
from sprat_server.publish.rotation import NewKeys


def rotate(app: FastAPI, *roles: str) -> list[str]:
    """Rotate keys that the server holds, and do what follows the commit."""
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        signed = signing.rotate(session, app.state.settings, [NewKeys(role, None) for role in roles], SYSTEM)
    upkeep.prepare(app.state.database, app.state.settings)
    return signed


def versions(app: FastAPI) -> dict[str, int]:
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        return repository.newest_versions(session)


def follows(app: FastAPI, folder: Path, release: int) -> None:
    client = updater(app, folder)
    client.refresh()
    assert client.get_targetinfo(f"mnist/{release}/full") is not None


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "auto"])
def test_a_role_gets_another_key_and_a_client_that_was_away_goes_on(app: FastAPI, tmp_path: Path, role: str) -> None:
    published(app)
    follows(app, tmp_path / "away", 1)
    before = set(KeyRing(app.state.settings.keys_dir))
    rotate(app, role)
    published(app, base=1)
    follows(app, tmp_path / "away", 2)
    follows(app, tmp_path / "new", 2)
    after = set(KeyRing(app.state.settings.keys_dir))
    assert (len(before - after), len(after - before)) == (1, 1), "one key new, the old one gone"
    assert not key_path(app.state.settings.keys_dir, role).exists()


def test_a_client_that_missed_three_rotations_walks_the_chain_of_roots(app: FastAPI, tmp_path: Path) -> None:
    published(app)
    follows(app, tmp_path / "away", 1)
    for roles in (["root"], ["root", "timestamp"], ["root", "targets", "snapshot", "timestamp"]):
        rotate(app, *roles)
    rotate(app, "auto")
    assert versions(app)["root"] == 4
    published(app, base=1)
    follows(app, tmp_path / "away", 2)


def test_several_models_follow_the_servers_key_for_them_together(app: FastAPI, tmp_path: Path) -> None:
    published(app)
    published(app, model="pcb")
    assert set(rotate(app, "auto")) >= {"targets", "m.mnist", "m.pcb"}
    client = updater(app, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("mnist/1/full") is not None
    assert client.get_targetinfo("pcb/1/full") is not None


def test_a_rotation_that_was_not_committed_leaves_a_working_set_of_keys(app: FastAPI, tmp_path: Path) -> None:
    published(app)
    before = versions(app)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        signing.rotate(session, app.state.settings, [NewKeys("timestamp", None), NewKeys("root", None)], SYSTEM)
        session.rollback()  # what a process that dies here leaves: key files, and no word of them
    assert len(set(app.state.settings.keys_dir.glob("image-*"))) == 7
    upkeep.prepare(app.state.database, app.state.settings)
    assert len(set(app.state.settings.keys_dir.glob("image-*"))) == 5, "keys that came to nothing are gone"
    assert versions(app) == before
    published(app, base=1)
    follows(app, tmp_path / "trust", 2)


def test_between_commit_and_clean_up_old_and_new_keys_are_both_there(app: FastAPI) -> None:
    published(app)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        signing.rotate(session, app.state.settings, [NewKeys("timestamp", None)], SYSTEM)
    assert key_path(app.state.settings.keys_dir, "timestamp").exists()
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        image.open_repository(session, app.state.settings)
    upkeep.prepare(app.state.database, app.state.settings)
    assert not key_path(app.state.settings.keys_dir, "timestamp").exists()


class Thief(OverHttp):
    """Serves what a thief of the timestamp and snapshot keys signs, far ahead of the true versions."""

    def __init__(self, api: Api, forged: dict[str, bytes]) -> None:
        super().__init__(api)
        self.forged = forged

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        if name in self.forged:
            return iter([self.forged[name]])
        if name.endswith(".root.json"):
            raise DownloadHTTPError("the thief hides new roots", 404)
        return super()._fetch(url)


def forged(app: FastAPI) -> dict[str, bytes]:
    """Timestamp and snapshot of version 1,000,000, signed with the server's own keys."""
    ring = KeyRing(app.state.settings.keys_dir)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        rows = repository.newest_metadata(session)
        root = image.open_repository(session, app.state.settings).root()
    files: dict[str, bytes] = {}
    snapshot = Metadata[Snapshot].from_bytes(rows["snapshot"].body)
    timestamp = Metadata[Timestamp].from_bytes(rows["timestamp"].body)
    snapshot.signed.version = timestamp.signed.version = timestamp.signed.snapshot_meta.version = 1_000_000
    for role, md, name in (
        ("snapshot", snapshot, "1000000.snapshot.json"),
        ("timestamp", timestamp, "timestamp.json"),
    ):
        md.signed.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3650)
        md.sign(ring.signers(root.roles[role].keyids)[0])
        files[name] = md.to_bytes()
    return files


def test_a_client_that_was_sent_ahead_with_stolen_keys_recovers_when_both_are_rotated(
    app: FastAPI, viewer: Api, tmp_path: Path
) -> None:
    published(app)
    victim = updater(app, tmp_path / "victim", Thief(viewer, forged(app)))
    victim.refresh()
    published(app, base=1)
    with pytest.raises(RepositoryError):
        follows(app, tmp_path / "victim", 2)  # locked out: what is true looks like a rollback
    rotate(app, "snapshot", "timestamp")
    follows(app, tmp_path / "victim", 2)


def test_what_the_old_key_signs_after_a_rotation_is_refused(app: FastAPI, viewer: Api, tmp_path: Path) -> None:
    published(app)
    stolen = forged(app)
    rotate(app, "snapshot", "timestamp")
    client = updater(app, tmp_path / "trust")
    client.refresh()
    thief = Thief(viewer, stolen)
    thief._fetch = lambda url: (  # type: ignore[method-assign] # new roots are public: the thief cannot hide them all
        iter([stolen[url.rpartition("/")[2]]]) if url.rpartition("/")[2] in stolen else OverHttp._fetch(thief, url)
    )
    with pytest.raises(RepositoryError):
        updater(app, tmp_path / "trust", thief).refresh()


def test_versions_only_rise_through_rotations_and_upkeep(app: FastAPI) -> None:
    published(app)
    seen = versions(app)
    for roles in (["timestamp"], ["snapshot", "root"], ["auto"], ["targets"]):
        rotate(app, *roles)
        now = versions(app)
        assert all(now[role] >= seen[role] for role in seen)
        assert now["timestamp"] > seen["timestamp"]
        seen = now


def test_a_key_that_was_never_named_is_not_deleted(app: FastAPI) -> None:
    published(app)
    spare = app.state.settings.keys_dir / "image-spare.pem"
    spare.write_bytes(CryptoSigner.generate_ed25519().private_bytes)
    rotate(app, "timestamp")
    assert spare.exists()
