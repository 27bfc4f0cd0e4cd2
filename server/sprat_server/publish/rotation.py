"""Which keys a role gets: what may be asked for, and what the server makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Role, Root, Targets

from sprat_server.publish.keys import SERVER, KeyRing, KeysUnusable, holder_of
from sprat_shared.errors import InvalidInput
from sprat_shared.trust.targets import paths_of_model, role_of_model

TOP_LEVEL: Final = ("root", "targets", "snapshot", "timestamp")
ONLINE: Final = ("snapshot", "timestamp")  # always signed by the server
AUTO: Final = "auto"
MODEL_PREFIX: Final = "m."


@dataclass(frozen=True, slots=True)
class NewKeys:
    """Keys that a role shall have.

    Attributes:
        role: root, targets, snapshot, timestamp, `auto`, or the role `m.<model>` of a model.
        keys: their public halves; None: one that the server makes and holds, or for a model the server's key `auto`.
        threshold: how many of them must sign.
    """

    role: str
    keys: Sequence[Key] | None
    threshold: int = 1


def delegated(targets: Targets) -> dict[str, DelegatedRole]:
    """Return the roles of models, by name."""
    return {} if targets.delegations is None else targets.delegations.roles or {}


def auto_keys(targets: Targets) -> list[Key]:
    """Return the keys with which the server signs for models."""
    keys = {} if targets.delegations is None else targets.delegations.keys
    return [key for key in keys.values() if holder_of(key) == SERVER]


def resolve(
    wanted: NewKeys, root: Root, targets: Targets, ring: KeyRing, signs_alone: Callable[[str], bool]
) -> list[NewKeys]:
    """Return roles and keys as they shall be; keys that the server is to hold are made.

    Args:
        wanted: what is asked for; `auto` stands for the roles of all models that the server signs for.
        root: what is to be changed,
        targets: likewise.
        ring: the keys that the server holds.
        signs_alone: tells for which models the server may sign by itself.

    Raises:
        InvalidInput: there is no such role, or keys and threshold make no sense for it.
    """
    role = wanted.role
    if role == AUTO:
        old = {key.keyid for key in auto_keys(targets)}
        if wanted.keys is not None or not old:
            raise InvalidInput("auto is the server's own key: it is rotated without keys, where models use it")
        new = [ring.make(AUTO).public_key]
        return [NewKeys(name, new) for name, one in delegated(targets).items() if old & set(one.keyids)]
    if role in ONLINE:
        if wanted.keys is not None:
            raise InvalidInput(f"{role} is signed by the server, at any hour: it is rotated without keys")
        return [NewKeys(role, [ring.make(role).public_key])]
    if role in TOP_LEVEL:
        if wanted.keys is None and not ring.signers(root.roles[role].keyids):
            raise InvalidInput(f"the keys of {role} are held by people: name the new ones")
        return [_checked(wanted) if wanted.keys is not None else NewKeys(role, [ring.make(role).public_key])]
    model = role.removeprefix(MODEL_PREFIX)
    if role != role_of_model(model):
        raise InvalidInput(f"there is no role {role!r}; it is one of {', '.join(TOP_LEVEL)}, auto, or m.<model>")
    if wanted.keys is not None:
        return [_checked(wanted)]
    if not signs_alone(model):
        raise InvalidInput(
            f"the server may not sign for {model} by itself (SPRAT_AUTO_SIGN does not cover the name); name the keys "
            "of people"
        )
    return [NewKeys(role, auto_keys(targets) or [ring.first(AUTO).public_key])]


def give(delegator: Root | Targets, wanted: NewKeys) -> None:
    """Replace the keys of a role; the role of a model is delegated if it is new."""
    if isinstance(delegator, Targets):
        if delegator.delegations is None or delegator.delegations.roles is None:
            raise KeysUnusable("the targets metadata in the database delegate nothing; restore the database")
        if wanted.role not in delegator.delegations.roles:
            paths = paths_of_model(wanted.role.removeprefix(MODEL_PREFIX))
            delegator.delegations.roles[wanted.role] = DelegatedRole(wanted.role, [], 1, terminating=True, paths=paths)
        role: Role = delegator.delegations.roles[wanted.role]
    else:
        role = delegator.roles[wanted.role]
    for keyid in list(role.keyids):
        delegator.revoke_key(keyid, wanted.role)
    for key in wanted.keys or ():
        delegator.add_key(key, wanted.role)
    role.threshold = wanted.threshold


def _checked(wanted: NewKeys) -> NewKeys:
    keys = {key.keyid: key for key in wanted.keys or ()}
    if not 1 <= wanted.threshold <= len(keys):
        raise InvalidInput(f"a threshold of {wanted.threshold} cannot be met by {len(keys)} different keys")
    if len({str(key.to_dict().get("keyval")) for key in keys.values()}) < len(keys):
        raise InvalidInput("one key stands among them under two ids; whoever holds it would count twice")
    own = next((keyid for keyid, key in keys.items() if holder_of(key) == SERVER), None)
    if own is not None:
        raise InvalidInput(f"key {own[:12]} is held by the server; it is not given to a role by name")
    return NewKeys(wanted.role, list(keys.values()), wanted.threshold)
