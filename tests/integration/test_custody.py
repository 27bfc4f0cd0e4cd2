"""Custody of keys, walked as people walk it: ceremonies, releases that wait, and what is refused by name."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from custody_calls import Desk, desk, updater, vault
from fastapi import FastAPI
from fleet_calls import join, made, published
from http_calls import Api

from sprat_server.db.projects import DEFAULT_PROJECT
from sprat_server.flows import upkeep
from sprat_server.publish import repository
from sprat_server.publish.keys import key_path
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict, InvalidInput, SpratError

__all__ = ["desk", "vault"]  # fixtures


@pytest.fixture
def ceremony(app: FastAPI, desk: Desk) -> Path:
    """Root and targets with alice, bob and carol, two of whom must sign: a bundle that nobody has signed yet."""
    published(app)
    names = [word for name in ("alice", "bob", "carol") for word in ("--root-key", desk.key(name))]
    asked = desk.one("keys", "init", *names, "--threshold", "2")
    assert (asked["published"], [one["role"] for one in asked["waiting"]]) == ([], ["targets", "root"])
    bundle = desk.folder / "ceremony.json"
    desk.one("keys", "export", str(bundle))
    return bundle


def taken_over(desk: Desk, vault: Desk, bundle: Path) -> dict:  # type: ignore[type-arg]
    for name in ("alice", "carol"):
        vault.one("keys", "sign", "--bundle", str(bundle), *vault.signing(name))
    return desk.one("keys", "import", str(bundle))


def holders(desk: Desk, role: str) -> tuple[int, list[str]]:
    (one,) = [one for one in desk.one("keys", "show")["roles"] if one["role"] == role]
    return one["threshold"], [key["holder"] for key in one["keys"]]


def test_two_of_three_people_take_root_and_targets_out_of_the_servers_hands(
    app: FastAPI, desk: Desk, vault: Desk, ceremony: Path, tmp_path: Path
) -> None:
    updater(app, tmp_path / "old").refresh()
    vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("alice"))
    halfway = desk.one("keys", "import", str(ceremony))
    assert halfway["published"] == []
    assert holders(desk, "root") == (1, ["server"])
    vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("carol"))
    done = desk.one("keys", "import", str(ceremony))
    assert (set(done["published"]), done["waiting"]) == ({"root", "targets"}, [])
    assert holders(desk, "root") == holders(desk, "targets") == (2, ["alice", "bob", "carol"])
    files = {file.name for file in app.state.settings.keys_dir.glob("image-*")}
    assert files == {"image-snapshot.pem", "image-timestamp.pem", "image-auto.pem"}
    published(app, base=1)
    client = updater(app, tmp_path / "old")
    client.refresh()
    assert client.get_targetinfo("mnist/2/from-1") is not None


def test_the_file_of_a_private_key_is_encrypted_and_for_its_owner_only(desk: Desk) -> None:
    desk.key("alice")
    private = desk.folder / "alice.pem"
    assert b"ENCRYPTED" in private.read_bytes()
    assert private.stat().st_mode & 0o077 == 0
    with pytest.raises(InvalidInput, match="never overwritten"):
        desk.key("alice")


def test_a_wrong_passphrase_and_one_that_others_may_read_are_named(desk: Desk, vault: Desk, ceremony: Path) -> None:
    secret = desk.folder / "passphrase"
    secret.write_text("wrong\n")
    with pytest.raises(SpratError, match=r"alice\.pem: the passphrase is wrong"):
        vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("alice"))
    secret.chmod(0o644)
    with pytest.raises(InvalidInput, match="chmod 600"):
        vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("alice"))


def test_a_key_that_is_not_of_the_role_cannot_sign_here_nor_be_slipped_in(
    desk: Desk, vault: Desk, ceremony: Path, admin: Api
) -> None:
    desk.key("mallory")
    with pytest.raises(InvalidInput, match=r"key \w+ \(file2:.*mallory.pem\) may not sign this; .*\(alice\)"):
        vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("mallory"))
    digest = json.loads(ceremony.read_text())["drafts"][0]["digest"]
    answer = admin.post(f"/api/v1/keys/drafts/{digest}/signatures", json={"keyid": "ab" * 32, "signature": "00" * 64})
    assert (answer.status_code, answer.json()["code"]) == (422, "signing.key")


@pytest.mark.parametrize(
    "changes",
    [
        {"keytype": "none"},
        {"keyval": {}},
        {"keyval": {"public": 1.5}},
        {"x-sprat-holder": "server"},
        {"x-sprat-holder": ""},
        {"x-sprat-holder": "\ud800"},
        {"scheme": "\0"},
    ],
)
def test_what_is_no_key_of_a_person_is_given_to_no_role(desk: Desk, admin: Api, changes: dict) -> None:  # type: ignore[type-arg]
    public = json.loads(Path(desk.key("alice")).read_text())
    body = json.dumps({"roles": [{"role": "root", "keys": [{**public, "key": public["key"] | changes}]}]})
    answer = admin.post("/api/v1/keys/rotate", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422, answer.text


def test_a_wrong_signature_is_refused_on_both_sides(desk: Desk, vault: Desk, ceremony: Path, admin: Api) -> None:
    vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("alice"))
    bundle = json.loads(ceremony.read_text())
    one = bundle["signatures"][0]
    one["signature"] = "00" * 64
    ceremony.write_text(json.dumps(bundle))
    with pytest.raises(InvalidInput, match=r"the signature by key \w+ \(alice\) is not over"):
        desk.one("keys", "import", str(ceremony))
    answer = admin.post(f"/api/v1/keys/drafts/{one['digest']}/signatures", json={**one} | {"digest": None})
    assert answer.status_code == 422
    answer = admin.post(
        f"/api/v1/keys/drafts/{one['digest']}/signatures", json={"keyid": one["keyid"], "signature": "00" * 64}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "signing.signature")


def test_the_same_key_does_not_sign_twice_nor_stand_in_a_role_twice(
    desk: Desk, vault: Desk, ceremony: Path, admin: Api
) -> None:
    vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("bob"))
    with pytest.raises(Conflict, match=r"has a signature by key .* already; another key must sign"):
        vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("bob"))
    desk.one("keys", "import", str(ceremony))
    with pytest.raises(Conflict, match=r"has every signature .* already"):
        desk.one("keys", "import", str(ceremony))
    one = json.loads(ceremony.read_text())["signatures"][0]
    answer = admin.post(
        f"/api/v1/keys/drafts/{one['digest']}/signatures",
        json={"keyid": one["keyid"], "signature": one["signature"]},
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "signing.twice")
    alice = json.loads((desk.folder / "alice.pub.json").read_text())
    twice = [alice, {**alice, "keyid": "ab" * 32}]
    body = {"roles": [{"role": "targets", "keys": twice, "threshold": 2}]}
    answer = admin.post("/api/v1/keys/rotate", json=body)
    assert answer.status_code == 422
    assert "would count twice" in answer.json()["detail"]


def test_a_bundle_from_before_a_change_is_stale_by_name(desk: Desk, vault: Desk, ceremony: Path) -> None:
    vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("alice"))
    names = [word for name in ("alice", "bob") for word in ("--root-key", str(desk.folder / f"{name}.pub.json"))]
    desk.one("keys", "init", *names, "--threshold", "2")
    with pytest.raises(Conflict, match=r"root 2.* in .*ceremony.json does not wait any more as it was exported"):
        desk.one("keys", "import", str(ceremony))


def test_a_bundle_that_was_changed_or_says_another_role_is_not_signed(vault: Desk, ceremony: Path) -> None:
    whole = ceremony.read_text()
    for before, after in (('"version": 2', '"version": 3'), ('"role": "targets"', '"role": "m.pcb"')):
        ceremony.write_text(whole.replace(before, after))
        with pytest.raises(InvalidInput, match=r"changed on its way|speaks for another role"):
            vault.one("keys", "sign", "--bundle", str(ceremony), *vault.signing("alice"))


@pytest.mark.usefixtures("ceremony")
def test_what_waits_can_be_withdrawn_and_nothing_has_changed(app: FastAPI, desk: Desk) -> None:
    desk.one("keys", "withdraw", "targets")
    assert desk.one("keys", "withdraw", "root")["waiting"] == []
    assert holders(desk, "root") == (1, ["server"])
    published(app, base=1)
    assert desk.one("release", "show", "mnist@2")["state"] == "published"


def test_a_root_that_names_other_targets_keys_waits_until_those_have_signed_targets(
    app: FastAPI, desk: Desk, vault: Desk, ceremony: Path, tmp_path: Path
) -> None:
    for name in ("alice", "bob"):
        vault.one("keys", "sign", "--bundle", str(ceremony), "--role", "root", *vault.signing(name))
    done = desk.one("keys", "import", str(ceremony))
    assert done["published"] == []
    assert [need["missing"] for one in done["waiting"] if one["role"] == "root" for need in one["needs"]] == [0, 0]
    published(app, base=1)  # releases go on meanwhile
    updater(app, tmp_path / "trust").refresh()
    for name in ("alice", "bob"):
        done = desk.one("keys", "sign", "--role", "targets", *desk.signing(name))
    assert (set(done["published"]), done["waiting"]) == ({"root", "targets"}, [])
    client = updater(app, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("mnist/2/full") is not None


@pytest.fixture
def own_keys(app: FastAPI, desk: Desk) -> FastAPI:
    """The model pcb is signed by dora and emil, both of them; its release 1 waits."""
    keys = [word for name in ("dora", "emil") for word in ("--key", desk.key(name))]
    done = desk.one("keys", "rotate", "m.pcb", *keys, "--threshold", "2")
    assert done["published"] == ["targets"]
    published(app, model="pcb")
    return app


def test_a_release_waits_for_all_its_signatures_and_no_device_hears_of_it_before(
    own_keys: FastAPI, releaser: Api, desk: Desk, vault: Desk, tmp_path: Path
) -> None:
    body = {"model": "pcb", "release": 1, "waves": ["100%"], "devices": None}
    assert desk.one("release", "show", "pcb@1")["state"] == "pending-signatures"
    assert desk.one("release", "list", "pcb")["state"] == "pending-signatures"
    assert desk.one("model", "show", "pcb")["latest"] is None
    refused = releaser.post("/api/v1/rollouts", json=body)
    assert (refused.status_code, refused.json()["code"]) == (409, "release.pending")
    half = desk.one("release", "sign", "pcb@1", *desk.signing("dora"))
    assert (half["state"], half["waiting"][0]["needs"][0]["missing"]) == ("pending-signatures", 1)
    client = updater(own_keys, tmp_path / "trust")
    client.refresh()
    assert "m.pcb.json" not in client._trusted_set.snapshot.meta
    bundle = str(desk.folder / "release.json")
    desk.one("release", "sign", "pcb@1", "--export", bundle)
    vault.one("keys", "sign", "--bundle", bundle, *vault.signing("emil"))
    assert desk.one("keys", "import", bundle)["published"] == ["m.pcb"]
    assert desk.one("release", "show", "pcb@1")["state"] == "published"
    client = updater(own_keys, tmp_path / "trust")
    client.refresh()
    assert client.get_targetinfo("pcb/1/full") is not None
    made(releaser.post("/api/v1/rollouts", json=body))


def test_of_two_releases_that_wait_either_can_be_signed_and_the_other_waits_on(own_keys: FastAPI, desk: Desk) -> None:
    for name in ("dora", "emil"):
        desk.one("release", "sign", "pcb@1", *desk.signing(name))
    published(own_keys, model="pcb", base=1)
    published(own_keys, model="pcb", base=1)
    for name in ("dora", "emil"):
        desk.one("release", "sign", "pcb@3", *desk.signing(name))
    states = {one["number"]: one["state"] for one in desk.sprat("release", "list", "pcb")}
    assert states == {1: "published", 2: "pending-signatures", 3: "published"}
    for name in ("dora", "emil"):
        desk.one("release", "sign", "pcb@2", *desk.signing(name))
    assert desk.one("release", "show", "pcb@2")["state"] == "published"
    with pytest.raises(Conflict, match="signed already"):
        desk.one("release", "sign", "pcb@3", *desk.signing("dora"))


def test_a_release_that_was_pruned_is_signed_again_before_it_is_rolled_out(
    own_keys: FastAPI, releaser: Api, operator: Api, desk: Desk
) -> None:
    join(own_keys, operator, 1)
    for number in (1, 2, 3):
        if number > 1:
            published(own_keys, model="pcb", base=number - 1)
        for name in ("dora", "emil"):
            desk.one("release", "sign", f"pcb@{number}", *desk.signing(name))
    body = {"model": "pcb", "release": 1, "waves": ["100%"], "devices": None}
    draft = made(releaser.post("/api/v1/rollouts", json=body))["id"]
    refused = operator.post(f"/api/v1/rollouts/{draft}/start", json={"reason": "it is time"})
    assert (refused.status_code, refused.json()["code"]) == (409, "release.pruned")
    for name in ("dora", "emil"):
        desk.one("release", "sign", "pcb@1", *desk.signing(name))
    assert made(operator.post(f"/api/v1/rollouts/{draft}/start", json={"reason": "it is time"}))["state"] == "running"


def test_a_model_gets_other_people_while_a_release_of_it_goes_out_with_the_old_ones(
    own_keys: FastAPI, desk: Desk, tmp_path: Path
) -> None:
    for name in ("dora", "emil"):
        desk.one("release", "sign", "pcb@1", *desk.signing(name))
    updater(own_keys, tmp_path / "away").refresh()
    waiting = desk.one("keys", "rotate", "m.pcb", "--key", desk.key("fay"))["waiting"]
    assert [(one["role"], one["release"]) for one in waiting] == [("m.pcb", None), ("targets", None)]
    published(own_keys, model="pcb", base=1)
    for name in ("dora", "emil"):
        desk.one("release", "sign", "pcb@2", *desk.signing(name))
    assert desk.one("release", "show", "pcb@2")["state"] == "published"
    assert holders(desk, "m.pcb") == (2, ["dora", "emil"])
    desk.one("keys", "sign", *desk.signing("fay"))
    assert holders(desk, "m.pcb") == (1, ["fay"])
    client = updater(own_keys, tmp_path / "away")
    client.refresh()
    assert client.get_targetinfo("pcb/2/full") is not None
    published(own_keys, model="pcb", base=2)
    with pytest.raises(InvalidInput, match=r"dora\.pem\) may not sign this"):
        desk.one("release", "sign", "pcb@3", *desk.signing("dora"))


def test_a_model_is_given_back_to_the_server_and_what_waited_is_published(own_keys: FastAPI, desk: Desk) -> None:
    assert desk.one("release", "show", "pcb@1")["state"] == "pending-signatures"
    desk.one("keys", "rotate", "m.pcb")
    upkeep.prepare(own_keys.state.database, own_keys.state.settings)
    assert desk.one("release", "show", "pcb@1")["state"] == "published"


def test_the_server_signs_by_itself_below_its_prefix_only(app: FastAPI, desk: Desk, tmp_path: Path) -> None:
    published(app, model="once-auto")
    limited = Settings(
        database_url=app.state.settings.database_url, data_dir=app.state.settings.data_dir, auto_sign="lab-*"
    )
    app.state.settings = limited
    published(app, model="lab-pcb")
    published(app, model="pcb")
    assert desk.one("release", "show", "lab-pcb@1")["state"] == "published"
    assert desk.one("release", "show", "pcb@1")["state"] == "pending-signatures"
    published(app, model="once-auto", base=1)
    assert desk.one("release", "show", "once-auto@2")["state"] == "pending-signatures", "though the server has its key"
    with pytest.raises(Conflict, match=r"the role m\.pcb has no keys yet"):
        desk.one("release", "sign", "pcb@1", "--export", str(desk.folder / "x"))
    with pytest.raises(InvalidInput, match="SPRAT_AUTO_SIGN does not cover the name"):
        desk.one("keys", "rotate", "m.pcb")
    auto = [key for role in desk.one("keys", "show")["roles"] if role["role"] == "m.lab-pcb" for key in role["keys"]]
    client = updater(app, tmp_path / "trust")
    client.refresh()
    targets = client._trusted_set["targets"]
    named = {name: role.paths for name, role in targets.delegations.roles.items() if auto[0]["keyid"] in role.keyids}
    assert named == {
        "m.lab-pcb": ["lab-pcb/*/*"],
        "m.once-auto": ["once-auto/*/*"],
    }, "devices enforce it: the key is trusted below these paths only, until people's keys replace it"
    given = {"keyid": auto[0]["keyid"], "key": targets.delegations.keys[auto[0]["keyid"]].to_dict()}
    api = Api(app, desk.env["SPRAT_TOKEN"])
    refused = api.post("/api/v1/keys/rotate", json={"roles": [{"role": "m.pcb", "keys": [given]}]})
    assert (refused.status_code, "held by the server" in refused.json()["detail"]) == (422, True)


def test_offline_roles_past_half_of_their_life_wait_as_drafts_and_doctor_says_who_must_sign(
    app: FastAPI, desk: Desk, vault: Desk, ceremony: Path
) -> None:
    taken_over(desk, vault, ceremony)
    assert [one["level"] for one in desk.sprat("doctor")].count("wrong") == 0
    later = datetime.now(UTC) + timedelta(days=400)
    with app.state.database.transaction(DEFAULT_PROJECT) as session:
        assert "root" not in upkeep.sign_due(session, app.state.settings, later)
    waiting = {one["role"] for one in desk.one("keys", "show")["waiting"]}
    assert waiting == {"root", "targets"}
    findings = {one["check"]: one for one in desk.sprat("doctor")}
    assert findings["signatures of root"]["level"] == "soon"
    assert "alice, bob, carol" in findings["signatures of root"]["detail"]
    with pytest.raises(SpratError, match="signatures of root"):
        desk.sprat("doctor", "--strict")
    for name in ("bob", "carol"):
        desk.one("keys", "sign", *desk.signing(name))
    assert desk.one("keys", "show")["waiting"] == []


@pytest.mark.usefixtures("ceremony")
def test_metrics_tell_the_life_that_is_left(server_viewer: Api) -> None:
    text = server_viewer.get("/metrics").text
    line = next(
        line
        for line in text.splitlines()
        if line.startswith('sprat_metadata_expires_seconds{project="default",role="timestamp"}')
    )
    assert 6.9 * 86400 < float(line.split()[1]) <= 8 * 86400
    assert 'sprat_metadata_waiting{project="default",role="root"} 1.0' in text


def test_doctor_names_a_token_that_is_wrong_and_a_server_that_is_away(desk: Desk) -> None:
    refused = Desk(desk.folder, desk.env | {"SPRAT_TOKEN": "sprat_x"})
    with pytest.raises(SpratError, match="token: see above"):
        refused.sprat("doctor")
    away = Desk(desk.folder, desk.env | {"SPRAT_SERVER": "http://127.0.0.1:9"})
    with pytest.raises(SpratError, match="server: see above"):
        away.sprat("doctor")


def test_every_step_of_a_ceremony_is_in_the_audit_log(desk: Desk, vault: Desk, ceremony: Path) -> None:
    taken_over(desk, vault, ceremony)
    actions = [one["action"] for one in desk.sprat("audit", "list")]
    assert {"keys.rotate", "keys.sign"} <= set(actions)


def test_a_device_joins_with_the_newest_root(
    app: FastAPI, operator: Api, desk: Desk, vault: Desk, ceremony: Path
) -> None:
    taken_over(desk, vault, ceremony)
    (device,) = join(app, operator, 1)
    assert json.loads(device.answer.image_root)["signed"]["version"] == 2


def test_the_keys_folder_of_a_server_is_checked_against_what_is_signed(
    app: FastAPI, desk: Desk, vault: Desk, ceremony: Path
) -> None:
    taken_over(desk, vault, ceremony)
    assert repository.KeysUnusable.exit_code == 78
    key_path(app.state.settings.keys_dir, "snapshot").unlink()
    with pytest.raises(repository.KeysUnusable, match="is missing"):
        upkeep.prepare(app.state.database, app.state.settings)
