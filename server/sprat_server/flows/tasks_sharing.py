"""The worker's task that plans which models use whose layers: measured, chosen, certified, kept ready to publish."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

import numpy as np

from sprat_server.compress.held import held_update
from sprat_server.flows.finetuned_levels import better_of
from sprat_server.flows.release_files import MAX_GRAPH_BYTES, BaseRelease, keep_files, weights_of
from sprat_server.jobs.tasks import JobContext, task
from sprat_server.registry import service as registry
from sprat_server.registry.samples import read_samples
from sprat_server.sharing import planner, records
from sprat_server.sharing.derived import Derived
from sprat_server.sharing.finetune import Progress
from sprat_server.sharing.offers import Inputs, Offer, Subject, certified, offers, parted, way_of
from sprat_server.sharing.releases import NotShareable, Release
from sprat_server.sharing.similarity import correlation
from sprat_shared.evidence.certificate import Certificate, samples_needed
from sprat_shared.wire.tensors import digest_of

JOB_KIND: Final = "plan-sharing"
_ASKED: Final = ("models", "named", "dataset", "budgets", "memory_bytes", "levels", "seed", "finetune")


@dataclass(frozen=True, slots=True)
class _Zoo:
    """The models of a plan, ready to be run, and the inputs on which they are measured."""

    subjects: Mapping[str, Subject]
    bases: Mapping[str, BaseRelease]
    inputs: Inputs

    @property
    def sizes(self) -> dict[str, int]:
        """Return model -> bytes."""
        return {name: one.release.nbytes for name, one in self.subjects.items()}


@task(JOB_KIND)
def plan_sharing(ctx: JobContext, args: Mapping[str, Any]) -> dict[str, Any]:
    """Plan which of some models use whose layers, and keep the plan; nothing is published.

    Args:
        ctx: of the job.
        args: models ({name: release}), dataset (digest; its labels are not used), budgets ({name: share}),
            memory_bytes (or None), levels, seed, finetune (train what is the recipient's own in each level), analyze
            (only measure), refit_of (id of the plan whose question this is, or None), learned (model -> what devices
            taught of that plan), by (who asked).

    Raises:
        NotShareable: models take other inputs, do not name classes, or devices compute some of their tensors.
    """
    ctx.progress("reading", 0.01, "reading models and dataset")
    with ExitStack() as files:
        zoo = files.enter_context(_zoo(ctx, args))
        measured = _measured(ctx, zoo)
        result = _about(zoo) | {"scores": [_score(one) for one in measured], "matrix": _matrix(zoo, measured)}
        result["correlations"] = _correlations(measured)
        if args["analyze"]:
            with ctx.session() as session:
                ctx.complete(session, {"plan": None, **result})
            return result
        result |= _chosen(ctx, zoo, measured, args) | {"learned": args["learned"]}
    with ctx.session() as session:
        before = None if args["refit_of"] is None else records.get(session, UUID(args["refit_of"]))
        if before is not None:
            shared, now = ({one["recipient"] for one in each["chosen"]} for each in (before.result, result))
            told = {one["recipient"] for one in result["left_out"]}
            why = f"it shared by plan {before.id}; nothing certifies within its budget any more"
            result["left_out"] += [{"recipient": name, "why": why} for name in sorted(shared - now - told)]
        plan = records.add(
            session,
            asked={key: args[key] for key in _ASKED},
            result=result,
            by=args["by"],
            refit_of=None if before is None else before.id,
        )
        told_result = {"plan": str(plan.id), **{key: result[key] for key in ("left_out", "total_bytes", "saved_bytes")}}
        told_result |= {"recipients": [one["recipient"] for one in result["chosen"]], "fits": result["fits"]}
        ctx.complete(session, told_result)
    return told_result


@contextmanager
def _zoo(ctx: JobContext, args: Mapping[str, Any]) -> Iterator[_Zoo]:
    with ctx.session() as session:
        registry.get_dataset(session, args["dataset"])
        bases = {name: BaseRelease.of(session, name, number) for name, number in args["models"].items()}
    for base in bases.values():
        if base.local is not None:
            raise NotShareable(
                f"devices compute tensors of {base.model}@{base.number} themselves; what differs between devices is "
                "not shared"
            )
    with ExitStack() as files:
        inputs = read_samples(files.enter_context(ctx.blobs.local(args["dataset"]))).inputs
        kind = "float32" if np.issubdtype(inputs.dtype, np.floating) else str(inputs.dtype)
        parts = parted(np.asarray(inputs, dtype=kind), int(args["seed"]))
        subjects = {}
        for name, base in bases.items():
            weights = files.enter_context(weights_of(ctx.blobs, base.weights_blob))
            graph = ctx.blobs.read(base.graph, max_bytes=MAX_GRAPH_BYTES)
            subjects[name] = Subject(Release(name, graph, weights), parts)
        yield _Zoo(subjects, bases, parts)


def _measured(ctx: JobContext, zoo: _Zoo) -> list[Offer]:
    pairs = [(donor, recipient) for donor in zoo.subjects for recipient in zoo.subjects if donor != recipient]
    measured: list[Offer] = []
    for ordinal, (donor, recipient) in enumerate(pairs):
        ctx.progress("measuring", 0.05 + 0.6 * ordinal / len(pairs), f"{donor}'s layers in {recipient}")
        try:
            measured += offers(zoo.subjects[donor], zoo.subjects[recipient], zoo.inputs)
        except NotShareable:
            continue  # these two cannot be put together; others may
    return measured


def _about(zoo: _Zoo) -> dict[str, Any]:
    models = [
        {"name": name, "release": base.number, "weights": base.weights_digest, "bytes": zoo.sizes[name]}
        for name, base in zoo.bases.items()
    ]
    parts = {part: len(getattr(zoo.inputs, part)) for part in ("fit", "tune", "choose", "certify")}
    return {"models": models, "samples": parts}


def _score(offer: Offer) -> dict[str, Any]:
    return asdict(offer) | {"agreement": 1 - offer.disagreed / offer.compared, "bound": offer.bound}


def _correlations(measured: Sequence[Offer]) -> dict[str, float | None]:
    """Return how each score goes with what sharing changed, over the stitches: Pearson's r; None: nothing to say."""
    stitches = [one for one in measured if one.cka is not None and one.r2 is not None]
    changed = [one.disagreed / one.compared for one in stitches]
    found = {
        "cka": correlation([one.cka or 0.0 for one in stitches], changed),
        "r2": correlation([one.r2 or 0.0 for one in stitches], changed),
    }
    return {score: None if np.isnan(r) else r for score, r in found.items()}


def _matrix(zoo: _Zoo, measured: Sequence[Offer]) -> dict[str, Any]:
    """Return for each pair, donors down and recipients across, the scores of the way that agrees best."""
    names = list(zoo.subjects)
    best: dict[tuple[str, str], Offer] = {}
    for offer in sorted(measured, key=lambda one: (-one.disagreed, one.saved_bytes)):
        best[offer.donor, offer.recipient] = offer
    rows = [[best.get((donor, recipient)) for recipient in names] for donor in names]
    return {
        "models": names,
        "agreement": [[None if one is None else 1 - one.disagreed / one.compared for one in row] for row in rows],
        "cka": [[None if one is None else one.cka for one in row] for row in rows],
        "saved_bytes": [[None if one is None else one.saved_bytes for one in row] for row in rows],
    }


def _chosen(ctx: JobContext, zoo: _Zoo, measured: Sequence[Offer], args: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is planned: each recipient's certified levels with their files, who is left out, and the front."""
    sizes, budgets = zoo.sizes, {name: float(share) for name, share in args["budgets"].items()}
    candidates = [one.candidate for one in measured]
    ctx.progress("planning", 0.66, f"choosing among {len(candidates)} ways")
    found = planner.plan(sizes, candidates, budget=budgets, memory_bytes=args["memory_bytes"])
    chosen, left_out = [], []
    for ordinal, (recipient, first) in enumerate(sorted(found.chosen.items())):
        ladder = planner.ladder(first, candidates, levels=int(args["levels"]))
        tell = partial(_tell, ctx, f"{recipient} on {first.donor}", ordinal, len(found.chosen))
        tried = [
            _level(ctx, zoo, rung, args, partial(tell, at, len(ladder)), looks=len(ladder))
            for at, rung in enumerate(ladder)
        ]
        levels = [one.kept for one in tried if one.kept is not None]
        if levels:
            chosen.append(_recipient(zoo, first, budgets[recipient], levels))
        else:
            left_out.append({"recipient": recipient, **_why(budgets[recipient], tried)})
    saved = sum(one["levels"][0]["saved_bytes"] for one in chosen)
    total, memory = sum(sizes.values()), args["memory_bytes"]
    front = planner.front(sizes, candidates)
    return {
        "chosen": chosen,
        "left_out": left_out,
        "front": [{"bound": one.bound, "saved_bytes": one.saved_bytes} for one in front],
        "total_bytes": total,
        "saved_bytes": saved,
        "fits": memory is None or total - saved <= memory,
    }


def _recipient(
    zoo: _Zoo, first: planner.Candidate, budget: float, levels: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    base, donor = zoo.bases[first.recipient], zoo.bases[first.donor]
    return {
        "recipient": base.model,
        "base": base.number,
        "base_weights": base.weights_digest,
        "donor": donor.model,
        "donor_release": donor.number,
        "budget": budget,
        "levels": [{"level": level, **one} for level, one in enumerate(levels, start=1)],
    }


def _tell(  # noqa: PLR0917 - the last two are the progress's own
    ctx: JobContext, what: str, ordinal: int, recipients: int, at: int, levels: int, done: float, message: str
) -> None:
    share = (ordinal + (at + done) / levels) / recipients
    ctx.progress("certifying", 0.7 + 0.25 * share, f"{what}, level {at + 1} of {levels}: {message}")


@dataclass(frozen=True, slots=True)
class _Tried:
    """A level that was composed: its bound, what fine-tuning was good for, and its files where it certifies."""

    bound: float
    finetune: Mapping[str, Any] | None
    kept: Mapping[str, Any] | None


def _level(
    ctx: JobContext, zoo: _Zoo, rung: planner.Candidate, args: Mapping[str, Any], progress: Progress, *, looks: int
) -> _Tried:
    donor, recipient = zoo.subjects[rung.donor], zoo.subjects[rung.recipient]
    form, _, cuts = rung.way.partition(" ")
    progress(0.0, "composing")
    way = way_of(donor, recipient, zoo.inputs, form, cuts)
    derived, finetune = way.derived(), None
    composed_bytes = derived.own_bytes
    if args["finetune"]:
        base, seed = zoo.bases[rung.recipient], int(args["seed"])
        derived, finetune = better_of(ctx, base, recipient, way, zoo.inputs, seed=seed, progress=progress)
    certificate = certified(recipient, derived, zoo.inputs, looks=looks)
    if not certificate.within(float(args["budgets"][rung.recipient])):
        return _Tried(certificate.bound, finetune, None)
    saved = rung.saved_bytes + composed_bytes - derived.own_bytes
    level = {"form": form, "way": cuts, "saved_bytes": saved, **_proof(certificate), **_kept(ctx, zoo, rung, derived)}
    return _Tried(certificate.bound, finetune, level if finetune is None else level | {"finetune": finetune})


def _proof(certificate: Certificate) -> dict[str, Any]:
    worst = max((one.bound for one in certificate.classes.values()), default=certificate.bound)
    return {
        "bound": certificate.bound,
        "looks": certificate.looks,
        "compared": certificate.compared,
        "disagreed": certificate.disagreed,
        "worst_class_bound": worst,
    }


def _kept(ctx: JobContext, zoo: _Zoo, rung: planner.Candidate, derived: Derived) -> dict[str, Any]:
    """Return the blobs of a level: its graph, its weights, its full update and the one that names donor's tensors."""
    donor, recipient = zoo.subjects[rung.donor].release, zoo.subjects[rung.recipient].release
    update = held_update(recipient.tensors, derived.tensors, donor.tensors)
    files = keep_files(ctx, derived.tensors, base=zoo.bases[rung.recipient].number, update=update)
    full, from_base = files.updates
    return {
        "graph": ctx.blobs.put_bytes(derived.graph).digest,
        "weights_blob": files.weights,
        "weights": digest_of(derived.tensors),
        "full": {"blob": full.blob, "bytes": full.length},
        "update": {"blob": from_base.blob, "bytes": from_base.length},
    }


def _why(budget: float, tried: Sequence[_Tried]) -> dict[str, Any]:
    """Return why nothing of a ladder is kept, and what fine-tuning was good for where it was asked for."""
    few, least = samples_needed(budget, looks=len(tried)), min((one.bound for one in tried), default=1.0)
    why = f"nothing certifies within {budget:.2%}: the least bound is {least:.2%}; that takes {few} inputs or more"
    finetune = [one.finetune for one in tried if one.finetune is not None]
    return {"why": why, "finetune": finetune} if finetune else {"why": why}
