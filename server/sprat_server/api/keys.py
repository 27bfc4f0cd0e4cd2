"""/api/v1/keys: roles and their keys, what waits for signatures of people, and the signatures that they bring."""

from fastapi import BackgroundTasks, Request
from securesystemslib.signer import Signature

from sprat_server.access import audit
from sprat_server.api.auth import Admin, Releaser, Viewer
from sprat_server.api.described import raises
from sprat_server.api.ports import SettingsDep
from sprat_server.api.routes import operators_router
from sprat_server.db.projects import project_of
from sprat_server.db.session import SessionDep
from sprat_server.flows import custody_views, signing, upkeep
from sprat_server.publish.image import open_repository
from sprat_server.publish.rotation import NewKeys
from sprat_server.publish.schemas import CustodyView, NewSignature, Rotation, Signed

router = operators_router(tags=["keys"])


@router.get("/keys")
def show_keys(session: SessionDep, _viewer: Viewer) -> CustodyView:
    """Show every role of the image repository, who must sign it next and when, and what waits for signatures."""
    return custody_views.custody(session)


@router.post("/keys/rotate")
def rotate_keys(
    body: Rotation,
    *,
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    admin: Admin,
    after_commit: BackgroundTasks,
) -> Signed:
    """Give roles other keys. What the server cannot sign by itself waits for signatures, and nothing changes before."""
    wanted = [
        NewKeys(one.role, None if one.keys is None else [key.parsed() for key in one.keys], one.threshold)
        for one in body.roles
    ]
    published = signing.rotate(session, settings, wanted, admin)
    after = {
        "roles": {
            one.role: {"threshold": one.threshold, "keyids": None if one.keys is None else [k.keyid for k in one.keys]}
            for one in body.roles
        },
        "published": published,
    }
    audit.record(session, admin, "keys.rotate", "keys:image", after=after)
    after_commit.add_task(upkeep.drop_retired_keys, request.app.state.database, settings, project_of(session))
    return Signed(published=published, waiting=custody_views.custody(session).waiting)


@router.post(
    "/keys/drafts/{digest}/signatures",
    responses=raises(conflict=["signing.stale", "signing.twice"], invalid=["signing.key", "signing.signature"]),
)
def add_signature(
    digest: str,
    body: NewSignature,
    *,
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    releaser: Releaser,
    after_commit: BackgroundTasks,
) -> Signed:
    """Bring one signature; it is verified before it counts. With the last one that is needed the draft is published."""
    signature = Signature(body.keyid, body.signature)
    published = signing.add_signature(session, settings, digest, signature, releaser)
    after = {"keyid": body.keyid, "published": published}
    audit.record(session, releaser, "keys.sign", f"draft:{digest}", after=after)
    after_commit.add_task(upkeep.drop_retired_keys, request.app.state.database, settings, project_of(session))
    return Signed(published=published, waiting=custody_views.custody(session).waiting)


@router.post("/keys/drafts/{digest}/withdraw", responses=raises(conflict=["signing.stale"]))
def withdraw_draft(digest: str, session: SessionDep, settings: SettingsDep, admin: Admin) -> Signed:
    """Drop what waits for signatures, with the signatures that it has."""
    draft = open_repository(session, settings).withdraw(digest)
    before = {"role": draft.role, "version": draft.row.version, "reason": draft.row.reason}
    audit.record(session, admin, "keys.withdraw", f"draft:{digest}", before=before)
    return Signed(published=[], waiting=custody_views.custody(session).waiting)


@router.post("/models/{name}/releases/{number}/draft", responses=raises(not_found=["model.unknown"]))
def draft_release(name: str, number: int, session: SessionDep, settings: SettingsDep, releaser: Releaser) -> Signed:
    """Have what must be signed for a release wait for signatures; it stays the same until it is published."""
    draft = signing.draft_release(session, settings, name, number, releaser)
    after = {"digest": None if draft is None else draft.row.digest}
    audit.record(session, releaser, "release.draft", f"release:{name}@{number}", after=after)
    views = custody_views.custody(session).waiting
    chosen = [view for view in views if draft is not None and view.digest == draft.row.digest]
    return Signed(published=[] if draft is not None else [f"m.{name}"], waiting=chosen)
