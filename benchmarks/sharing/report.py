"""The table: what each rule saves in each zoo, certified, and what it truly costs; scores; the front as a plot."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from sharing.certified import Certified, certified, derived_of
from sharing.groups import ROWS, Group
from sharing.measure import Row
from sharing.memory import resident
from sharing.rules import RULES, Measured, candidate
from sprat_server.sharing.planner import front
from sprat_server.sharing.similarity import correlation

_SCORES: Final[Mapping[str, Callable[[Row], float]]] = {
    "debiased CKA": lambda row: row.cka,
    "pooled CKA": lambda row: row.cka_pooled,
    "R2": lambda row: row.r2,
    "agreement": lambda row: 1 - row.disagreed / row.compared,
}
_WEIGHED: Final = ("a", "e", "mixed")  # rows whose real memory is measured
_HEADS: Final = (
    *(
        "rule",
        "saved of all",
        "of each further model",
        "largest certified bound",
        "true drop, mean",
        "worst",
        "violated",
    ),
)
_MIB: Final = 1 << 20
Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # zoo -> seed -> report


def report(group: Group) -> dict[str, Any]:
    """Return what one seed of a zoo gives, for each row of the table that is made of it, as JSON."""
    return {key: _of_row(key, group) for key, (_, zoo, _) in ROWS.items() if zoo == group.key}


def _of_row(key: str, group: Group) -> dict[str, Any]:
    known = group.known(ROWS[key][2])
    ways = [candidate(row) for row in known.rows]
    rules = {}
    for rule, (_, make) in RULES.items():
        found = make(known)
        forms = _FORMS.get(rule, {"tie", "residual", "stitch"})
        allowed = [candidate(row) for row in known.rows if row.form in forms]
        left = certified(found, allowed, group.subject, group.kept)
        rules[rule] = _of_rule(known, left)
        if rule == "planner" and key in _WEIGHED:
            rules[rule]["memory"] = _memory(key, group, known, left)
    return {
        "bytes": sum(known.sizes.values()),
        "models": len(known.sizes),
        "rules": rules,
        "scores": _scores(known.rows),
        "front": [[one.bound, one.saved_share] for one in front(known.sizes, ways, budget=0.3)],
    }


_FORMS: Final[Mapping[str, set[str]]] = {"tie": {"tie"}, "residual": {"tie", "residual"}, "stitch": {"stitch"}}


def _of_rule(known: Measured, left: Certified) -> dict[str, Any]:
    total = sum(known.sizes.values())
    further = total - sum(known.sizes[name] for name in {one.donor for one in left.accepted.values()})
    return {
        "saved": left.saved_bytes / total,
        "saved_of_further": left.saved_bytes / further if left.accepted else 0.0,
        "recipients": len(left.accepted),
        "levels_down": left.levels_down,
        "bound": left.bound,
        "drops": list(left.drops),
        "violated": left.violated,
        "plan": {name: [one.donor, one.way] for name, one in left.accepted.items()},
    }


def _scores(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how each score goes with the drop, over the stitches; and how often the bound was below the truth."""
    stitches = [row for row in rows if row.form == "stitch"]
    drops = [row.drop for row in stitches]
    return {
        "ways": len(rows),
        "stitches": len(stitches),
        "correlations": {name: correlation([score(row) for row in stitches], drops) for name, score in _SCORES.items()},
        "violated": sum(row.drop > row.bound for row in rows),
        "disagreement_above": sum(row.test_disagreed > row.bound for row in rows),
    }


def _memory(key: str, group: Group, known: Measured, left: Certified) -> dict[str, Any]:
    plan = sorted((name, one.donor, one.way) for name, one in left.accepted.items())
    kept = group.kept.get(f"memory {key} {plan}")
    if kept is not None:
        return dict(kept)
    models = {name: group.subject(name).release for name in known.sizes}
    whole = {name: (one.model.SerializeToString(), one.tensors) for name, one in models.items()}
    shared = dict(whole)
    for name, one in left.accepted.items():
        derived = derived_of(one, group.subject)
        shared[name] = (derived.graph, derived.tensors)
    inputs = group.subject(next(iter(known.sizes))).domain.inputs["test"]
    value = {"before": resident(whole, inputs), "after": resident(shared, inputs)}
    return dict(group.kept.put(f"memory {key} {plan}", value))


