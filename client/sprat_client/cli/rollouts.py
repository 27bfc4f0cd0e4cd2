"""`sprat rollout`: bring devices to a release, wave by wave."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_table
from sprat_client.cli.reasons import read_gates, why_text
from sprat_client.cli.releases import split_release
from sprat_client.cli.watching import bar, leaves_going, rollout_line
from sprat_shared.errors import SpratError

if TYPE_CHECKING:
    from sprat_client.api import RolloutView, SpratClient

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Rollouts: bring devices to a release in waves.")

Rollout = Annotated[str, typer.Argument(help="Rollout id, or a unique start or end of one.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit log.")]
Watch = Annotated[bool, typer.Option("--watch", help="Wait for the end, with progress.")]


class RolloutStopped(SpratError):
    """A watched rollout ended without bringing all devices to its release."""

    code = "rollout.stopped"


@app.command()
def create(
    ctx: typer.Context,
    *,
    release: Annotated[str, typer.Argument(help="model@number.")],
    waves: Annotated[
        str, typer.Option(help="Cumulative counts or percents of the devices, with commas.")
    ] = "1,10%,100%",
    device: Annotated[
        list[str] | None, typer.Option(help="Only this device (name or id); may be repeated.  [default: all]")
    ] = None,
    gates: Annotated[
        Path | None,
        typer.Option(help="JSON file: rule, silence_s and policy of the gate.  [default: evidence from 100 devices]"),
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    watch: Watch = False,
    json_: JsonFlag = False,
) -> None:
    """Plan a rollout of a release; it is a draft until it is started.

    Example: sprat rollout create digits@2 --waves 1,100% --start --watch
    """
    name, number = split_release(release, None)
    with connect(ctx) as client:
        devices = None if not device else [client.devices.resolve(one) for one in device]
        reaches = [wave.strip() for wave in waves.split(",")]
        plan = None if gates is None else read_gates(gates)
        made = client.rollouts.create(name, number, waves=reaches, devices=devices, gates=plan)
        if start or watch:
            made = client.rollouts.start(made["id"])
        _finish(client, made, watch=watch, as_json=json_)


@app.command()
def prefetch(
    ctx: typer.Context,
    *,
    rollout: Rollout,
    watch: Annotated[bool, typer.Option("--watch", help="Wait until the devices have it.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Have the devices of a draft fetch its release now; it serves nowhere before the rollout is started.

    Starting it then takes no further payload byte. Asked again, it reaches devices that joined since or failed.

    Example: sprat rollout prefetch 0198c0de --watch
    """
    with connect(ctx) as client:
        asked = client.rollouts.prefetch(client.rollouts.resolve(rollout))
        _finish(client, asked, watch=watch, ahead=True, as_json=json_)


@app.command("start")
def start_(ctx: typer.Context, *, rollout: Rollout, watch: Watch = False, json_: JsonFlag = False) -> None:
    """Start a draft: its first wave opens.

    Example: sprat rollout start 0198c0de --watch
    """
    with connect(ctx) as client:
        started = client.rollouts.start(client.rollouts.resolve(rollout))
        _finish(client, started, watch=watch, as_json=json_)


@app.command()
def pause(
    ctx: typer.Context, *, rollout: Rollout, reason: Reason = "paused by an operator", json_: JsonFlag = False
) -> None:
    """Open no further wave until the rollout is resumed.

    Example: sprat rollout pause 0198c0de --reason "waiting for the night shift"
    """
    with connect(ctx) as client:
        paused = client.rollouts.pause(client.rollouts.resolve(rollout), reason=reason)
    emit(paused, as_json=json_, text=rollout_line(paused))


@app.command()
def resume(
    ctx: typer.Context, *, rollout: Rollout, reason: Reason = "resumed by an operator", json_: JsonFlag = False
) -> None:
    """Go on after a pause.

    Example: sprat rollout resume 0198c0de
    """
    with connect(ctx) as client:
        resumed = client.rollouts.resume(client.rollouts.resolve(rollout), reason=reason)
    emit(resumed, as_json=json_, text=rollout_line(resumed))


@app.command()
def promote(ctx: typer.Context, *, rollout: Rollout, reason: Reason, json_: JsonFlag = False) -> None:
    """Open the next wave on your word, where the gate holds it; proof of harm still halts the rollout.

    Example: sprat rollout promote 0198c0de --reason "the line was checked by hand"
    """
    with connect(ctx) as client:
        promoted = client.rollouts.promote(client.rollouts.resolve(rollout), reason=reason)
    emit(promoted, as_json=json_, text=rollout_line(promoted))


@app.command()
def abort(ctx: typer.Context, *, rollout: Rollout, reason: Reason, json_: JsonFlag = False) -> None:
    """End a rollout; devices that got the release go back to the one they had.

    Example: sprat rollout abort 0198c0de --reason "wrong dataset"
    """
    with connect(ctx) as client:
        aborted = client.rollouts.abort(client.rollouts.resolve(rollout), reason=reason)
    emit(aborted, as_json=json_, text=rollout_line(aborted))


@app.command()
def status(ctx: typer.Context, *, rollout: Rollout, watch: Watch = False, json_: JsonFlag = False) -> None:
    """Show a rollout: its state, its waves, and why it stopped if it did.

    Example: sprat rollout status 0198c0de --watch
    """
    with connect(ctx) as client:
        found = client.rollouts.get(client.rollouts.resolve(rollout))
        _finish(client, found, watch=watch, as_json=json_)


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
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the rollouts.

    Example: sprat rollout list
    """
    with connect(ctx) as client:
        rollouts = client.rollouts.list()
    columns = {
        "rollout": lambda one: one["id"],
        "release": lambda one: f"{one['model']}@{one['release']}",
        "state": lambda one: one["state"],
        "reason": lambda one: one["reason"],
        "since": lambda one: one["created_at"],
    }
    emit_table(rollouts, columns, as_json=json_, empty="no rollout yet; see: sprat rollout create --help")


def _finish(client: "SpratClient", rollout: "RolloutView", *, watch: bool, as_json: bool, ahead: bool = False) -> None:
    """Print the rollout as it is, or follow it to its end first, or until its release is fetched ahead.

    Raises:
        RolloutStopped: it was followed, and halted or was aborted.
    """
    if watch:
        see = f"sprat rollout status {rollout['id']} --watch"
        with (
            bar(f"rollout {rollout['model']}@{rollout['release']}") as show,
            leaves_going(f"rollout {rollout['id']}", see),
        ):
            for now in client.rollouts.follow(rollout["id"], ahead=ahead):
                rollout = now
                done = now["ready"] if ahead else sum(wave["state"] == "succeeded" for wave in now["waves"])
                show(done / max(now["prefetched"] if ahead else len(now["waves"]), 1), rollout_line(now))
    emit(rollout, as_json=as_json, text=f"{rollout['id']}  {rollout_line(rollout)}")
    if watch and rollout["state"] in {"halted", "aborted"}:
        raise RolloutStopped(
            f"rollout {rollout['id']} {rollout['state']}: {rollout['reason']}",
            code=f"rollout.{rollout['state']}",
        )
