"""How a rollout is to be run, beside its waves and its gate: what was asked for when it was made. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sprat_server.rollouts.reaches import Growth, check_control
from sprat_server.rollouts.retries import Retries
from sprat_shared.errors import InvalidInput
from sprat_shared.trust.policy import Window

CODE: Final = "rollout.bad-plan"
_MOST_APPROVALS: Final = 10
_MOST_WINDOWS: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPlan:
    """What was asked for.

    Attributes:
        where: a filter that says its devices when it starts, and
        group: a saved group that does; None: they were named when it was made, or it is for all.
        growth: waves are made by it, anew at the start for the devices that are there then; None: they were named.
        control: share of the cohort that is held back, such as `5%`.
        in_flight: most devices that may be exposed and not have ended; None: any number.
        approvals: people beside its maker who must approve it before it starts.
        windows: stretches of the day (UTC) in which devices may be exposed; none: always.
        retries: which failures are tried again first.
        supersede: a running rollout of the model ends when this one starts, and its devices take part in this one.
        override_quarantine: why it may bring out a release that was halted; None: it may not.
        rehearsal: its devices are only played: it may bring out any release, and its end says nothing of it.
    """

    where: str | None = None
    group: str | None = None
    growth: Growth | None = None
    control: str | None = None
    in_flight: int | None = None
    approvals: int = 0
    windows: tuple[Window, ...] = ()
    retries: Retries = field(default_factory=Retries)
    supersede: bool = False
    override_quarantine: str | None = None
    rehearsal: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.where is not None and self.group is not None:
            raise InvalidInput("say which devices either by where or by group", code=CODE)
        if self.control is not None:
            check_control(self.control)
        if self.in_flight is not None and not 1 <= self.in_flight <= 10**9:
            raise InvalidInput(f"in_flight: 1 device or more, got {self.in_flight}", code=CODE)
        if not 0 <= self.approvals <= _MOST_APPROVALS:
            raise InvalidInput(f"approvals: 0 to {_MOST_APPROVALS} people, got {self.approvals}", code=CODE)
        if len(self.windows) > _MOST_WINDOWS:
            raise InvalidInput(f"windows: at most {_MOST_WINDOWS}, got {len(self.windows)}", code=CODE)
        if any(window.local for window in self.windows):
            raise InvalidInput(
                "windows: a rollout's are in UTC; windows in devices' own time are of the policy: sprat policy set",
                code=CODE,
            )
        if self.override_quarantine is not None and not self.override_quarantine.strip():
            raise InvalidInput("override_quarantine: say why the release may go out again", code=CODE)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object, all values said."""
        return {
            "where": self.where,
            "group": self.group,
            "growth": None if self.growth is None else self.growth.as_json(),
            "control": self.control,
            "in_flight": self.in_flight,
            "approvals": self.approvals,
            "windows": [window.as_json() for window in self.windows],
            "retries": self.retries.as_json(),
            "supersede": self.supersede,
            "override_quarantine": self.override_quarantine,
            "rehearsal": self.rehearsal,
        }

    @property
    def says_devices(self) -> bool:
        """Whether it is this plan that says which devices the rollout is for."""
        return self.where is not None or self.group is not None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> "RolloutPlan":
        """Read what `as_json` wrote; what is not said keeps its default (rollouts of older servers say nothing)."""
        growth = value.get("growth")
        return cls(
            where=value.get("where"),
            group=value.get("group"),
            growth=None if growth is None else Growth(growth["from"], float(growth["factor"])),
            control=value.get("control"),
            in_flight=value.get("in_flight"),
            approvals=value.get("approvals", 0),
            windows=windows_of(value.get("windows", [])),
            retries=Retries.of(value.get("retries", {})),
            supersede=value.get("supersede", False),
            override_quarantine=value.get("override_quarantine"),
            rehearsal=value.get("rehearsal", False),
        )


def windows_of(value: Sequence[Any]) -> tuple[Window, ...]:
    """Read windows, in the words of signed policies.

    Raises:
        InvalidInput: one is none.
    """
    try:
        return tuple(Window.of(one) for one in value)
    except InvalidInput as bad:
        raise InvalidInput(f"windows: {str(bad).removeprefix('policy: ')}", code=CODE) from None
