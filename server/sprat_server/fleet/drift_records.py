"""Keep what devices say of drift, what is watched, and what was done. Callers own the transaction."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import and_, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from sprat_server.fleet.drift import Word
from sprat_server.fleet.drift_policy import DriftPolicy
from sprat_server.fleet.models import Device, DeviceDrift, DeviceSlots, DriftEvent, DriftPolicyRow
from sprat_server.observe.actors import Actor
from sprat_shared.errors import NotFound
from sprat_shared.protocol.enrol import PLAYED
from sprat_shared.protocol.holdout_report import HoldoutReport


def keep_samples(session: Session, device_id: UUID, model_id: UUID, report: HoldoutReport) -> None:
    """Keep how the release that serves does on the labelled samples of a device, in place of what it said before."""
    said = {
        "release": report.release,
        "samples": report.samples,
        "correct": sum(report.correct),
        "said_at": datetime.now(UTC),
    }
    _keep(session, device_id, model_id, said)


def keep_move(session: Session, device_id: UUID, model_id: UUID, input_drift: float) -> None:
    """Keep how far the inputs of a device moved, in the place of what it said before."""
    _keep(session, device_id, model_id, {"input_drift": input_drift, "moved_at": datetime.now(UTC)})


def _keep(session: Session, device_id: UUID, model_id: UUID, said: Mapping[str, Any]) -> None:
    row = insert(DeviceDrift).values(device_id=device_id, model_id=model_id, **{"samples": 0, "correct": 0, **said})
    session.execute(row.on_conflict_do_update(index_elements=["device_id", "model_id"], set_=dict(said)))


def words(session: Session, model_id: UUID, since: datetime) -> list[Word]:
    """Return what live devices said of a model since then; samples count where the release that they are of serves."""
    serves = and_(
        DeviceSlots.device_id == DeviceDrift.device_id,
        DeviceSlots.model_id == DeviceDrift.model_id,
        DeviceSlots.active == DeviceDrift.release,
    )
    fresh, moved = and_(DeviceDrift.said_at >= since, DeviceSlots.active.is_not(None)), DeviceDrift.moved_at >= since
    rows = session.execute(
        select(DeviceDrift, fresh, moved)
        .join(Device, Device.id == DeviceDrift.device_id)
        .outerjoin(DeviceSlots, serves)
        .where(DeviceDrift.model_id == model_id, Device.revoked_at.is_(None), or_(fresh, moved))
        .where(~Device.attributes.contains(PLAYED))
    )
    return [
        Word(
            samples=row.samples if is_fresh else 0,
            correct=row.correct if is_fresh else 0,
            input_drift=row.input_drift if has_moved else None,
        )
        for row, is_fresh, has_moved in rows
    ]


def policy_row(session: Session, model_id: UUID, *, lock: bool = False) -> DriftPolicyRow | None:
    """Return what is watched of a model; None: nothing."""
    query = select(DriftPolicyRow).where(DriftPolicyRow.model_id == model_id)
    return session.scalar(query.with_for_update() if lock else query)


def require_policy(session: Session, model_id: UUID, *, lock: bool = False) -> DriftPolicyRow:
    """Return what is watched of a model. Raises NotFound."""
    row = policy_row(session, model_id, lock=lock)
    if row is None:
        raise NotFound("no drift policy was set; `sprat drift policy set` does", code="drift.no-policy")
    return row


def put_policy(session: Session, model_id: UUID, policy: DriftPolicy, by: Actor) -> DriftPolicyRow:
    """Watch a model this way from now on; what a person stopped stays stopped."""
    row = policy_row(session, model_id, lock=True) or DriftPolicyRow(model_id=model_id)
    row.policy, row.set_by, row.set_at = policy.model_dump(mode="json"), str(by), datetime.now(UTC)
    session.add(row)
    session.flush()
    return row


def clear_policy(session: Session, model_id: UUID) -> DriftPolicyRow:
    """Watch a model no more; return how it was watched. Raises NotFound."""
    row = require_policy(session, model_id, lock=True)
    session.delete(row)
    session.flush()
    return row


def stop(session: Session, model_id: UUID, reason: str | None) -> DriftPolicyRow:
    """Do nothing about drift of a model any more (None: again what its policy says). Raises NotFound."""
    row = require_policy(session, model_id, lock=True)
    row.stopped_at, row.stop_reason = (None, None) if reason is None else (datetime.now(UTC), reason)
    session.flush()
    return row


def watched(session: Session) -> Sequence[UUID]:
    """Return the models that are watched."""
    return session.scalars(select(DriftPolicyRow.model_id).order_by(DriftPolicyRow.model_id)).all()


def events(session: Session, model_id: UUID, *, limit: int) -> Sequence[DriftEvent]:
    """Return what was done about a model's drift, newest first."""
    of_model = select(DriftEvent).where(DriftEvent.model_id == model_id)
    return session.scalars(of_model.order_by(DriftEvent.at.desc(), DriftEvent.id.desc()).limit(limit)).all()


def under_way(session: Session, model_id: UUID) -> Sequence[DriftEvent]:
    """Return the retrains whose end is not known yet."""
    open_ = select(DriftEvent).where(
        DriftEvent.model_id == model_id, DriftEvent.action == "retrain", DriftEvent.outcome.is_(None)
    )
    return session.scalars(open_.order_by(DriftEvent.at)).all()


def retrains_since(session: Session, model_id: UUID, now: datetime, seconds: float) -> int:
    """Return how many retrains were begun in the last so many seconds."""
    begun = select(func.count()).where(
        DriftEvent.model_id == model_id,
        DriftEvent.action == "retrain",
        DriftEvent.at > now - timedelta(seconds=seconds),
    )
    return session.scalar(begun) or 0


def datasets_used(session: Session, model_id: UUID) -> frozenset[str]:
    """Return the digests of the datasets that retrains for drift have used."""
    used = select(DriftEvent.dataset).where(DriftEvent.model_id == model_id, DriftEvent.dataset.is_not(None))
    return frozenset(digest for digest in session.scalars(used) if digest is not None)
