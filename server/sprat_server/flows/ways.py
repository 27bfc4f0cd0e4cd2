"""How devices come from what they hold to a release, and what it costs them: what `sprat release updates` shows."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from sqlalchemy.orm import Session

from sprat_server.fleet import service as fleet
from sprat_server.registry import paths
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release, UpdateFile
from sprat_server.registry.schemas import WayView
from sprat_shared.trust.targets import update_path


def ways(session: Session, model: Model, target: Release, bases: Sequence[Release]) -> list[WayView]:
    """Return the cheapest way from each of `bases` to `target`, with how many devices take it.

    Those are the devices that run the base, or could go back to it where less leads on from there.
    """
    updates = registry.all_updates(session, model, also=[target.number])
    devices: Counter[int] = Counter()
    for group in fleet.holders(session, model.id):
        held = [number for number in (group.active, group.previous) if number is not None]
        files = paths.cheapest_from(updates, held, target.number)
        start = files[0].base_number if files else target.number
        devices[group.active if start is None else start] += group.devices
    shown = []
    for base in bases:
        files = paths.cheapest_path(updates, base.number, target.number)
        length = sum(file.bytes for file in files)
        shown.append(
            WayView(
                base=base.number,
                to=target.number,
                devices=devices[base.number],
                way=_kind(files),
                files=len(files),
                bytes=length,
                share=length / target.model_bytes,
                path=[update_path(model.name, file.number, file.base_number) for file in files],
            )
        )
    return shown


def _kind(files: Sequence[UpdateFile]) -> Literal["none", "direct", "chain", "full"]:
    if not files:
        return "none"
    if len(files) > 1:
        return "chain"
    return "full" if files[0].base_number is None else "direct"
