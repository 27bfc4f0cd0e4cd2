"""Closing the loop: look at a model's drift, tell somebody, or retrain and roll out, as its policy says.

`look` is called by upkeep, in one transaction for each model, and may be called by every replica: the row of the policy
is locked. What is decided rests on `fleet.drift`, which is pure.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.fleet import drift_records as records
from sprat_server.fleet.drift import LOOK_BACK_S, Action, Decision, Finding, History, decide, judge
from sprat_server.fleet.drift_policy import DriftPolicy
from sprat_server.fleet.models import DriftEvent, DriftPolicyRow
from sprat_server.flows import rollout
from sprat_server.jobs import service as jobs
from sprat_server.jobs.models import ENDED, SUCCEEDED
from sprat_server.observe import outbox
from sprat_server.observe.actors import SYSTEM
from sprat_server.registry import service as registry
from sprat_server.registry.models import Dataset, Model
from sprat_server.registry.schemas import RetrainRequest
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.reaches import check_reaches
from sprat_server.settings import Settings
from sprat_shared.errors import Conflict, InvalidInput, SpratError

_log = structlog.get_logger(__name__)


def check(model: Model, policy: DriftPolicy) -> None:
    """Return if a policy can be carried out for a model.

    Raises:
        InvalidInput: the retrain's options or the waves make no sense.
        Conflict: the model cannot be retrained here.
    """
    if policy.retrain is None:
        return
    registry.check_retrainable(model)
    try:
        RetrainRequest(dataset="sha256:" + "0" * 64, **policy.retrain.options)
    except (ValueError, TypeError) as bad:
        raise InvalidInput(f"the options of the retrain make no sense: {' '.join(str(bad).split())}") from None
    if policy.rollout is not None and policy.rollout.waves is not None:
        check_reaches(policy.rollout.waves)


def look(session: Session, settings: Settings, model_id: UUID, now: datetime | None = None) -> Decision | None:
    """Look at one model: finish what retrains began, then do what its policy asks for; None: it is not watched."""
    now = now or datetime.now(UTC)
    model = session.get_one(Model, model_id)
    registry.lock_model(session, model)
    row = records.policy_row(session, model_id, lock=True)
    if row is None:
        return None
    policy = DriftPolicy.model_validate(row.policy)
    for event in records.under_way(session, model_id):
        _go_on(session, settings, model, policy, row, event)
    finding, decision = assess(session, model, policy, row, now)
    if decision.action == Action.NOTIFY:
        _keep(session, model, finding, decision, at=now)
    elif decision.action == Action.RETRAIN:
        _retrain(session, model, policy, finding, decision, at=now)
    return decision


def assess(
    session: Session, model: Model, policy: DriftPolicy, row: DriftPolicyRow, now: datetime
) -> tuple[Finding, Decision]:
    """Return what is known of a model's drift, and what would be done about it now."""
    finding = judge(records.words(session, model.id, now - timedelta(seconds=policy.window_s)), policy)
    last = records.events(session, model.id, limit=1)
    dataset = None if policy.retrain is None else _newest(session, policy.retrain.dataset)
    history = History(
        stopped=row.stop_reason,
        since_last_s=(now - last[0].at).total_seconds() if last else None,
        retrains=records.retrains_since(session, model.id, now, LOOK_BACK_S),
        busy=_busy(session, model),
        dataset=dataset,
        used=records.datasets_used(session, model.id),
    )
    return finding, decide(finding, policy, history)


def _newest(session: Session, name: str) -> str | None:
    newest = select(Dataset.digest).where(Dataset.name == name).order_by(Dataset.created_at.desc()).limit(1)
    return session.scalar(newest)


def _busy(session: Session, model: Model) -> str | None:
    if records.under_way(session, model.id):
        return "the last retrain for drift has not come to its end"
    live = rollouts.live_rollout(session, model.id)
    return None if live is None else f"rollout {live.id} is {live.state}"


