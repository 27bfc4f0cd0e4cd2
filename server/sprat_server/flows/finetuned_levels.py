"""Levels of a plan to share layers, fine-tuned: the recipient's recipe as student, and what that was good for."""

from collections.abc import Mapping
from typing import Any

from sprat_server.flows.release_files import BaseRelease
from sprat_server.jobs.tasks import JobContext
from sprat_server.sharing.derived import Derived, From
from sprat_server.sharing.finetune import STEPS, Progress, Student, Untrained, Way, Why, finetuned
from sprat_server.sharing.offers import Inputs, Subject, agreement
from sprat_server.training.architecture import begin
from sprat_server.training.recipes import RecipeBroken, RecipeRefused
from sprat_server.training.states import WeightsMismatch


def better_of(
    ctx: JobContext,
    base: BaseRelease,
    recipient: Subject,
    way: Way,
    inputs: Inputs,
    *,
    seed: int,
    progress: Progress,
) -> tuple[Derived, Mapping[str, Any]]:
    """Return a level as it was composed or, where that agrees better on the inputs that choose, fine-tuned.

    Args:
        ctx: of the job.
        base: the recipient's release.
        recipient: the same, ready to be run.
        way: of sharing, as it was fitted.
        inputs: of the plan, in parts.
        seed: of the order of inputs.
        progress: told how far training is.

    Returns:
        The derived release, and what a plan says of it: `trained`; `agreement_before` and, where training came to an
        end, `agreement_after`, shares of the inputs that choose; of a trained one `steps`, `changed` (the recipient's
        tensors that are new by it) and `new_bytes` (of all that neither model has), else `why` (`finetune.Why`) and
        `detail`.
    """
    untrained = way.derived()
    before = agreement(recipient, untrained, inputs)
    told: dict[str, Any] = {"trained": False, "agreement_before": before, "agreement_after": None}
    if before == 1:
        return untrained, told | _because(Why.AGREES, "it answers as the recipient does on all inputs that choose")
    try:
        student = _student(ctx, base, recipient)
        derived = finetuned(way, student, inputs.fit, seed=seed, progress=progress).derived()
    except Untrained as kept:
        return untrained, told | _because(kept.why, kept.detail)
    after = told["agreement_after"] = agreement(recipient, derived, inputs)
    if after <= before:
        return untrained, told | _because(Why.NO_BETTER, f"after training {after:.2%} of the inputs that choose agree")
    changed = [
        name
        for name, origin in sorted(derived.origins.items())
        if origin.side is From.NEW and untrained.origins[name].side is From.RECIPIENT
    ]
    return derived, told | {"trained": True, "steps": STEPS, "changed": changed, "new_bytes": derived.new_bytes}


def _because(why: Why, detail: str) -> dict[str, str]:
    return {"why": why.value, "detail": detail}


def _student(ctx: JobContext, base: BaseRelease, recipient: Subject) -> Student:
    """Return the recipient's module in the weights of its release.

    Raises:
        Untrained: there is no recipe, or it does not give that.
    """
    recipe = base.recipe
    if recipe is None:
        raise Untrained(Why.NO_RECIPE, f"{base.model} was registered as ONNX; register it with a recipe to train it")
    config, weights = recipe.get("config") or {}, recipient.release.tensors
    try:
        trainable = begin(recipe["factory"], config, weights, ctx.settings.recipe_packages).trainable
    except (RecipeRefused, RecipeBroken, WeightsMismatch) as why:
        raise Untrained(Why.RECIPE_FAILS, str(why)) from why
    return Student(trainable.module, trainable.classifies)
