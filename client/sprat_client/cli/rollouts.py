"""`sprat rollout`: bring devices to a release, wave by wave. What moves one is in `rollout_moves`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprat_client.cli.apply import located
from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_table
from sprat_client.cli.quantities import parse_growth, parse_window
from sprat_client.cli.reasons import read_gates, why_text
from sprat_client.cli.releases import split_release
from sprat_client.cli.rollout_files import read_rollouts
from sprat_client.cli.rollout_plans import body_of, plan_text
from sprat_client.cli.watching import bar, leaves_going, rollout_line
from sprat_shared.errors import InvalidInput, SpratError

if TYPE_CHECKING:
    from sprat_client.api import RolloutView, SpratClient

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Rollouts: bring devices to a release in waves.")

Rollout = Annotated[str, typer.Argument(help="Rollout id, a unique start or end of one, or its name.")]
Watch = Annotated[bool, typer.Option("--watch", help="Wait for the end, with progress.")]
ReleaseArgument = Annotated[str, typer.Argument(help="model@number.")]
Waves = Annotated[
    str | None,
    typer.Option(
        help="Cumulative counts or percents of the devices, or labels, with commas: ring=canary,10%,100%.  "
        "[default: they double, from 10 or a tenth]"
    ),
]
Grow = Annotated[str | None, typer.Option(help="Factor by which waves grow until they reach everyone, such as 2.")]
From = Annotated[int | None, typer.Option("--from", help="Devices of the first wave that grows.")]
OnlyDevice = Annotated[
    list[str] | None, typer.Option(help="Only this device (name or id); may be repeated.  [default: all]")
]
WhereOption = Annotated[
    str | None, typer.Option(help="The devices for which this filter holds when it starts (docs/targeting.md).")
]
GroupOption = Annotated[str | None, typer.Option(help="The devices of this saved group when it starts.")]
Gates = Annotated[
    Path | None,
    typer.Option(help="JSON file of its gate: rule, silence_s, held_s, policy.  [default: evidence from 100 devices]"),
]
Control = Annotated[str | None, typer.Option(help="Share of the devices that is held back to compare with: 5%.")]
InFlight = Annotated[int | None, typer.Option(help="Most devices that may be at work on it at a time.")]
Windows = Annotated[
    list[str] | None,
    typer.Option(help="Devices get it only in this part of the day (UTC): 22:00-05:00; repeatable."),
]
Retry = Annotated[
    list[str] | None,
    typer.Option(help="How often a failure is tried again before it counts: link=3, disk=2 or busy=2; repeatable."),
]
Approvals = Annotated[int | None, typer.Option(help="Other people who must approve it before it starts.")]
StartAt = Annotated[str | None, typer.Option(help="It starts by itself then: 2027-01-11T22:00:00Z.")]
Supersede = Annotated[
    bool, typer.Option("--supersede", help="A running rollout of the model ends when this one starts.")
]
OverrideQuarantine = Annotated[
    str | None, typer.Option(help="Why a release that was halted may go out again; kept in the audit log.")
]
Name = Annotated[str | None, typer.Option(help="What to call it.")]


class RolloutStopped(SpratError):
    """A watched rollout ended without bringing all devices to its release."""

    code = "rollout.stopped"


@app.command()
def plan(
    ctx: typer.Context,
    *,
    release: ReleaseArgument,
    waves: Waves = None,
    grow: Grow = None,
    first: From = None,
    device: OnlyDevice = None,
    where: WhereOption = None,
    group: GroupOption = None,
    gates: Gates = None,
    control: Control = None,
    in_flight: InFlight = None,
    window: Windows = None,
    retry: Retry = None,
    approvals: Approvals = None,
    start_at: StartAt = None,
    supersede: Supersede = False,
    override_quarantine: OverrideQuarantine = None,
    name: Name = None,
    json_: JsonFlag = False,
) -> None:
    """Show what a rollout would be: its waves, when it starts, what its gate would ask. Nothing is kept.

    Example: sprat rollout plan digits@2 --grow 3 --from 20 --control 5%
    """
    with connect(ctx) as client:
        wanted = _wanted(
            client,
            release,
            waves=waves,
            grow=grow,
            first=first,
            device=device,
            where=where,
            group=group,
            gates=gates,
            control=control,
            in_flight=in_flight,
            window=window,
            retry=retry,
            approvals=approvals,
            start_at=start_at,
            supersede=supersede,
            override_quarantine=override_quarantine,
            name=name,
        )
        said = client.rollouts.plan(wanted)
    emit(said, as_json=json_, text=plan_text(said))


@app.command()
def create(
    ctx: typer.Context,
    *,
    release: ReleaseArgument,
    waves: Waves = None,
    grow: Grow = None,
    first: From = None,
    device: OnlyDevice = None,
    where: WhereOption = None,
    group: GroupOption = None,
    gates: Gates = None,
    control: Control = None,
    in_flight: InFlight = None,
    window: Windows = None,
    retry: Retry = None,
    approvals: Approvals = None,
    start_at: StartAt = None,
    supersede: Supersede = False,
    override_quarantine: OverrideQuarantine = None,
    name: Name = None,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    reason: Annotated[str, typer.Option(help="Why it is started; kept in the audit log.")] = "started as it was made",
    watch: Watch = False,
    json_: JsonFlag = False,
) -> None:
    """Plan a rollout of a release; it is a draft until it is started.

    Example: sprat rollout create digits@2 --waves 1,100% --start --watch
    """
    with connect(ctx) as client:
        wanted = _wanted(
            client,
            release,
            waves=waves,
            grow=grow,
            first=first,
            device=device,
            where=where,
            group=group,
            gates=gates,
            control=control,
            in_flight=in_flight,
            window=window,
            retry=retry,
            approvals=approvals,
            start_at=start_at,
            supersede=supersede,
            override_quarantine=override_quarantine,
            name=name,
        )
        made = client.rollouts.create(wanted.pop("model"), wanted.pop("release"), **wanted)
        if start or (watch and made["start_at"] is None):
            made = client.rollouts.start(made["id"], reason=reason)
        finish(client, made, watch=watch, as_json=json_)


@app.command()
def lint(
    ctx: typer.Context,
    *,
    file: Annotated[list[Path], typer.Argument(help="YAML or JSON, one rollout a document.")],
    offline: Annotated[bool, typer.Option("--offline", help="Check the form only; ask no server.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Check files of rollouts: their form, and with a server whether they could be made. Nothing is kept.

    Example: sprat rollout lint rollout.yaml --offline
    """
    rollouts = [one for path in file for one in read_rollouts(path)]
    for one in rollouts:
        obstacles: list[str] = []
        if not offline:
            with connect(ctx) as client:
                try:
                    obstacles = client.rollouts.plan(body_of(client, one.wanted))["obstacles"]
                except InvalidInput as bad:
                    raise located(one, bad) from bad
        said = {"file": one.source, "line": one.lines[""], "rollout": one.title, "obstacles": obstacles}
        text = "".join(f"\n  in the way: {what}" for what in obstacles)
        emit(said, as_json=json_, text=f"{one.source}:{one.lines['']}: {one.title}: good{text}")


