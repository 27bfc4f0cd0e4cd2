"""Policies of devices: what operators ask of those that have a model. Callers own the transaction.

A profile's policy stands in the place of the model's as a whole: what is shown is what is signed, nothing is mixed.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from sprat_server.fleet.models import PolicyRow
from sprat_server.observe.actors import Actor
from sprat_shared.errors import NotFound
from sprat_shared.trust.policy import DevicePolicy


def find(session: Session, model_id: UUID, profile: str | None) -> PolicyRow | None:
    """Return the policy that was set for exactly this profile; None for the profile: for the model as a whole."""
    of_profile = PolicyRow.profile.is_(None) if profile is None else PolicyRow.profile == profile
    return session.scalar(select(PolicyRow).where(PolicyRow.model_id == model_id, of_profile))


def holding(session: Session, model_id: UUID, profile: str | None) -> PolicyRow | None:
    """Return the policy that holds for devices of a profile: its own, else the model's; None: nothing was said."""
    own = find(session, model_id, profile)
    return own if own is not None or profile is None else find(session, model_id, None)


def policy_of(session: Session, model_id: UUID, profile: str | None) -> DevicePolicy:
    """Return what is asked of a device of this profile that has the model."""
    row = holding(session, model_id, profile)
    return DevicePolicy() if row is None else DevicePolicy.of(row.policy)


def profiles(session: Session, model_id: UUID) -> Sequence[str]:
    """Return the profiles that have a policy of their own, by name."""
    own = select(PolicyRow.profile).where(PolicyRow.model_id == model_id, PolicyRow.profile.is_not(None))
    return sorted(name for name in session.scalars(own) if name is not None)


def put(session: Session, model_id: UUID, profile: str | None, policy: DevicePolicy, by: Actor) -> PolicyRow:
    """Set a policy in the place of the one before."""
    row = find(session, model_id, profile) or PolicyRow(model_id=model_id, profile=profile)
    row.policy, row.set_by, row.set_at = policy.as_json(), str(by), datetime.now(UTC)
    session.add(row)
    session.flush()
    return row


def clear(session: Session, model_id: UUID, profile: str | None) -> PolicyRow:
    """Take a policy away and return it.

    Raises:
        NotFound: none was set.
    """
    row = find(session, model_id, profile)
    if row is None:
        whose = "the model as a whole" if profile is None else f"profile {profile}"
        raise NotFound(f"no policy was set for {whose}; `sprat policy show` says what holds", code="policy.unknown")
    session.delete(row)
    session.flush()
    return row
