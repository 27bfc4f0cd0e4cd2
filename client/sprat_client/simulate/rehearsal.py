"""A rollout rehearsed on a played fleet: everybody to the base, then the release, with what is wrong with it."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sprat_client.api import SpratClient
from sprat_client.simulate.behaviour import TROUBLES
from sprat_client.simulate.fleet import PlayedFleet
from sprat_shared.errors import NotFound, SpratError, TryLater
from sprat_shared.ids import new_id

if TYPE_CHECKING:
    from sprat_client.api import RolloutView

_LOOK_EVERY_S: Final = 0.5
_TOKEN_S: Final = 3600
_TOLD: Final = 5  # of what is wrong
_ENDS: Final = frozenset({"succeeded", "halted", "aborted"})


class RehearsalFailed(SpratError):
    """A rehearsed rollout did not end as it must, or left a device where it must not be."""

    code = "simulate.failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is rehearsed.

    Attributes:
        model: its name.
        base: the release that all devices have first.
        release: the one that is rolled out.
        trouble: what is wrong with it, a name of `behaviour.TROUBLES`.
        devices: how many.
        sites: over how many groups they are spread.
        seed: of everything that is left to chance.
        interval_s: between two polls of a device.
        silence_s: after which a device that says nothing counts as lost.
        held_s: after which a rollout halts whose gate has heard everyone and decides nothing.
        patience_s: without a change of the rollout, before it counts as held.
        waves: cumulative counts or percents; None: the server's default.
    """

    model: str
    base: int
    release: int
    trouble: str = "none"
    devices: int = 1000
    sites: int = 5
    seed: int = 7
    interval_s: float = 2.0
    silence_s: float = 20.0
    held_s: float = 20.0
    patience_s: float = 120.0
    waves: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """What came of it.

    Attributes:
        rollout: its id.
        state: how it ended; `held`: it waited for a person, and was aborted.
        reason: why, in the server's words.
        devices: of the fleet.
        exposed: devices that were offered the release.
        committed: of these, those that kept it at that moment.
        seconds: from its start to its end.
        back_seconds: from the end until the last device was back on the base; None where nobody had to go.
        polls: answered, in all.
        declined: devices that would not have it, by their own test of holdout and trial.
        serving: how many devices serve which release at the end; those that fell silent are left out.
        silent: devices that fell silent.
    """

    rollout: str
    state: str
    reason: str | None
    devices: int
    exposed: int
    committed: int
    seconds: float
    back_seconds: float | None
    polls: int
    declined: int
    serving: Mapping[str, int]
    silent: int

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


def rehearse(
    client: SpratClient,
    server_url: str,
    plan: Plan,
    tell: Callable[[str], None] = lambda _: None,
    *,
    keep_devices: bool = False,
) -> Rehearsed:
    """Play a fleet through a rollout, and check where every device is at its end.

    Args:
        client: an operator's.
        server_url: of the same server.
        plan: what.
        tell: is told what happens.
        keep_devices: leave the played devices in the fleet; else they are decommissioned.

    Raises:
        NotFound: the plan names no kind of trouble.
        TryLater: a release without trouble is held: nothing changed for as long as the plan's patience.
        RehearsalFailed: a release without trouble did not reach all that would have it, one with trouble was neither
            halted nor held, or a device is not where it should be, or was told the same twice.
    """
    if plan.trouble not in TROUBLES:
        raise NotFound(f"trouble {plan.trouble!r} is not known; {', '.join(TROUBLES)} are", code="simulate.unknown")
    run = new_id().hex[-8:]
    names = [f"played-{run}-{at:05d}" for at in range(plan.devices)]
    troubles = {plan.release: TROUBLES[plan.trouble]}
    with PlayedFleet(
        server_url, plan.model, names, seed=plan.seed, troubles=troubles, interval_s=plan.interval_s
    ) as fleet:
        try:
            return _on(fleet, client, plan, run, tell)
        finally:
            if not keep_devices:
                for device in fleet.devices:
                    if device.id is not None:
                        client.devices.decommission(str(device.id), reason=f"rehearsal {run} is over")