@app.command("get")
def get_(ctx: typer.Context, *, rollout: Rollout, watch: Watch = False, json_: JsonFlag = False) -> None:
    """Show a rollout: its state, its waves, what it waits for, and why it stopped if it did.

    Example: sprat rollout get 0198c0de
    """
    with connect(ctx) as client:
        found = client.rollouts.get(client.rollouts.resolve(rollout))
        finish(client, found, watch=watch, as_json=json_)


@app.command()
def status(ctx: typer.Context, *, rollout: Rollout, watch: Watch = False, json_: JsonFlag = False) -> None:
    """Show a rollout, as `get` does.

    Example: sprat rollout status 0198c0de --watch
    """
    get_(ctx, rollout=rollout, watch=watch, json_=json_)


@app.command()
def watch(ctx: typer.Context, *, rollout: Rollout, json_: JsonFlag = False) -> None:
    """Follow a rollout to its end; with --json, a line for each change.

    Example: sprat rollout watch 0198c0de
    """
    with connect(ctx) as client:
        found = client.rollouts.get(client.rollouts.resolve(rollout))
        finish(client, found, watch=True, each=json_, as_json=json_)


@app.command()
def why(
    ctx: typer.Context,
    *,
    rollout: Rollout,
    policy: Annotated[
        Path | None, typer.Option(help="JSON file with another policy: what would that gate have said?")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Say why a rollout goes on, waits or halted: the evidence, the thresholds, and what would change it.

    Example: sprat rollout why 0198c0de --policy stricter.json
    """
    other = None if policy is None else read_gates(policy)
    with connect(ctx) as client:
        said = client.rollouts.why(client.rollouts.resolve(rollout), policy=other)
    emit(said, as_json=json_, text=why_text(said, imagined=other is not None))


@app.command("list")
def list_(
    ctx: typer.Context,
    *,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, such as running or halted.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List the rollouts, newest first.

    Example: sprat rollout list --model pcb-defects --state halted
    """
    with connect(ctx) as client:
        rollouts = client.rollouts.list(model=model, state=state, limit=limit)
    columns = {
        "rollout": lambda one: one["id"],
        "name": lambda one: one["name"],
        "release": lambda one: f"{one['model']}@{one['release']}",
        "state": lambda one: one["state"],
        "reason": lambda one: one["reason"],
        "since": lambda one: one["created_at"],
    }
    emit_table(rollouts, columns, as_json=json_, empty="no rollout yet; see: sprat rollout create --help")


@app.command()
def devices(
    ctx: typer.Context,
    *,
    rollout: Rollout,
    wave: Annotated[int | None, typer.Option(min=1, help="Only of this wave.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, such as failed or exposed.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List the devices of a rollout and how far each is, the first waves first.

    Example: sprat rollout devices 0198c0de --state failed
    """
    with connect(ctx) as client:
        found = client.rollouts.resolve(rollout)
        parts = list(client.rollouts.devices(found, wave=wave, state=state, limit=limit))
    columns = {
        "device": lambda one: one["device"],
        "name": lambda one: one["name"],
        "wave": lambda one: one["wave"],
        "state": lambda one: one["state"] + (f" ({one['failure']})" if one["failure"] else ""),
        "had": lambda one: one["previous"],
        "asked again": lambda one: one["retry_at"],
    }
    emit_table(parts, columns, as_json=json_, empty="no device is in it")


def finish(
    client: "SpratClient",
    rollout: "RolloutView",
    *,
    watch: bool,
    as_json: bool,
    ahead: bool = False,
    each: bool = False,
) -> None:
    """Print the rollout as it is, or follow it to its end first, or until its release is fetched ahead.

    Args:
        client: of the server.
        rollout: as it is.
        watch: whether to follow it.
        as_json: print it as JSON.
        ahead: follow it until its release is fetched ahead.
        each: print it at each change.

    Raises:
        RolloutStopped: it was followed, and halted or was aborted.
    """
    if watch:
        see = f"sprat rollout watch {rollout['id']}"
        with (
            bar(f"rollout {rollout['model']}@{rollout['release']}") as show,
            leaves_going(f"rollout {rollout['id']}", see),
        ):
            for now in client.rollouts.follow(rollout["id"], ahead=ahead):
                rollout = now
                done = now["ready"] if ahead else sum(wave["state"] == "succeeded" for wave in now["waves"])
                show(done / max(now["prefetched"] if ahead else len(now["waves"]), 1), rollout_line(now))
                if each:
                    emit(now, as_json=True, text="")
    if not each:
        emit(rollout, as_json=as_json, text=f"{rollout['id']}  {rollout_line(rollout)}")
    if watch and rollout["state"] in {"halted", "aborted", "undone"}:
        raise RolloutStopped(
            f"rollout {rollout['id']} {rollout['state']}: {rollout['reason']}",
            code=f"rollout.{rollout['state']}",
        )


def _wanted(client: "SpratClient", release: str, **said: Any) -> dict[str, Any]:
    """Return the body that options ask for; what is not said is left out."""
    model, number = split_release(release, None)
    if said["waves"] is not None and (said["grow"] is not None or said["first"] is not None):
        raise InvalidInput("say either --waves, or --grow and --from")
    growth = None
    if said["grow"] is not None or said["first"] is not None:
        growth = {"factor": 2.0 if said["grow"] is None else parse_growth(said["grow"]), "from": said["first"]}
    return body_of(
        client,
        {
            "model": model,
            "release": number,
            "waves": None if said["waves"] is None else [wave.strip() for wave in said["waves"].split(",")],
            "grow": growth,
            "devices": said["device"] or None,
            "where": said["where"],
            "group": said["group"],
            "gates": None if said["gates"] is None else read_gates(said["gates"]),
            "control": said["control"],
            "in_flight": said["in_flight"],
            "windows": [parse_window(one) for one in said["window"] or ()] or None,
            "retries": dict(_retry(one) for one in said["retry"] or ()) or None,
            "approvals": said["approvals"],
            "start_at": said["start_at"],
            "supersede": said["supersede"] or None,
            "override_quarantine": said["override_quarantine"],
            "name": said["name"],
        },
    )


def _retry(text: str) -> tuple[str, int]:
    failure, _, count = text.partition("=")
    if not count.isascii() or not count.isdigit():
        raise InvalidInput(f"--retry {text!r}: write a class of failures and how often, such as link=3")
    return failure.strip(), int(count)
