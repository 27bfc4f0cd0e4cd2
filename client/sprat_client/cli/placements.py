"""`sprat placement`: which module would run on which device of a site."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import aligned, emit, size
from sprat_client.cli.site_files import read_site
from sprat_client.cli.watching import NoWait, finish
from sprat_shared.errors import InvalidInput

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Placements: which module of which task runs on which device of a site, with proof (docs/placement.md).",
)


@app.command()
def plan(
    ctx: typer.Context,
    *,
    site: Annotated[Path, typer.Argument(help="YAML or JSON: devices, modules, tasks.")],
    seconds: Annotated[float | None, typer.Option(help="What the solver may take.  [default: 30]")] = None,
    replicas: Annotated[int | None, typer.Option(help="Devices that may hold the same module.  [default: 1]")] = None,
    survive_one: Annotated[
        bool,
        typer.Option("--survive-one", help="Whichever one device is lost, the others can answer."),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="What binds, and what one more device or 2 GB would give.")
    ] = False,
    no_wait: NoWait = False,
    json_: JsonFlag = False,
) -> None:
    """Place the modules of a site, and say how far from the best that can be; nothing is sent to devices.

    Ends with 1 where no plan was found.

    Example: sprat placement plan site.yaml --explain
    """
    read = read_site(site)
    wanted = read.wanted | ({"explain": True} if explain else {}) | ({"survives_one": True} if survive_one else {})
    wanted |= {} if seconds is None else {"seconds": seconds}
    wanted |= {} if replicas is None else {"replicas": replicas}
    with connect(ctx) as client:
        try:
            job = client.placements.plan(wanted)
        except InvalidInput as bad:
            raise InvalidInput(read.located(bad), code=bad.code) from bad
        job = finish(client, job, no_wait=no_wait)
    found = job["result"] or {}
    text = f"job {job['id']}" if no_wait else "\n".join(_told(found, explain=explain))
    emit(job if no_wait else found, as_json=json_, text=text)
    if not no_wait and found.get("hosts") is None:
        raise typer.Exit(1)


def _told(found: dict[str, Any], *, explain: bool) -> Iterator[str]:
    if found["hosts"] is None:
        yield {
            "infeasible": "there is no plan: the modules do not fit the devices, or would keep them too busy",
            "nothing": "no plan was found in the time; none is proven impossible, so give it more --seconds",
        }[found["proven"]]
    else:
        yield _proof(found)
        yield from aligned([["module", "on"], *([name, ", ".join(on)] for name, on in found["hosts"].items())])
        yield from aligned([["task", "latency", "its longest way"], *(_task(one) for one in found["tasks"])])
        rows = [_device(one) for one in found["devices"]]
        yield from aligned([["device", "memory", "busy", "after a loss", ""], *rows])
    if explain:
        yield from _gains(found)


def _proof(found: dict[str, Any]) -> str:
    total = f"{1000 * found['total_s']:,.1f} ms of weighted latency"
    if found["proven"] == "optimal":
        return f"{total}; no plan is better"
    return f"{total}; no plan is below {1000 * found['bound_s']:,.1f} ms, so this one is within {found['gap']:.1%}"


def _task(one: dict[str, Any]) -> list[str]:
    way = " > ".join(f"{hop['node']} ({hop['device']})" for hop in one["way"])
    return [one["name"], f"{1000 * one['seconds']:,.1f} ms", way]


def _device(one: dict[str, Any]) -> list[str]:
    memory = f"{size(one['memory_bytes'])} ({one['memory']:.0%})"
    after = "" if one.get("busy_after") is None else f"{one['busy_after']:.0%} without {one['lost']}"
    return [one["device"], memory, f"{one['busy']:.0%}", after, "binds" if one["binds"] else ""]


def _gains(found: dict[str, Any]) -> Iterator[str]:
    if not found["what_if"]:
        yield "neither one more device of a kind that is there nor 2 GB more in one makes it better"
    for one in found["what_if"]:
        now = "" if found["hosts"] is None else f", {1 - one['total_s'] / found['total_s']:.1%} less"
        yield f"{one['what']}: {1000 * one['total_s']:,.1f} ms{now}"
