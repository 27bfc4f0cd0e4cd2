"""`sprat simulate`: rehearse a rollout on a fleet that is only played."""

from typing import TYPE_CHECKING, Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect, server_of
from sprat_client.cli.output import emit
from sprat_client.cli.releases import split_release

if TYPE_CHECKING:
    from sprat_client.simulate.rehearsal import Rehearsed

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Rehearsals: rollouts to devices that are only played."
)


@app.callback()
def simulate() -> None:
    """Rehearsals: rollouts to devices that are only played."""


@app.command()
def fleet(
    ctx: typer.Context,
    *,
    release: Annotated[str, typer.Argument(help="model@number: what is rolled out.")],
    base: Annotated[
        int | None, typer.Option(help="The release that the devices have first.  [default: the one before]")
    ] = None,
    trouble: Annotated[
        str,
        typer.Option(help="What is wrong with it: none, worse, worse-on-one-profile, crashes, silence or slow."),
    ] = "none",
    devices: Annotated[int, typer.Option(min=1, max=100_000, help="How many devices are played.")] = 1000,
    sites: Annotated[int, typer.Option(min=1, help="Groups over which they are spread.")] = 5,
    seed: Annotated[int, typer.Option(help="Of everything that is left to chance.")] = 7,
    waves: Annotated[
        str | None, typer.Option(help="Cumulative counts or percents of the devices, with commas.")
    ] = None,
    interval_s: Annotated[float, typer.Option(min=0.01, help="Seconds between two polls of a device.")] = 2.0,
    silence_s: Annotated[float, typer.Option(min=1, help="Seconds after which a silent device counts as lost.")] = 20.0,
    held_s: Annotated[
        float, typer.Option(min=1, help="Seconds after which a rollout halts that is held with nobody left to hear.")
    ] = 20.0,
    patience_s: Annotated[
        float, typer.Option(min=1, help="Seconds without a change before it counts as held.")
    ] = 120.0,
    keep_devices: Annotated[
        bool, typer.Option("--keep-devices", help="Leave the played devices in the fleet.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Play devices of your server through a rollout: would it stop a bad release, and how soon?

    The devices join, poll, report and sign as real ones do, fetch nothing, and leave at the end. No other device is
    touched. It ends with 1 where a release without trouble does not reach all, one with trouble is neither halted
    nor held, or a device does not go back to the release that it had.

    Example: sprat simulate fleet digits@2 --devices 1000 --trouble worse
    """
    from sprat_client.simulate.rehearsal import Plan, rehearse  # noqa: PLC0415 - what an agent needs, nobody else does

    name, number = split_release(release, None)
    plan = Plan(
        model=name,
        base=number - 1 if base is None else base,
        release=number,
        trouble=trouble,
        devices=devices,
        sites=sites,
        seed=seed,
        interval_s=interval_s,
        silence_s=silence_s,
        held_s=held_s,
        patience_s=patience_s,
        waves=None if waves is None else tuple(wave.strip() for wave in waves.split(",")),
    )
    with connect(ctx) as client:
        done = rehearse(
            client, server_of(ctx), plan, lambda line: typer.echo(line, err=True), keep_devices=keep_devices
        )
    emit(done.as_json(), as_json=json_, text=_text(done))


def _text(done: "Rehearsed") -> str:
    declined = f", {done.declined} declined it by their own tests" if done.declined else ""
    lines = [
        f"rollout {done.rollout}: {done.state}" + ("" if done.reason is None else f", {done.reason}"),
        f"{done.exposed} of {done.devices} devices were exposed, {done.committed} had it at the end{declined}",
        f"it took {done.seconds:g} s",
    ]
    if done.back_seconds is not None:
        lines.append(f"all were back on the release that they had {done.back_seconds:g} s later")
    if done.silent:
        lines.append(f"{done.silent} devices fell silent")
    return "\n".join(lines)
