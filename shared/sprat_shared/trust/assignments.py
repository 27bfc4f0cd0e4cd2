"""What the director signs for one device: which release of each model it should run, and the updates that lead there.

The director repository is a second TUF repository (Uptane's idea): root for all devices, and a timestamp, snapshot and
targets of its own for each. A target of a device's targets is the full update of the release that it should run, with
the length and hashes that the image repository signs for the same path: only what both repositories vouch for counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sprat_shared.errors import InvalidInput, UntrustedUpdate
from sprat_shared.ids import check_model_name
from sprat_shared.trust.policy import DevicePolicy
from sprat_shared.trust.targets import positive, update_path

DIRECTOR_REPOSITORY: Final = "director"
_KEY: Final = "sprat"


def bound_to(device: UUID, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a timestamp or snapshot that TUF does not know, with the device that it is signed for."""
    return {**fields, _KEY: {**fields.get(_KEY, {}), "device": str(device)}}


def is_bound_to(device: UUID, signed: Mapping[str, Any]) -> bool:
    """Return whether metadata of the director say that they are for a device: the file itself, or each of its targets.

    Args:
        device: its id.
        signed: the part of a file that is signed, whether or not its signature was verified yet.
    """
    try:
        if signed["_type"] == "targets":
            said = [target["custom"][_KEY]["device"] for target in signed["targets"].values()]
        else:
            said = [signed[_KEY]["device"]]
    except (KeyError, TypeError, AttributeError):
        return False
    return said != [] and all(one == str(device) for one in said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigned:
    """One release that a device should run.

    Attributes:
        device: id of the device that it is for.
        model: name of the model.
        release: number of the release.
        assignment: counter of the assignments of this device, over all models; a larger one replaces all smaller ones.
        path: target paths of the updates that lead there from what the device is believed to hold, in order; empty
            where it should hold the release in a slot already.
        profile: device profile that the director takes the device for; None: none.
        prefetch: the release is fetched and rebuilt, and waits; a newer assignment says that it may serve.
        policy: how the device goes about it.
    """

    device: UUID
    model: str
    release: int
    assignment: int
    path: tuple[str, ...]
    profile: str | None = None
    prefetch: bool = False
    policy: DevicePolicy = field(default_factory=DevicePolicy)

    @property
    def full(self) -> str:
        """Return the target path under which it is signed: the release's full update."""
        return update_path(self.model, self.release, None)

    def to_custom(self) -> dict[str, Any]:
        """Return the target's `custom` object."""
        said: dict[str, Any] = {
            "device": str(self.device),
            "assignment": self.assignment,
            "path": list(self.path),
        }
        if self.profile is not None:
            said["profile"] = self.profile
        if self.prefetch:
            said["prefetch"] = True
        if policy := self.policy.as_signed():
            said["policy"] = policy
        return {_KEY: said}

    @classmethod
    def from_custom(cls, path: str, custom: Mapping[str, Any] | None) -> "Assigned":
        """Read a target's `custom` object; the model and the release are those of the path it was signed under.

        Raises:
            UntrustedUpdate: a field is missing or wrong, or the path is not that of a full update.
        """
        try:
            said = (custom or {})[_KEY]
            model, number, _ = path.split("/")
            steps, profile, prefetch = said["path"], said.get("profile"), said.get("prefetch", False)
            if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
                raise TypeError(f"path {steps!r:.80} is no list of target paths")  # noqa: TRY301 - all become one error
            if not (profile is None or isinstance(profile, str)):
                raise TypeError(f"profile {profile!r:.80} is no text")  # noqa: TRY301 - likewise
            if not isinstance(prefetch, bool):
                raise TypeError(f"prefetch {prefetch!r:.80} is not true or false")  # noqa: TRY301 - likewise
            assigned = cls(
                device=UUID(said["device"]),
                model=check_model_name(model),
                release=positive(int(number)),
                assignment=positive(said["assignment"]),
                path=tuple(steps),
                profile=profile,
                prefetch=prefetch,
                policy=DevicePolicy.of_signed(said.get("policy", {})),
            )
        except (KeyError, TypeError, AttributeError, ValueError, InvalidInput) as bad:
            raise UntrustedUpdate(f"assignment {path}: its signed description cannot be read ({bad!r})") from bad
        if assigned.full != path:
            raise UntrustedUpdate(f"assignment {path} is not signed under the path {assigned.full}")
        return assigned