def _on(fleet: PlayedFleet, client: SpratClient, plan: Plan, run: str, tell: Callable[[str], None]) -> Rehearsed:
    tokens = [
        client.enrolment_tokens.create(
            uses=len(range(site, plan.devices, plan.sites)), expires_s=_TOKEN_S, group=f"played-site-{site + 1}"
        )["token"]
        for site in range(min(plan.sites, plan.devices))
    ]
    fleet.join(lambda at: tokens[at % len(tokens)])
    ids = [str(device.id) for device in fleet.devices]
    tell(f"{len(ids)} devices joined as played-{run}-*")
    fleet.start()
    everybody = ("100%",)
    base, _ = _roll(client, plan, plan.base, ids, waves=everybody, rule="first_failure", tell=tell)
    if base["state"] != "succeeded":
        raise RehearsalFailed(f"{plan.model}@{plan.base} did not reach the devices: {base['state']}, {base['reason']}")
    begun = time.monotonic()
    ended, was_held = _roll(client, plan, plan.release, ids, waves=plan.waves, rule="evidence", tell=tell)
    seconds = time.monotonic() - begun
    wished = plan.release if ended["state"] == "succeeded" else plan.base
    back_seconds = _wait_until_all_settle(fleet, wished, plan.patience_s)
    parts = [part for part in client.rollouts.devices(ended["id"]) if part["wave"] is not None]
    exposed = [part for part in parts if part["state"] in {"exposed", "committed", "failed"}]
    done = Rehearsed(
        rollout=ended["id"],
        state="held" if was_held else ended["state"],
        reason=ended["reason"],
        devices=len(ids),
        exposed=len(exposed),
        committed=sum(part["state"] == "committed" for part in parts),
        seconds=round(seconds, 1),
        back_seconds=None if wished == plan.release else round(back_seconds, 1),
        polls=sum(device.polls for device in fleet.devices),
        declined=sum(device.declined == plan.release for device in fleet.devices),
        serving={str(number): count for number, count in sorted(fleet.serving().items(), key=str)},
        silent=sum(device.is_silent for device in fleet.devices),
    )
    _check(fleet, client, plan, done, [part["device"] for part in parts])
    return done


def _roll(
    client: SpratClient,
    plan: Plan,
    number: int,
    ids: list[str],
    *,
    waves: tuple[str, ...] | None,
    rule: str,
    tell: Callable[[str], None],
) -> "tuple[RolloutView, bool]":
    """Make and start a rollout to the played devices; return it at its end, and whether it was held and aborted."""
    gates = {"rule": rule, "silence_s": plan.silence_s, "held_s": plan.held_s}
    made = client.rollouts.create(plan.model, number, waves=waves, devices=ids, gates=gates, rehearsal=True)
    rollout = client.rollouts.start(made["id"], reason="a rehearsal with played devices")
    changed, seen, was_held = time.monotonic(), "", False
    while rollout["state"] not in _ENDS:
        time.sleep(_LOOK_EVERY_S)
        rollout = client.rollouts.get(made["id"])
        states = sum((Counter(wave["states"]) for wave in rollout["waves"]), Counter[str]())
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        now = f"{plan.model}@{number} {rollout['state']}: {counts}"
        if now != seen:
            changed, seen = time.monotonic(), now
            tell(now)
        elif time.monotonic() - changed > plan.patience_s:
            held = f"{now}: nothing has changed for {plan.patience_s:g} s"
            if plan.trouble == "none":
                raise TryLater(f"{held}; see sprat rollout why {made['id']}")
            rollout, was_held = client.rollouts.abort(made["id"], reason=held), True
    return rollout, was_held


def _wait_until_all_settle(fleet: PlayedFleet, release: int, patience_s: float) -> float:
    """Wait until every device that can speak said that it serves a release, or patience ends; return the seconds."""
    begun = time.monotonic()
    while not all(device.has_settled_on(release) for device in fleet.devices) and not fleet.failed:
        if time.monotonic() - begun > patience_s:
            break
        time.sleep(_LOOK_EVERY_S / 5)
    return time.monotonic() - begun


def _check(fleet: PlayedFleet, client: SpratClient, plan: Plan, done: Rehearsed, placed: list[str]) -> None:
    """Raise what is wrong with how it ended: by what the server knows, and by what the devices did."""
    good = plan.trouble == "none"
    wished, wrong = plan.release if good else plan.base, []
    if good is not (done.state == "succeeded"):
        wrong.append(f"it {done.state}: {done.reason}")
    if sorted(placed) != sorted(str(device.id) for device in fleet.devices):
        wrong.append(
            f"{len(placed)} places in waves for {len(fleet.devices)} devices, {len(set(placed))} of them named"
        )
    wrong += [f"{name}: {bad}" for name, bad in fleet.failed.items()]
    heard = {str(device.id): device for device in fleet.devices if not device.is_silent}
    astray = [device for device in heard.values() if not device.is_where(wished)]
    wrong += [f"{device.name} serves {device.active}, where it should serve {wished}" for device in astray]
    digests = {device.active for device in heard.values()}
    if len(digests) != len({None if held is None else held.release for held in digests}):
        wrong.append(f"one release has several digests: {digests}")
    wrong += [
        f"{device.name} acted on assignments {device.acted}"
        for device in fleet.devices
        if device.acted != sorted(set(device.acted))
    ]
    for known in client.devices.list():
        said = [(one["active"], one["weights"]) for one in known["models"] if one["model"] == plan.model]
        device = heard.get(known["id"])
        if device is not None and said != [(held.release, held.weights) for held in (device.active,) if held]:
            wrong.append(f"the server takes {device.name} to serve {said}, which serves {device.active}")
    if wrong:
        more = f" and {len(wrong) - _TOLD} things more" if len(wrong) > _TOLD else ""
        said_all = "; ".join(wrong[:_TOLD]) + more
        raise RehearsalFailed(f"rollout {done.rollout} of {plan.model}@{plan.release}: {said_all}")
