"""`sprat report savings`: what devices reported of updates, beside what full models would have taken."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, and_, case, cast, distinct, func, literal, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from sprat_server.fleet.models import Assignment, Device, DeviceReport
from sprat_server.fleet.savings import Delivered, Prices, projections, sum_of
from sprat_server.fleet.savings_schemas import AskedSavings, SavingsRow, SavingsView, SumView
from sprat_server.flows import targeting
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model, Release, UpdateFile
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.enrol import PLAYED

_HAD_ALL = ("committed", "refused", "rolled_back", "ready")  # outcomes that are reached with the whole update


def savings(session: Session, asked: AskedSavings, now: datetime | None = None) -> SavingsView:
    """Return the report.

    Raises:
        InvalidInput: the time ends before it begins, or a filter of a price cannot be read.
        NotFound: there is no such model.
    """
    until = asked.until or now or datetime.now(UTC)
    since = asked.since or session.scalar(select(func.min(DeviceReport.received_at))) or until
    if since > until:
        raise InvalidInput(f"since ({since:%Y-%m-%d %H:%M}) is later than until ({until:%Y-%m-%d %H:%M})")
    links = [targeting.meant(session, where=link.where, group=None) for link in asked.prices.links]
    prices = Prices(
        currency=asked.prices.currency,
        per_mb=[*(link.per_mb for link in asked.prices.links), asked.prices.per_mb],
        per_update=asked.prices.per_update,
    )
    delivered = _delivered(session, asked.model, since, until, links)
    days = (until - since).total_seconds() / 86400
    total = sum_of((row for row in delivered if row.base is not None), prices)
    by_step = defaultdict[tuple[str, int, int | None], list[Delivered]](list)
    for row in delivered:
        by_step[row.model, row.release, row.base].append(row)
    return SavingsView(
        since=since,
        until=until,
        days=days,
        currency=prices.currency,
        devices=_devices(session, asked.model, since, until),
        rows=[
            SavingsRow(model=model, release=release, base=base, **SumView.of(sum_of(rows, prices)).model_dump())
            for (model, release, base), rows in by_step.items()
        ],
        updates=SumView.of(total),
        first=SumView.of(sum_of((row for row in delivered if row.base is None), prices)),
        projections=projections(total, days),
    )


def _said() -> Any:
    """Return what devices reported of assignments, each with the release that they served before it."""
    body = cast(func.convert_from(DeviceReport.body, "UTF8"), JSONB)
    had_all = DeviceReport.outcome.in_(_HAD_ALL)
    of_release = (DeviceReport.device_id, DeviceReport.model_id, Assignment.number)
    evidence = body["evidence"]
    compared = and_(DeviceReport.outcome == "committed", evidence["old_correct"].astext.is_not(None))
    counts = {
        name: case((compared, cast(evidence[name].astext, BigInteger)), else_=literal(0)).label(name)
        for name in ("samples", "old_correct", "new_correct")
    }
    return (
        select(
            DeviceReport.device_id,
            DeviceReport.model_id,
            DeviceReport.received_at,
            Assignment.number.label("release"),
            func.lag(DeviceReport.serving_number)
            .over(partition_by=of_release[:2], order_by=DeviceReport.sequence)
            .label("base"),
            cast(body["received_bytes"].astext, BigInteger).label("bytes"),
            and_(
                had_all,
                func.row_number().over(partition_by=(*of_release, had_all), order_by=DeviceReport.sequence) == 1,
            ).label("is_first"),
            *counts.values(),
        )
        .join(
            Assignment,
            and_(Assignment.device_id == DeviceReport.device_id, Assignment.counter == DeviceReport.assignment),
        )
        .join(Device, Device.id == DeviceReport.device_id)
        .where(Assignment.number.is_not(None), ~Device.attributes.contains(PLAYED))
        .subquery("said")
    )


def _counted(session: Session, said: Any, model: str | None, since: datetime, until: datetime) -> list[Any]:
    """Return the conditions of the reports that count: in the time, of the model, and of another release."""
    conditions = [said.c.received_at >= since, said.c.received_at < until, said.c.base.is_distinct_from(said.c.release)]
    if model is not None:
        conditions.append(said.c.model_id == registry.get_model(session, model).id)
    return conditions


def _delivered(
    session: Session, model: str | None, since: datetime, until: datetime, links: Sequence[ColumnElement[bool]]
) -> list[Delivered]:
    said = _said()
    link = (
        case(*((fits, literal(at)) for at, fits in enumerate(links)), else_=literal(len(links)))
        if links
        else literal(0)
    )
    updates = func.count().filter(said.c.is_first)
    query: Select[Any] = (
        select(
            Model.name.label("model"),
            said.c.base,
            said.c.release,
            link.label("link"),
            updates.label("updates"),
            func.count(distinct(said.c.device_id)).filter(said.c.is_first).label("devices"),
            cast(func.sum(said.c.bytes), BigInteger).label("bytes"),
            (updates * func.max(UpdateFile.bytes)).label("full_bytes"),
            (updates * func.max(Release.model_bytes)).label("model_bytes"),
            *(
                cast(func.sum(said.c[name]), BigInteger).label(name)
                for name in ("samples", "old_correct", "new_correct")
            ),
        )
        .select_from(said)
        .join(Device, Device.id == said.c.device_id)
        .join(Model, Model.id == said.c.model_id)
        .join(Release, and_(Release.model_id == said.c.model_id, Release.number == said.c.release))
        .join(
            UpdateFile,
            and_(
                UpdateFile.model_id == said.c.model_id,
                UpdateFile.number == said.c.release,
                UpdateFile.base_number.is_(None),
            ),
        )
        .where(*_counted(session, said, model, since, until))
        .group_by(Model.name, said.c.release, said.c.base, link)
        .order_by(Model.name, said.c.release, said.c.base.nulls_first())
    )
    return [Delivered(**row) for row in session.execute(query).mappings()]


def _devices(session: Session, model: str | None, since: datetime, until: datetime) -> int:
    """Return how many devices had an update; not their first release."""
    said = _said()
    had = (said.c.is_first, said.c.base.is_not(None), *_counted(session, said, model, since, until))
    return session.scalar(select(func.count(distinct(said.c.device_id))).where(*had)) or 0
