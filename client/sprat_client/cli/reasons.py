"""`sprat rollout why`: what the gate of a rollout says, as a person reads it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat_client.cli.output import aligned, shown
from sprat_shared.errors import InvalidInput

if TYPE_CHECKING:
    from sprat_client.api.rollout_views import DoesView, WhyView

_MOST_GAMES = 12  # of the games against harm; --json has all


def read_gates(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InvalidInput: it cannot be read, or is none.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as bad:
        raise InvalidInput(f"{file}: expected a JSON object ({bad})") from bad
    if not isinstance(said, dict):
        raise InvalidInput(f"{file}: expected a JSON object, got {type(said).__name__}")
    return said


def why_text(why: "WhyView", *, imagined: bool) -> str:
    """Return an explanation as text.

    Args:
        why: as the API gives it.
        imagined: another policy than the rollout's own was asked about.
    """
    who = "another policy would have said" if imagined else "the gate says"
    if not why["decides"]:
        who += " (it decides nothing here: the first failure does)"
    lines = [f"{who}: {why['decision']}", *(f"  {reason}" for reason in why["reasons"])]
    lines.append(
        f"{why['exposed']} devices were offered the release; {why['reported']} ended, {why['failed']} of them failed, "
        f"{why['lost']} by silence"
    )
    if why["failures"]:
        lines.append("failures: " + ", ".join(f"{count} {name}" for name, count in sorted(why["failures"].items())))
    if why["control"] is not None and why["treated"] is not None:
        lines += [_does("held back", why["control"]), _does("with the release", why["treated"])]
    if why["halted_after"] is not None:
        lines.append(f"halted after {why['halted_after']} reports, with {why['exposed_at_halt']} devices exposed")
    lines.append(f"evidence of harm: {why['e_value']:.4g}; halts at {why['halts_at']:.4g}")
    headings = ["scope", "metric", "devices", "mean loss", "tolerance", "evidence", "halts alone at"]
    games = [
        [shown(game[key]) for key in ("scope", "metric", "devices", "mean", "tolerance", "e_value", "halts_at")]
        for game in why["gates"]
        if game["devices"]
    ]
    if games:
        lines += ["", *(f"  {line}" for line in aligned([headings, *games[:_MOST_GAMES]]))]
        if len(games) > _MOST_GAMES:
            lines.append(f"  {len(games) - _MOST_GAMES} weaker ones: --json")
    proofs = [proof for proof in why["proofs"] if proof["required"]]
    for proof in proofs:
        reach = "any number of" if proof["reach"] is None else str(proof["reach"])
        lines += [
            "",
            f"{proof['metric']} is proven to fall by less than {proof['proven']:.4g}: enough for {reach} devices",
            f"  for less than {proof['tolerance']:.4g}: {proof['e_value']:.4g}; proven at {proof['opens_at']:.4g}",
        ]
    lines += [
        f"silence by {ratio['kind']} is not random: evidence {ratio['e_value']:.4g}, holds at {ratio['holds_at']:.4g}"
        for ratio in why["ratios"]
    ]
    lines += ["", "what would change it:", *(f"  {said}" for said in why["would_change"] or ["a first report"])]
    return "\n".join(lines)


def _does(who: str, does: "DoesView") -> str:
    if does["accuracy"] is None:
        return f"{who}: {does['devices']} devices, none of which has said how its holdout does"
    said = f"{does['accuracy']:.4f} right of {does['samples']} samples of {does['reported']}"
    return f"{who}: {said} of {does['devices']} devices"