def printed(found: Found) -> Iterator[str]:
    """Yield the lines of the tables, in Markdown."""
    rows = {key: {s: of[key] for s, of in found.get(zoo, {}).items()} for key, (_, zoo, _) in ROWS.items()}
    seeds = sorted({seed for of_row in rows.values() for seed in of_row})
    yield f"seeds {', '.join(map(str, seeds))}; mean over the seeds (least to most), worst over all"
    for key, of_row in ((key, of_row) for key, of_row in rows.items() if of_row):
        first = next(iter(of_row.values()))
        size = f"{first['models']} models, {first['bytes'] / _MIB:.1f} MiB, {len(of_row)} seeds"
        yield f"\n### {key}: {ROWS[key][0]} ({size})\n"
        yield f"| {' | '.join(_HEADS)} |"
        yield "|---" + "|---:" * (len(_HEADS) - 1) + "|"
        for rule, (title, _) in RULES.items():
            yield _line(title, [one["rules"][rule] for one in of_row.values()])
        yield ""
        yield from _foot(of_row)


def _line(title: str, ones: Sequence[Mapping[str, Any]]) -> str:
    saved = [100 * one["saved"] for one in ones]
    drops = [100 * drop for one in ones for drop in one["drops"]]
    if not drops:
        return f"| {title} | 0 % | - | - | - | - | - |"
    further = np.mean([100 * one["saved_of_further"] for one in ones])
    bound = max(100 * one["bound"] for one in ones)
    return (
        f"| {title} | {np.mean(saved):.1f} % ({min(saved):.1f} to {max(saved):.1f}) | {further:.1f} % | {bound:.1f} "
        f"| {np.mean(drops):.2f} | {max(drops):.2f} | {sum(one['violated'] for one in ones)} of {len(drops)} |"
    )


def _foot(of_row: Mapping[int, Mapping[str, Any]]) -> Iterator[str]:
    scores = [one["scores"] for one in of_row.values()]
    said = ", ".join(f"{name} {np.nanmean([one['correlations'][name] for one in scores]):.2f}" for name in _SCORES)
    yield f"Correlation with the drop over {sum(one['stitches'] for one in scores)} stitches: {said}."
    ways, over, above = (sum(one[key] for one in scores) for key in ("ways", "violated", "disagreement_above"))
    yield (
        f"Of {ways} ways, the drop on test was above the bound in {over} ({100 * over / ways:.2f} %), the disagreement "
        f"on test in {above} ({100 * above / ways:.2f} %)."
    )
    weighed = [one["rules"]["planner"]["memory"] for one in of_row.values() if "memory" in one["rules"]["planner"]]
    for part, title in (("resident", "all that the models add to the process"), ("mapped", "mapped tensors")):
        if weighed:
            before, after = (np.mean([one[when][part] for one in weighed]) / _MIB for when in ("before", "after"))
            yield f"Resident with the planner's plan, {title}: {before:.1f} MiB before, {after:.1f} after."


def plot(found: Found, path: Path) -> None:
    """Draw what the planner saves within each bound, a line for each row, of the first seed."""
    import matplotlib as mpl  # noqa: PLC0415 - only a plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4.2))
    for key, (title, zoo, _) in ROWS.items():
        for _seed, of in sorted(found.get(zoo, {}).items())[:1]:
            points = of[key]["front"]
            axes.step(
                [100 * x for x, _ in points], [100 * y for _, y in points], where="post", label=f"({key}) {title}"
            )
    axes.axvline(5, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="largest bound of a model, points", ylabel="bytes saved, %", xlim=(0, 15), ylim=(0, 100))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
