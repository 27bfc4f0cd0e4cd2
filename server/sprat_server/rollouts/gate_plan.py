"""Who decides in a rollout, the first failure or evidence, and with which policy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from sprat_server.rollouts.gate_policy import CODE, GatePolicy
from sprat_shared.errors import InvalidInput

ENOUGH_DEVICES: Final = 100
"""Devices of a cohort from which evidence decides by default: proving half a point takes some eighty."""
_SILENCE_S: Final = 3 * 86_400.0
_HELD_S: Final = 7 * 86_400.0


class Rule(StrEnum):
    """Who decides whether the next wave opens."""

    FIRST_FAILURE = "first_failure"  # every device must commit; the first that fails halts
    EVIDENCE = "evidence"  # `gates.judge`


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePlan:
    """What was asked for when a rollout was made.

    Attributes:
        rule: who decides; None: evidence in cohorts of at least `ENOUGH_DEVICES`, else the first failure.
        silence_s: seconds after which a device that was offered the release and said nothing counts as lost; only where
            evidence decides.
        held_s: seconds after which a rollout halts whose gate has heard every exposed device and neither opens nor
            halts; only where evidence decides.
        policy: of the gate. Evidence is kept and judged by it under both rules.
    """

    rule: Rule | None = None
    silence_s: float = _SILENCE_S
    held_s: float = _HELD_S
    policy: GatePolicy = field(default_factory=GatePolicy)

    def choose(self, devices: int) -> Rule:
        """Return who decides in a cohort of so many devices."""
        if self.rule is not None:
            return self.rule
        return Rule.EVIDENCE if devices >= ENOUGH_DEVICES else Rule.FIRST_FAILURE

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "rule": self.rule and self.rule.value,
            "silence_s": self.silence_s,
            "held_s": self.held_s,
            "policy": self.policy.as_json(),
        }

    @classmethod
    def of(cls, value: Any) -> "GatePlan":
        """Read a JSON object; what is not said keeps its default.

        Raises:
            InvalidInput: a field is not known or wrong.
        """
        if not isinstance(value, Mapping):
            raise InvalidInput(f"gates: expected an object, got {type(value).__name__}", code=CODE)
        if unknown := set(value) - {"rule", "silence_s", "held_s", "policy"}:
            raise InvalidInput(
                f"gates: {min(unknown)!r:.60} is not known; rule, silence_s, held_s and policy are", code=CODE
            )
        rule = value.get("rule")
        if rule is not None and rule not in set(Rule):
            raise InvalidInput(f"gates: rule {rule!r:.60} is not one of {', '.join(Rule)}", code=CODE)
        return cls(
            rule=None if rule is None else Rule(rule),
            silence_s=_seconds(value, "silence_s", _SILENCE_S),
            held_s=_seconds(value, "held_s", _HELD_S),
            policy=GatePolicy.of(value.get("policy", {})),
        )


def _seconds(value: Mapping[str, Any], name: str, default: float) -> float:
    seconds = value.get(name, default)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 1 <= seconds <= 10**9:
        raise InvalidInput(f"gates: {name} must be seconds from 1, got {seconds!r:.60}", code=CODE)
    return float(seconds)
