"""What the director signs for one device of its site's plans: which it holds ready, and by which it serves.

A plan is a target of the device's own targets, beside its assignments: `.site/<site>/<number>`, with length and digest
of the plan's file. The image repository has no say in it: a plan only places releases, each of which must be vouched
for there like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from sprat_shared.errors import InvalidInput, UntrustedUpdate
from sprat_shared.ids import check_model_name
from sprat_shared.trust.targets import positive

_KEY: Final = "sprat"
_FIRST: Final = ".site"  # no model has a dot in its name


class Phase(StrEnum):
    """What a device does by a plan."""

    HOLD = "hold"  # its modules are fetched, loaded and tried; requests that come under it are answered, none is begun
    SERVE = "serve"  # requests of applications are begun under it
    DRAIN = "drain"  # a newer one serves here; what others begin under this one is still answered


def is_site_path(path: str) -> bool:
    """Return whether a director's target is a plan of a site, and not an assignment."""
    return path.startswith(f"{_FIRST}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedPlan:
    """A plan that is signed for one device.

    Attributes:
        device: id of the device that it is for.
        site: name of the site.
        number: of the plan.
        phase: what the device does by it.
    """

    device: UUID
    site: str
    number: int
    phase: Phase

    @property
    def path(self) -> str:
        """Return the target path."""
        return f"{_FIRST}/{check_model_name(self.site)}/{self.number}"

    def to_custom(self) -> dict[str, Any]:
        """Return the target's `custom` object."""
        return {_KEY: {"device": str(self.device), "phase": self.phase.value}}

    @classmethod
    def from_custom(cls, path: str, custom: Mapping[str, Any] | None) -> "SignedPlan":
        """Read a target's `custom` object; site and number are those of the path it was signed under.

        Raises:
            UntrustedUpdate: a field is missing or wrong, or the path is not that of a plan.
        """
        try:
            said = (custom or {})[_KEY]
            _, site, number = path.split("/")
            plan = cls(device=UUID(said["device"]), site=site, number=positive(int(number)), phase=Phase(said["phase"]))
            if plan.path != path:
                raise ValueError(f"it is not signed under {plan.path}")  # noqa: TRY301 - all become one error
        except (KeyError, TypeError, AttributeError, ValueError, InvalidInput) as bad:
            raise UntrustedUpdate(f"plan {path}: its signed description cannot be read ({bad!r})") from bad
        return plan