def _keep(
    session: Session, model: Model, finding: Finding, decision: Decision, *, at: datetime, **more: Any
) -> DriftEvent:
    event = DriftEvent(
        model_id=model.id, at=at, action=decision.action.value, why=decision.why, finding=finding.as_json(), **more
    )
    if decision.action == Action.NOTIFY:
        event.outcome = "told"
    session.add(event)
    session.flush()
    said = {"why": decision.why, "accuracy": finding.accuracy, "devices": finding.devices, "drift": finding.drift}
    _say(session, model, f"drift.{decision.action.value}", said)
    return event


def _retrain(
    session: Session, model: Model, policy: DriftPolicy, finding: Finding, decision: Decision, *, at: datetime
) -> None:
    assert policy.retrain is not None  # noqa: S101 - what was decided rests on it
    dataset = _newest(session, policy.retrain.dataset)
    assert dataset is not None  # noqa: S101 - likewise
    base = registry.latest_release(session, model).number
    asked = RetrainRequest(dataset=dataset, **policy.retrain.options)
    args = asked.model_dump(mode="json") | {"model": model.name, "base": base}
    job = jobs.enqueue(session, kind="retrain", args=args, by=SYSTEM)
    _keep(session, model, finding, decision, at=at, dataset=dataset, job_id=job.id)


def _go_on(  # noqa: PLR0917 - what was begun, and by what rules it goes on
    session: Session, settings: Settings, model: Model, policy: DriftPolicy, row: DriftPolicyRow, event: DriftEvent
) -> None:
    """Take the next step of a retrain that was begun: its release is rolled out, or somebody is told how it ended."""
    assert event.job_id is not None  # noqa: S101 - a retrain has a job
    job = jobs.get(session, event.job_id)
    if job.state not in ENDED:
        return
    if job.state != SUCCEEDED or job.result is None:
        event.outcome = f"the retrain {job.state}: {(job.error or {}).get('message', 'somebody cancelled it')}"
    elif row.stop_reason is not None or policy.rollout is None:
        event.release = int(job.result["release"])
        event.outcome = f"release {event.release} waits for a person to roll it out"
    else:
        event.release = int(job.result["release"])
        try:
            with session.begin_nested():
                event.rollout_id, event.outcome = _roll_out(session, settings, model, policy, event.release)
        except SpratError as why:
            if isinstance(why, Conflict) and why.code in {"release.pending", "rollout.busy"}:
                return  # it waits for signatures, or for another rollout; so does this
            event.outcome = f"release {event.release} is not rolled out: {why}"
    session.flush()
    said = {"outcome": event.outcome, "release": event.release, "job": str(job.id)}
    _say(session, model, "drift.retrained", said)


def _say(session: Session, model: Model, kind: str, said: dict[str, Any]) -> None:
    _log.warning(kind, model=model.name, **said)
    audit.record(session, SYSTEM, kind, f"model:{model.name}", after=said)
    outbox.tell(session, kind, f"model:{model.name}", {"model": model.name} | said)


def _roll_out(
    session: Session, settings: Settings, model: Model, policy: DriftPolicy, release: int
) -> tuple[UUID, str]:
    assert policy.rollout is not None  # noqa: S101 - the caller looked
    made = rollout.create(
        session, model=model.name, release=release, reaches=policy.rollout.waves, devices=None, by=str(SYSTEM)
    )
    after = {"release": release, "waves": policy.rollout.waves, "why": "drift"}
    audit.record(session, SYSTEM, "rollout.create", f"rollout:{made.id}", after=after)
    if not policy.rollout.start:
        return made.id, f"release {release}: its rollout is a draft that a person starts"
    rollout.start(session, made.id, settings)
    audit.record(session, SYSTEM, "rollout.start", f"rollout:{made.id}", {"state": "draft"}, {"state": made.state})
    return made.id, f"release {release} is being rolled out"
