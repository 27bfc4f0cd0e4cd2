"""What a plan is worth: each recipient goes down its ladder until it is certified on inputs that chose nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sharing.kept import Kept
from sharing.measure import Subject, built
from sharing.rules import BUDGET, LEVELS
from sprat_server.sharing.activations import Runner
from sprat_server.sharing.derived import Derived
from sprat_server.sharing.planner import Candidate, Plan, ladder
from sprat_server.sharing.releases import Release
from sprat_shared.evidence.certificate import certify

_BATCH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A plan after its certificates.

    Attributes:
        accepted: recipient -> the level that held.
        levels_down: how many levels did not.
        saved_bytes: of what is accepted.
        bound: largest certified one.
        drops: fall in accuracy of each accepted recipient on test.
        violated: how many of these are above their bound.
    """

    accepted: Mapping[str, Candidate]
    levels_down: int
    saved_bytes: int
    bound: float
    drops: Sequence[float]
    violated: int


def certified(
    found: Plan, candidates: Sequence[Candidate], subjects: Callable[[str], Subject], kept: Kept
) -> Certified:
    """Return what is left of a plan."""
    accepted: dict[str, Candidate] = {}
    down, bounds, drops = 0, [], []
    for recipient, chosen in sorted(found.chosen.items()):
        rungs = ladder(chosen, candidates, levels=LEVELS)
        for rung in rungs:
            judged = _judged(rung, subjects, kept)
            certificate = certify(judged["disagreed"], judged["compared"], looks=len(rungs))
            if certificate.within(BUDGET):
                accepted[recipient] = rung
                bounds.append(certificate.bound)
                drops.append(judged["drop"])
                break
            down += 1
    return Certified(
        accepted=accepted,
        levels_down=down,
        saved_bytes=sum(one.saved_bytes for one in accepted.values()),
        bound=max(bounds, default=0.0),
        drops=drops,
        violated=sum(drop > bound for drop, bound in zip(drops, bounds, strict=True)),
    )


def derived_of(one: Candidate, subjects: Callable[[str], Subject]) -> Derived:
    """Return the derived release of a way to share."""
    form, _, way = one.way.partition(" ")
    return built(subjects(one.donor), subjects(one.recipient), form, way)


def _judged(one: Candidate, subjects: Callable[[str], Subject], kept: Kept) -> Mapping[str, Any]:
    """Return what the composed graph says on the inputs that certify, and what it loses on test."""
    key = f"judged {one.donor} {one.recipient} {one.way}"
    known = kept.get(key)
    if known is not None:
        return dict(known)
    derived, recipient = derived_of(one, subjects), subjects(one.recipient)
    runner = Runner(Release(one.recipient, derived.graph, derived.tensors).filled())
    tops = {split: runner.answers(recipient.domain.inputs[split], _BATCH).argmax(1) for split in ("certify", "test")}
    own, labels = recipient.answers, recipient.labels()
    value = {
        "compared": len(tops["certify"]),
        "disagreed": int((tops["certify"] != own["certify"]).sum()),
        "test_disagreed": float((tops["test"] != own["test"]).mean()),
        "drop": float((own["test"] == labels).mean() - (tops["test"] == labels).mean()),
        "saved_bytes": recipient.release.nbytes - derived.own_bytes,
    }
    return dict(kept.put(key, value))
