"""The highest versions ever trusted of one repository, kept apart from the metadata files: losing those loses nothing.

The client workflow (TUF specification, section 5) compares new metadata with the files that are held. A disk that lost
or zeroed them would thus accept anything that was ever signed. These marks live in the journal instead.

A mark is kept as long as a file that the old keys signed could still be accepted. A root that leaves timestamp or
snapshot fewer of the old keys than their threshold clears all marks but its own (section 5.3.11): that is how a
repository recovers after a thief of these keys drove the versions up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from sprat_shared.errors import UntrustedUpdate
from sprat_shared.protocol.fields import Fields

ROOT: Final = "root"
ONLINE_ROLES: Final = ("timestamp", "snapshot")


@dataclass(frozen=True, slots=True)
class RoleKeys:
    """The keys that a root names for a role: their ids, and how many must sign."""

    ids: frozenset[str]
    threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What was seen of one repository.

    Attributes:
        versions: highest version trusted of each role.
        keys: ids of the keys of timestamp and snapshot under which that was.
        time: latest time that the repository signed; None where it signs none.
    """

    versions: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, frozenset[str]] = field(default_factory=dict)
    time: datetime | None = None

    def replaced_by(self, keys: Mapping[str, RoleKeys]) -> bool:
        """Return whether a root with these keys makes everything that the old ones signed void."""
        return any(
            len(self.keys[role] & keys[role].ids) < keys[role].threshold for role in ONLINE_ROLES if role in self.keys
        )

    def under(self, keys: Mapping[str, RoleKeys]) -> "Marks":
        """Return the marks that hold under a root with these keys."""
        named = {role: keys[role].ids for role in ONLINE_ROLES}
        if self.replaced_by(keys):
            return Marks(versions={role: self.versions[role] for role in self.versions if role == ROOT}, keys=named)
        return replace(self, keys=named)

    def seen(self, role: str, version: int) -> "Marks":
        """Return the marks after a version of a role was offered.

        Raises:
            UntrustedUpdate: a later one was trusted before.
        """
        highest = self.versions.get(role, 0)
        if version < highest:
            raise UntrustedUpdate(
                f"{role} {version} is offered, and {highest} was trusted before: somebody serves old metadata",
                code="trust.rollback",
            )
        return self if version == highest else replace(self, versions={**self.versions, role: version})

    def seen_time(self, at: datetime) -> "Marks":
        """Return the marks after a signed time was seen; an earlier one changes nothing."""
        return self if self.time is not None and at <= self.time else replace(self, time=at)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "versions": dict(self.versions),
            "keys": {role: sorted(ids) for role, ids in self.keys.items()},
            "time": None if self.time is None else self.time.timestamp(),
        }

    @classmethod
    def of(cls, value: Any) -> "Marks":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong.
        """
        fields = Fields(value, "trust marks")
        versions = Fields(fields.mapping("versions"), "trust marks: versions")
        keys = Fields(fields.mapping("keys"), "trust marks: keys")
        return cls(
            versions={role: versions.integer(role) for role in fields.mapping("versions")},
            keys={role: frozenset(map(str, keys.list_of(role))) for role in fields.mapping("keys")},
            time=datetime.fromtimestamp(fields.number("time"), UTC) if fields.has("time") else None,
        )
