"""What the signed metadata of a model must name now: all that devices may need, and nothing of the past.

A release is live if a device can be told to run it: it is assigned, it serves (so a halt may lead back to it), a
rollout that is not over leads to it or back to it, a plan of a site that is signed names it, new devices get it, or it
is the newest that shares no layers. Of a release that shares some, all levels of its ladder are live, and what they
were made from: a device's own report has it go down there. Signed are the full update and the graphs of each live
release, and the updates on the cheapest way from what devices hold to where they may be sent. A release that is only
the previous one of a device needs nothing: the device has it. History stays in PostgreSQL; what becomes live again is
signed back in before it is assigned.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, TargetFile, Targets

from sprat_server.fleet import service as fleet
from sprat_server.publish import repository
from sprat_server.publish.drafts import Draft
from sprat_server.publish.image import ImageRepository
from sprat_server.publish.targets import SignedFile, graph_file_target, update_file_target
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_server.registry.models import Graph, Model, Release, UpdateFile
from sprat_server.rollouts import service as rollouts
from sprat_server.sites import records as sites
from sprat_shared.errors import Conflict
from sprat_shared.trust.targets import UpdateTarget, graph_path, role_of_model, update_path


@dataclass(frozen=True, slots=True)
class Needed:
    """What must be signed of a model: releases whole, and the updates that lead on to them."""

    releases: frozenset[int]
    updates: tuple[UpdateFile, ...]


def needed(session: Session, model: Model, *, also: Iterable[int] = ()) -> Needed:
    """Return what the metadata of a model must name.

    Args:
        session: the caller's transaction; only read.
        model: the model.
        also: releases that are to be live, though they may wait for signatures still.
    """
    wanted = set(also)
    newest = registry.newest_published(session, model)
    ahead = wanted | rollouts.unfinished_releases(session, model.id)
    if newest is not None:
        ahead.add(newest.number)
    if (standing := rollouts.standing_releases(session).get(model.id)) is not None:
        ahead.add(standing)
    groups = fleet.holders(session, model.id)
    live = ahead | rollouts.releases_to_return_to(session, model.id) | _assigned(session, model)
    live |= {group.active for group in groups} | sites.releases_signed(session, model.id)
    ladders = registry.ladders(session, model, live)
    live |= {*ladders, *ladders.values()}
    live &= set(registry.publications(session, model)) | wanted
    updates = registry.all_updates(session, model, also=wanted)
    steps: dict[tuple[int, int | None], UpdateFile] = {}
    for group in groups:
        held = [number for number in (group.active, group.previous) if number is not None]
        targets = ahead if group.assigned is None else ahead | {group.assigned}
        for target in targets & live - {group.active}:
            for way in (paths.cheapest_path(updates, group.active, target), paths.cheapest_from(updates, held, target)):
                steps |= {(step.number, step.base_number): step for step in way}
    for update in updates:
        key = (update.number, update.base_number)
        made_from_live = (update.number in wanted and update.base_number in live) or (
            update.base_number is not None and ladders.get(update.number) == update.base_number
        )
        if made_from_live or (update.base_number is None and update.number in live):
            steps[key] = update
    return Needed(frozenset(live), tuple(steps[key] for key in sorted(steps, key=lambda key: (key[0], key[1] or 0))))


def target_files(session: Session, model: Model, what: Needed) -> list[TargetFile]:
    """Return the targets that say so."""
    numbers = {step.number for step in what.updates} | {step.base_number for step in what.updates} | what.releases
    rows = session.scalars(select(Release).where(Release.model_id == model.id, Release.number.in_(numbers)))
    releases = {release.number: release for release in rows}
    graphs = dict.fromkeys(
        digest
        for number in sorted(what.releases)
        for digest in (releases[number].graph_digest, releases[number].statistics_graph)
        if digest is not None
    )
    sizes = dict(session.execute(select(Graph.digest, Graph.bytes).where(Graph.digest.in_(graphs))).all())
    files = [graph_file_target(model.name, SignedFile(digest, sizes[digest])) for digest in graphs]
    for step in what.updates:
        release = releases[step.number]
        said = UpdateTarget(
            model=model.name,
            release=step.number,
            weights=release.weights_digest,
            graph=release.graph_digest,
            base_release=step.base_number,
            base_weights=None if step.base_number is None else releases[step.base_number].weights_digest,
            local=release.local,
            shares=release.shared,
        )
        files.append(update_file_target(said, SignedFile(step.blob, step.bytes)))
    return files


def signed_paths(session: Session, model: Model) -> frozenset[str]:
    """Return the target paths that the published metadata of a model name."""
    row = repository.newest(session, role_of_model(model.name))
    return frozenset() if row is None else frozenset(Metadata[Targets].from_bytes(row.body).signed.targets)


def signed_updates(session: Session, model: Model) -> list[UpdateFile]:
    """Return the updates of a model that devices can verify now; ways for devices are made of these."""
    signed = signed_paths(session, model)
    updates = registry.all_updates(session, model)
    return [one for one in updates if update_path(model.name, one.number, one.base_number) in signed]


def sign(
    session: Session, image: ImageRepository, model: Model, *, reason: str, release: int | None = None, **by: Any
) -> Draft | None:
    """Have the metadata of a model name what they must, `release` among it; None where its role has no keys yet.

    Published at once where the server can sign that by itself; else it waits for signatures.
    """
    if not image.delegate(model.name):
        image.settle()
        return None
    waiting = [] if release is None else [release]
    if image.signs_alone(model.name):
        waiting += registry.pending_releases(session, model)  # nobody has to be asked for each
    files = target_files(session, model, needed(session, model, also=waiting))
    return image.set_targets(model.name, files, reason=reason, number=release, **by)


def bring_in(session: Session, image: ImageRepository, model: Model, number: int) -> None:
    """Have a published release, and the ways to it, signed before it is assigned.

    Raises:
        Conflict: it is not in the metadata any more, and the server cannot sign it back in by itself.
    """
    lacking = _paths(session, model, also=[number]) - signed_paths(session, model)
    if lacking and image.signs_alone(model.name):
        sign(session, image, model, reason=f"release {number} is live again")
        lacking -= signed_paths(session, model)
    if update_path(model.name, number, None) in lacking:
        raise Conflict(
            f"{model.name}@{number} was pruned from the signed metadata and the server may not sign it back in by "
            f"itself; run: sprat release sign {model.name}@{number}",
            code="release.pruned",
        )


def tidy(session: Session, image: ImageRepository, model: Model) -> bool:
    """Sign what devices lack, and prune where most of what is named is past; tell whether anything was published.

    Pruning alone waits until it pays: every device fetches the new version.
    """
    if not image.signs_alone(model.name):
        return False
    wanted, signed = _paths(session, model), signed_paths(session, model)
    past = len(signed - wanted)
    if wanted <= signed and 2 * past <= len(signed) and not registry.pending_releases(session, model):
        return False
    return sign(session, image, model, reason="what devices need has changed") is not None


def _paths(session: Session, model: Model, *, also: Iterable[int] = ()) -> frozenset[str]:
    """Return the target paths that the metadata of a model must name."""
    what = needed(session, model, also=also)
    of_model = Release.model_id == model.id
    graphs = session.execute(
        select(Release.graph_digest, Release.statistics_graph).where(of_model, Release.number.in_(what.releases))
    )
    named = {graph_path(model.name, digest) for row in graphs for digest in row if digest is not None}
    return frozenset(named | {update_path(model.name, step.number, step.base_number) for step in what.updates})


def _assigned(session: Session, model: Model) -> set[int]:
    current = fleet.current_assignments(session, model_id=model.id)
    live = set(fleet.live_devices(session))
    return {one.number for one in current if one.number is not None and one.device_id in live}
