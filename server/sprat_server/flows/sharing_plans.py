"""Plans to share layers, from the question to the rollouts: asked for, shown, applied, undone. One transaction each."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from sprat_server.access import audit
from sprat_server.db.blobs import Blobs
from sprat_server.flows import rollout as flow
from sprat_server.flows import rollout_apply, sharing_steps, targeting
from sprat_server.flows import rollout_reversals as reversals
from sprat_server.flows.publishing import publish_release
from sprat_server.flows.release_files import weights_of
from sprat_server.jobs import service as jobs
from sprat_server.jobs.models import Job
from sprat_server.observe.actors import Actor
from sprat_server.publish.image import open_repository
from sprat_server.registry import service as registry
from sprat_server.registry.models import Model
from sprat_server.registry.service import NewUpdate
from sprat_server.rollouts import service as rollouts
from sprat_server.rollouts.requests import Apply, NewRollout
from sprat_server.rollouts.waves import RolloutState
from sprat_server.settings import Settings
from sprat_server.sharing import records
from sprat_server.sharing.models import APPLIED, UNDONE, SharingPlan
from sprat_server.sharing.schemas import (
    ApplySharing,
    LevelPreview,
    NewSharingPlan,
    RecipientPreview,
    SharingPlanView,
    SharingPreview,
    SharingRolloutView,
)
from sprat_shared.errors import Conflict, InvalidInput
from sprat_shared.trust.targets import MILLION, Shares

JOB_KIND: Final = "plan-sharing"
_LIVE: Final = {RolloutState.DRAFT, RolloutState.RUNNING, RolloutState.PAUSED}
_KEPT: Final = {RolloutState.SUCCEEDED, RolloutState.ABORTED}  # aborted, its devices may keep what they committed


def ask(
    session: Session,
    asked: NewSharingPlan,
    by: Actor,
    *,
    refit_of: SharingPlan | None = None,
    learned: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Job:
    """Have a worker make a plan.

    Args:
        session: the caller's transaction.
        asked: the question.
        by: whose it is.
        refit_of: the plan whose question it was.
        learned: model -> what its devices taught (`sharing_steps.lessons`): no budget is above what they kept.

    Raises:
        NotFound: a model, a release or the dataset does not exist.
        Conflict: a release shares layers itself.
        InvalidInput: the dataset is of another shape than a model's inputs.
    """
    dataset = registry.get_dataset(session, asked.dataset)
    numbers = {}
    for reference in asked.models:
        name, _, number = reference.partition("@")
        model = registry.get_model(session, name)
        release = (
            registry.get_release(session, model, int(number)) if number else registry.latest_release(session, model)
        )
        registry.check_trainable(model, release)
        _check_inputs(model, dataset.input_shape)
        registry.require_published(session, model, release.number)
        numbers[name] = release.number
    budgets = dict.fromkeys(numbers, asked.budget) | asked.budgets
    args = {
        "models": numbers,
        "named": list(asked.models),
        "dataset": asked.dataset,
        "budgets": {name: min(budgets[name], learned.get(name, {}).get("budget", 1.0)) for name in numbers},
        "learned": {name: dict(lesson) for name, lesson in learned.items()},
        "memory_bytes": asked.memory_bytes,
        "levels": asked.levels,
        "seed": asked.seed,
        "finetune": asked.finetune,
        "analyze": asked.analyze,
        "refit_of": None if refit_of is None else str(refit_of.id),
        "by": str(by),
    }
    return jobs.enqueue(session, kind=JOB_KIND, args=args, by=by)


def _check_inputs(model: Model, shape: list[int]) -> None:
    if model.example is not None and list(model.example["shape"][1:]) != list(shape):
        raise InvalidInput(
            f"{model.name} takes inputs of shape {model.example['shape'][1:]}, those of the dataset are {shape}; "
            "models that share take one kind of input",
            code="sharing.impossible",
        )


def refit(session: Session, plan_id: UUID, by: Actor) -> Job:
    """Have a worker answer a plan's question anew, on the newest releases of its models, with what devices taught.

    Raises:
        NotFound: there is no such plan, or something of its question is gone.
    """
    plan = records.get(session, plan_id)
    kept = {key: plan.asked[key] for key in ("dataset", "memory_bytes", "levels", "seed", "finetune")}
    asked = NewSharingPlan(models=list(plan.asked["models"]), budgets=plan.asked["budgets"], **kept)
    return ask(session, asked, by, refit_of=plan, learned=sharing_steps.lessons(session, plan))


def preview(session: Session, settings: Settings, plan_id: UUID) -> SharingPreview:
    """Return what applying a plan would publish, and who would get it.

    Raises:
        NotFound: there is no such plan.
    """
    plan = records.get(session, plan_id)
    recipients = [_preview(session, one) for one in plan.result["chosen"]]
    return SharingPreview(plan=plan.id, recipients=recipients, obstacles=_obstacles(session, settings, plan))


def _preview(session: Session, one: Mapping[str, Any]) -> RecipientPreview:
    devices = len(targeting.matching(session, where(one)))
    levels = [
        LevelPreview(
            level=level["level"],
            form=level["form"],
            saved_bytes=level["saved_bytes"],
            bound=level["bound"],
            finetuned=level.get("finetune", {}).get("trained", False),
            update_bytes=level["update"]["bytes"],
            full_bytes=level["full"]["bytes"],
        )
        for level in one["levels"]
    ]
    return RecipientPreview(
        model=one["recipient"],
        base=one["base"],
        donor=one["donor"],
        donor_release=one["donor_release"],
        levels=levels,
        where=where(one),
        devices=devices,
        bytes_to_devices=devices * levels[0].update_bytes,
    )


def where(one: Mapping[str, Any]) -> str:
    """Return the filter of the devices that run a recipient's base and the donor's release (docs/targeting.md)."""
    return f"model.{one['recipient']}.active = {one['base']} and model.{one['donor']}.active = {one['donor_release']}"


def _obstacles(session: Session, settings: Settings, plan: SharingPlan) -> list[str]:
    """Return what stands in the way of applying a plan."""
    found = []
    try:
        records.require(plan, applied=False)
    except Conflict as why:
        found.append(str(why))
    image = open_repository(session, settings)
    for one in plan.result["chosen"]:
        for name, number in ((one["recipient"], one["base"]), (one["donor"], one["donor_release"])):
            newest = registry.latest_release(session, registry.get_model(session, name)).number
            if newest != number:
                found.append(f"{name}@{newest} is newer than {name}@{number}, which the plan is made for; plan anew")
        if not image.signs_alone(one["recipient"]):
            found.append(f"releases of {one['recipient']} are signed by people, which plans do not wait for yet")
    if not plan.result["chosen"]:
        found.append("no model shares anything by this plan: there is nothing to publish")
    return list(dict.fromkeys(found))


def apply(  # noqa: PLR0917 - what is applied where, how and by whom
    session: Session, blobs: Blobs, settings: Settings, plan_id: UUID, wanted: ApplySharing, by: Actor
) -> SharingPlan:
    """Publish what a plan chose, and draft a rollout for each model that shares, started where that is asked for.

    Levels are published from the safest to the one that shares most, so that one has the newest number. A rollout goes
    to the devices that run the base and the donor's release; one that means no device now stays a draft.

    Raises:
        NotFound: there is no such plan.
        Conflict: it was applied, is stale, or something else stands in its way.
    """
    plan = records.get(session, plan_id, lock=True)
    records.require(plan, applied=False)
    if obstacles := _obstacles(session, settings, plan):
        raise Conflict(f"plan {plan.id} cannot be applied: {'; '.join(obstacles)}", code="sharing.not-applicable")
    releases, made = [], []
    for one in plan.result["chosen"]:
        published = _publish(session, blobs, settings, one, plan.id)
        releases += published
        name = f"sharing-{str(plan.id)[-12:]}-{one['recipient']}"[:100]
        rollout = NewRollout(
            name=name, model=one["recipient"], release=published[-1]["release"], waves=wanted.waves, where=where(one)
        )
        start = wanted.start and bool(targeting.matching(session, where(one)))
        applied = rollout_apply.apply(session, Apply(rollout=rollout, start=start), by, settings)
        made.append(str(applied.rollout.id))
    plan.state, plan.applied_at = APPLIED, datetime.now(UTC)
    plan.applied = {"releases": releases, "rollouts": made}
    session.flush()
    audit.record(session, by, "sharing.apply", f"sharing:{plan.id}", {"state": "planned"}, plan.applied)
    return plan


def _publish(
    session: Session, blobs: Blobs, settings: Settings, one: Mapping[str, Any], plan: UUID
) -> list[dict[str, Any]]:
    model = registry.get_model(session, one["recipient"])
    shares = Shares(
        base=one["base"],
        weights=one["base_weights"],
        donor=one["donor"],
        budget_ppm=max(1, round(one["budget"] * MILLION)),
    )
    published = []
    for level in reversed(one["levels"]):
        with weights_of(blobs, level["weights_blob"]) as weights:
            table = weights.table
        full, update = level["full"], level["update"]
        proof = ("form", "way", "saved_bytes", "bound", "looks", "compared", "disagreed", "worst_class_bound")
        told = (*proof, "finetune") if "finetune" in level else proof
        release = publish_release(
            session,
            blobs,
            settings,
            model=model,
            graph_blob=level["graph"],
            weights_blob=level["weights_blob"],
            table=table,
            weights_digest=level["weights"],
            updates=[
                NewUpdate(None, full["blob"], full["bytes"]),
                NewUpdate(one["base"], update["blob"], update["bytes"]),
            ],
            metrics={"sharing": {"plan": str(plan), "level": level["level"]} | {key: level[key] for key in told}},
            origin="shared",
            base=one["base"],
            shares=shares,
        )
        published.append({"model": model.name, "release": release.number, "level": level["level"]})
    return published


def undo(session: Session, settings: Settings, plan_id: UUID, reason: str, by: Actor) -> SharingPlan:
    """Take back the rollouts of a plan: those under way are aborted, those that ended are undone. Devices go back.

    Raises:
        NotFound: there is no such plan.
        Conflict: it is not applied, or another rollout of a model runs.
    """
    plan = records.get(session, plan_id, lock=True)
    records.require(plan, applied=True)
    before = plan.state
    for rollout_id in map(UUID, (plan.applied or {})["rollouts"]):
        rollout = rollouts.get(session, rollout_id)
        was = {"state": rollout.state}
        try:
            if RolloutState(rollout.state) in _LIVE:
                verb, rollout = "abort", flow.abort(session, rollout_id, reason, keep=False)
            elif rollout.state in _KEPT:
                verb, rollout = "undo", reversals.undo(session, rollout_id, settings, reason)
            else:
                continue  # its devices went back, or a later rollout has them
        except Conflict as why:
            if why.code != "rollout.nothing-to-undo":
                raise
            continue
        after = {"state": rollout.state, "reason": reason}
        audit.record(session, by, f"rollout.{verb}", f"rollout:{rollout_id}", was, after)
    plan.state, plan.undone_at = UNDONE, datetime.now(UTC)
    session.flush()
    audit.record(session, by, "sharing.undo", f"sharing:{plan.id}", {"state": before}, {"reason": reason})
    return plan


def view(session: Session, plan: SharingPlan) -> SharingPlanView:
    """Return a plan with its rollouts as they are now."""
    made = [rollouts.get(session, UUID(one)) for one in (plan.applied or {}).get("rollouts", [])]
    names = {one.model_id: session.get_one(Model, one.model_id).name for one in made}
    shown = [
        SharingRolloutView(id=one.id, model=names[one.model_id], release=one.number, state=one.state) for one in made
    ]
    return SharingPlanView.of(plan, shown, sharing_steps.standing(session, plan))
