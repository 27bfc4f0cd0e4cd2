"""The rules that are compared: each picks ways to share by the inputs that choose; all are certified alike."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sharing.measure import Row
from sprat_server.sharing.planner import Candidate, Plan, plan
from sprat_shared.evidence.certificate import chance

BUDGET: Final = 0.05
SLACK: Final = 0.1
LEVELS: Final = 3  # of a ladder
_THRESHOLDS: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class Measured:
    """All that is known of a zoo before a plan.

    Attributes:
        sizes: model -> bytes.
        families: model -> architecture.
        rows: every measured way.
        certifying: model -> inputs that will certify.
        seed: of what is drawn.
    """

    sizes: Mapping[str, int]
    families: Mapping[str, str]
    rows: Sequence[Row]
    certifying: Mapping[str, int]
    seed: int


def candidate(row: Row) -> Candidate:
    """Return a measured way as the planner takes it."""
    way = f"{row.form} {row.way}"
    return Candidate(donor=row.donor, recipient=row.recipient, way=way, saved_bytes=row.saved_bytes, bound=row.bound)


def _chance(row: Row, known: Measured) -> float:
    if row.bound > BUDGET:
        return 0.0
    more = known.certifying[row.recipient]
    return chance(row.disagreed, row.compared, budget=BUDGET, more=more, looks=LEVELS)


def _planned(keep: Callable[[Row, Measured], bool]) -> Callable[[Measured], Plan]:
    def rule(known: Measured) -> Plan:
        rows = [replace(candidate(row), chance=_chance(row, known)) for row in known.rows if keep(row, known)]
        return plan(known.sizes, rows, budget=BUDGET, slack=SLACK)

    return rule


def _in_order(known: Measured, rows: Sequence[Row]) -> Plan:
    """Return what comes of taking ways in order, each checked and undone if it does not hold."""
    chosen: dict[str, Candidate] = {}
    for row in rows:
        donors = {one.donor for one in chosen.values()}
        free = row.recipient not in donors and row.recipient not in chosen and row.donor not in chosen
        if free and row.saved_bytes > 0 and row.bound <= BUDGET:
            chosen[row.recipient] = candidate(row)
    saved = sum(one.saved_bytes for one in chosen.values())
    return Plan(chosen=chosen, total_bytes=sum(known.sizes.values()), saved_bytes=saved)


def _cka_greedy(known: Measured) -> Plan:
    """Share the deepest layers that are similar enough, pairs by similarity, undone layer by layer where they disagree.

    The best of ten thresholds.
    """
    plans = []
    for threshold in _THRESHOLDS:
        pairs: dict[tuple[str, str], list[Row]] = {}
        for row in known.rows:
            if row.form == "stitch" and row.similar and row.cka >= threshold:
                pairs.setdefault((row.donor, row.recipient), []).append(row)
        deepest_first = [sorted(rows, key=lambda row: -row.saved_bytes) for rows in pairs.values()]
        in_order = sorted(deepest_first, key=lambda rows: -rows[0].cka)
        plans.append(_in_order(known, [row for rows in in_order for row in rows]))
    return max(plans, key=lambda one: one.saved_bytes)


def _random(known: Measured) -> Plan:
    rows = list(known.rows)
    random.Random(known.seed).shuffle(rows)
    return _in_order(known, rows)


RULES: Final[Mapping[str, tuple[str, Callable[[Measured], Plan]]]] = {
    "tie": ("tie", _planned(lambda row, _: row.form == "tie")),
    "residual": ("tie with residual", _planned(lambda row, _: row.form in {"tie", "residual"})),
    "stitch": ("stitch", _planned(lambda row, _: row.form == "stitch")),
    "same": (
        "same architecture only",
        _planned(lambda row, known: known.families[row.donor] == known.families[row.recipient]),
    ),
    "cka": ("CKA-greedy", _cka_greedy),
    "random": ("random", _random),
    "planner": ("**sprat's planner**", _planned(lambda _row, _known: True)),
}
"""key -> title in the table, and the rule."""
