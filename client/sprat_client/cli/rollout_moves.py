"""`sprat rollout start, pause, resume, …`: what moves a rollout. Every move has a reason, kept in the audit log."""

from typing import Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit
from sprat_client.cli.rollouts import Rollout, Watch, finish
from sprat_client.cli.watching import rollout_line

Reason = Annotated[str, typer.Option(help="Kept in the audit log.")]


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
        finish(client, asked, watch=watch, ahead=True, as_json=json_)


def approve(ctx: typer.Context, *, rollout: Rollout, reason: Reason, json_: JsonFlag = False) -> None:
    """Say that somebody else's draft may start.

    Example: sprat rollout approve 0198c0de --reason "the plan is right"
    """
    with connect(ctx) as client:
        approved = client.rollouts.approve(client.rollouts.resolve(rollout), reason=reason)
    emit(approved, as_json=json_, text=rollout_line(approved))


def start(
    ctx: typer.Context, *, rollout: Rollout, reason: Reason, watch: Watch = False, json_: JsonFlag = False
) -> None:
    """Start a draft: its first wave opens.

    Example: sprat rollout start 0198c0de --reason "the night shift is on" --watch
    """
    with connect(ctx) as client:
        started = client.rollouts.start(client.rollouts.resolve(rollout), reason=reason)
        finish(client, started, watch=watch, as_json=json_)


def pause(ctx: typer.Context, *, rollout: Rollout, reason: Reason, json_: JsonFlag = False) -> None:
    """Open no further wave until the rollout is resumed.

    Example: sprat rollout pause 0198c0de --reason "waiting for the night shift"
    """
    with connect(ctx) as client:
        paused = client.rollouts.pause(client.rollouts.resolve(rollout), reason=reason)
    emit(paused, as_json=json_, text=rollout_line(paused))


def resume(
    ctx: typer.Context,
    *,
    rollout: Rollout,
    reason: Reason,
    acknowledge: Annotated[
        bool,
        typer.Option("--acknowledge", help="The failures until now are not the release's: they do not halt again."),
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Go on after a pause, or after a halt for failures that you acknowledge. Measured harm cannot be acknowledged.

    Example: sprat rollout resume 0198c0de --acknowledge --reason "line 3 had a full disk"
    """
    with connect(ctx) as client:
        found = client.rollouts.resolve(rollout)
        resumed = client.rollouts.resume(found, reason=reason, acknowledge=acknowledge)
    emit(resumed, as_json=json_, text=rollout_line(resumed))


def promote(ctx: typer.Context, *, rollout: Rollout, reason: Reason, json_: JsonFlag = False) -> None:
    """Open the next wave on your word, where the gate holds it; proof of harm still halts the rollout.

    Example: sprat rollout promote 0198c0de --reason "the line was checked by hand"
    """
    with connect(ctx) as client:
        promoted = client.rollouts.promote(client.rollouts.resolve(rollout), reason=reason)
    emit(promoted, as_json=json_, text=rollout_line(promoted))


def abort(
    ctx: typer.Context,
    *,
    rollout: Rollout,
    reason: Reason,
    keep: Annotated[
        bool,
        typer.Option("--keep/--revert", help="Devices that have committed the release keep it, or all go back."),
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """End a rollout; devices that got the release go back to the one they had.

    Example: sprat rollout abort 0198c0de --reason "wrong dataset"
    """
    with connect(ctx) as client:
        aborted = client.rollouts.abort(client.rollouts.resolve(rollout), reason=reason, keep=keep)
    emit(aborted, as_json=json_, text=rollout_line(aborted))


def undo(ctx: typer.Context, *, rollout: Rollout, reason: Reason, json_: JsonFlag = False) -> None:
    """Bring devices back from a rollout that succeeded, or was aborted and kept, to what they had before it.

    Example: sprat rollout undo 0198c0de --reason "customers complain"
    """
    with connect(ctx) as client:
        undone = client.rollouts.undo(client.rollouts.resolve(rollout), reason=reason)
    emit(undone, as_json=json_, text=rollout_line(undone))


def add_to(app: typer.Typer) -> None:
    """Add the moves to the commands of rollouts."""
    for move in (prefetch, approve, start, pause, resume, promote, abort, undo):
        app.command()(move)
