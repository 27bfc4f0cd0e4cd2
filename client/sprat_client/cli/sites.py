"""`sprat site`: devices that run tasks together, and the plans by which they do."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import aligned, emit, emit_table, size
from sprat_client.cli.quantities import parse_bytes
from sprat_client.cli.site_files import read_modules
from sprat_client.cli.site_measures import told_figures, told_measures
from sprat_client.cli.watching import finish
from sprat_shared.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from sprat_client.api.sites import SitePlanMemberView, SitePlanPreview, SitePlanView, SiteView

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Sites: devices that run tasks together by one signed plan (docs/site-plans.md).",
)

_SAID: Final = {"memory": "memory_bytes", "up": "up_mbit", "down": "down_mbit", "delay": "delay_ms", "utilisation": ""}
_SLIGHT: Final = 1e-6
_PLAN: Final = re.compile(r"([a-z0-9-]{1,63})/([1-9][0-9]{0,8})")

Name = Annotated[str, typer.Argument(help="Name of the site.")]
Plan = Annotated[str, typer.Argument(help="The plan: site/number, such as line-3/4.")]
Device = Annotated[
    list[str],
    typer.Option(
        help="A device by its name, with memory, up and down in Mbit/s, delay in ms and utilisation where they are "
        "known: camera:memory=400MB,up=20,delay=2.  [repeated]"
    ),
]
Hold = Annotated[float | None, typer.Option(help="Seconds until all must be ready for a plan.  [default: 3600]")]
Switch = Annotated[
    float | None, typer.Option(help="Seconds until nobody is awaited any more who is to serve.  [default: 600]")
]
Repair = Annotated[
    bool,
    typer.Option(
        "--auto-repair",
        help="Plan anew by itself as soon as a device that served leaves, and fully behind that where it pays.",
    ),
]
Pays = Annotated[
    float | None,
    typer.Option(
        "--pays-within-s",
        help="Seconds in which the full plan behind a repair must save requests more than its bytes cost.  "
        "[default: 86400]",
    ),
]
Uplink = Annotated[
    float | None, typer.Option(help="Mbit/s of the link over which all devices of the site fetch, if it is thin.")
]


@app.command()
def create(
    ctx: typer.Context,
    *,
    name: Name,
    device: Device,
    hold_s: Hold = None,
    switch_s: Switch = None,
    auto_repair: Repair = False,
    pays_within_s: Pays = None,
    uplink: Uplink = None,
    json_: JsonFlag = False,
) -> None:
    """Make a site of devices that joined.

    Example: sprat site create line-3 --device camera:memory=400MB,up=20 --device box
    """
    times = {"hold_s": hold_s, "switch_s": switch_s, "pays_within_s": pays_within_s}
    wanted = {"name": name, **_site(device, times, uplink, auto_repair=auto_repair)}
    with connect(ctx) as client:
        made = client.sites.create(wanted)
    emit(made, as_json=json_, text=_told_site(made))


@app.command()
def edit(
    ctx: typer.Context,
    *,
    name: Name,
    device: Device,
    hold_s: Hold = None,
    switch_s: Switch = None,
    auto_repair: Repair = False,
    pays_within_s: Pays = None,
    uplink: Uplink = None,
    json_: JsonFlag = False,
) -> None:
    """Say anew what a site is; its plans go on as they are, the next one is of these devices.

    Example: sprat site edit line-3 --device camera --device box --device desk
    """
    times = {"hold_s": hold_s, "switch_s": switch_s, "pays_within_s": pays_within_s}
    with connect(ctx) as client:
        edited = client.sites.edit(name, _site(device, times, uplink, auto_repair=auto_repair))
    emit(edited, as_json=json_, text=_told_site(edited))


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the sites.

    Example: sprat site list
    """
    with connect(ctx) as client:
        sites = client.sites.list()
    columns = {
        "site": lambda one: one["name"],
        "devices": lambda one: ", ".join(device["name"] for device in one["devices"]),
        "serving": lambda one: one["serving"],
        "under way": lambda one: one["under_way"],
    }
    emit_table(sites, columns, as_json=json_, empty="no site yet; see: sprat site create --help")


@app.command()
def show(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Show a site: its devices, and which plan serves.

    Example: sprat site show line-3
    """
    with connect(ctx) as client:
        found = client.sites.get(name)
    emit(found, as_json=json_, text=_told_site(found))


@app.command()
def measures(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Show what devices measured of modules and links, what other devices of their class did, and what is unknown.

    Example: sprat site measures line-3
    """
    with connect(ctx) as client:
        found = client.sites.measures(name)
    emit(found, as_json=json_, text="\n".join(told_measures(found)))


@app.command()
def delete(ctx: typer.Context, *, name: Name, json_: JsonFlag = False) -> None:
    """Delete a site: its devices serve by no plan any more; what they run of each model stays.

    Example: sprat site delete line-3
    """
    with connect(ctx) as client:
        gone = client.sites.delete(name)
    emit(gone, as_json=json_, text=f"site {name} is deleted")


@app.command()
def plan(
    ctx: typer.Context,
    *,
    name: Name,
    task: Annotated[list[str], typer.Option(help="A task of the plan.  [repeated]")],
    release: Annotated[
        list[str] | None, typer.Option(help="MODEL=NUMBER in the place of the model's newest.  [repeated]")
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option(help="Put a module by hand: MODEL=DEVICE,DEVICE, the first is asked first.  [repeated]"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="YAML or JSON with `modules`, their memory and seconds, instead of what devices measured."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="DEVICE,DEVICE that modules may be placed on.  [default: all that others can reach]  [repeated]"
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(help="TASK=DEVICE,DEVICE at which applications ask for it.  [repeated]"),
    ] = None,
    length: Annotated[list[str] | None, typer.Option("--size", help="NAME=LENGTH, a free length.  [repeated]")] = None,
    rate: Annotated[list[str] | None, typer.Option(help="TASK=REQUESTS a second.  [repeated]")] = None,
    replicas: Annotated[int | None, typer.Option(help="Devices that may hold the same module.  [default: 1]")] = None,
    survive_one: Annotated[
        bool,
        typer.Option("--survive-one", help="Whichever one device is lost, the others can answer."),
    ] = False,
    seconds: Annotated[float | None, typer.Option(help="What the solver may take.  [default: 30]")] = None,
    json_: JsonFlag = False,
) -> None:
    """Make a plan of a site: modules placed, or put by hand. Nothing is sent to devices before it is applied.

    They are placed by what devices measured (sprat site measures), and by what a file says instead.

    Example: sprat site plan line-3 --task find --at find=camera
    """
    if hosts and (file is not None or on):
        raise InvalidInput("say where each module is by --hosts, or have them placed, with or without --file and --on")
    question: dict[str, Any] = {"tasks": task, "at": _lists("--at", at), "survives_one": survive_one}
    question["releases"] = {model: _number("--release", said) for model, said in _pairs("--release", release).items()}
    question["sizes"] = {one: _number("--size", said) for one, said in _pairs("--size", length).items()}
    question["rates"] = {one: _float("--rate", said) for one, said in _pairs("--rate", rate).items()}
    question |= {} if replicas is None else {"replicas": replicas}
    question |= {} if seconds is None else {"seconds": seconds}
    question |= {"hosts": _lists("--hosts", hosts)} if hosts else {}
    question |= {} if file is None else {"modules": read_modules(file)}
    question |= {"on": [name for one in on for name in one.split(",")]} if on else {}
    with connect(ctx) as client:
        job = finish(client, client.sites.plan(name, question), no_wait=False)
        made = client.sites.show_plan(name, (job["result"] or {})["plan"])
    emit(made, as_json=json_, text="\n".join(_told_plan(made)))


@app.command()
def preview(ctx: typer.Context, *, plan: Plan, json_: JsonFlag = False) -> None:
    """Show who would fetch what in how many bytes, who would hold how much, and what stands in the way.

    Example: sprat site preview line-3/4
    """
    with connect(ctx) as client:
        shown = client.sites.preview(*_named(plan))
    emit(shown, as_json=json_, text="\n".join(_previewed(shown)))


@app.command()
def apply(ctx: typer.Context, *, plan: Plan, json_: JsonFlag = False) -> None:
    """Have the devices hold a plan; when all are ready they serve by it, and the one before ends.

    Example: sprat site apply line-3/4
    """
    with connect(ctx) as client:
        applied = client.sites.apply(*_named(plan))
    emit(applied, as_json=json_, text="\n".join(_told_plan(applied)))


@app.command()
def repair(
    ctx: typer.Context,
    *,
    name: Name,
    without: Annotated[
        list[str] | None, typer.Option(help="A device that is lost, and leaves the site.  [repeated]")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Apply the plan, too.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Plan anew what serves, without devices that were lost; modules that still run stay where they are.

    Example: sprat site repair line-3 --without desk --apply
    """
    with connect(ctx) as client:
        job = finish(client, client.sites.repair(name, without or []), no_wait=False)
        number = (job["result"] or {})["plan"]
        made = client.sites.apply(name, number) if apply else client.sites.show_plan(name, number)
    emit(made, as_json=json_, text="\n".join(_told_plan(made)))


@app.command()
def abort(
    ctx: typer.Context,
    *,
    plan: Plan,
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")],
    json_: JsonFlag = False,
) -> None:
    """End a plan that is held; the one before serves on.

    Example: sprat site abort line-3/4 --reason "the camera is being moved"
    """
    with connect(ctx) as client:
        aborted = client.sites.abort(*_named(plan), reason=reason)
    emit(aborted, as_json=json_, text="\n".join(_told_plan(aborted)))


@app.command()
def status(
    ctx: typer.Context,
    *,
    plan: Annotated[str, typer.Argument(help="A site, or one of its plans: line-3, or line-3/4.")],
    json_: JsonFlag = False,
) -> None:
    """Show how far the members of a plan are: of the one given, else of what is under way, else of what serves.

    Example: sprat site status line-3
    """
    with connect(ctx) as client:
        if "/" in plan:
            name, number = _named(plan)
        else:
            name, site = plan, client.sites.get(plan)
            wanted = site["under_way"] or site["serving"]
            if wanted is None:
                raise NotFound(f"no plan of site {name} is applied; `sprat site history {name}` shows all")
            number = wanted
        found = client.sites.show_plan(name, number)
    emit(found, as_json=json_, text="\n".join(_told_plan(found)))


@app.command()
def history(
    ctx: typer.Context,
    *,
    name: Name,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List the plans of a site, newest first.

    Example: sprat site history line-3
    """
    with connect(ctx) as client:
        plans = client.sites.plans(name, limit=limit)
    columns = {
        "plan": lambda one: f"{one['site']}/{one['number']}",
        "state": lambda one: one["state"],
        "tasks": lambda one: ", ".join(one["tasks"]),
        "modules": lambda one: ", ".join(f"{module['model']}@{module['release']}" for module in one["modules"]),
        "by": lambda one: one["made_by"],
        "applied": lambda one: one["applied_at"],
        "why": lambda one: one["reason"],
    }
    emit_table(plans, columns, as_json=json_, empty=f"site {name} has no plan yet; see: sprat site plan --help")


def _named(text: str) -> tuple[str, int]:
    found = _PLAN.fullmatch(text)
    if found is None:
        raise InvalidInput(f"{text!r} names no plan; write site/number, such as line-3/4")
    return found[1], int(found[2])


def _site(
    devices: Sequence[str], times: Mapping[str, float | None], uplink: float | None, *, auto_repair: bool
) -> dict[str, Any]:
    wanted: dict[str, Any] = {"devices": [_device(one) for one in devices], "auto_repair": auto_repair}
    said = dict(times) | {"uplink_mbit": uplink}
    return wanted | {name: value for name, value in said.items() if value is not None}


def _device(text: str) -> dict[str, Any]:
    name, colon, rest = text.partition(":")
    said: dict[str, Any] = {"name": name}
    for part in rest.split(",") if colon else ():
        key, equals, value = part.partition("=")
        if not equals or key not in _SAID:
            raise InvalidInput(f"--device {text}: say {', '.join(f'{one}=…' for one in _SAID)}, apart by commas")
        if key == "memory":
            said[_SAID[key]] = parse_bytes(f"--device {name}: memory", value)
        else:
            said[_SAID[key] or key] = _float(f"--device {name}: {key}", value)
    return said


def _lists(option: str, said: Sequence[str] | None) -> dict[str, list[str]]:
    return {name: value.split(",") for name, value in _pairs(option, said).items()}


def _pairs(option: str, said: Sequence[str] | None) -> dict[str, str]:
    found = {}
    for text in said or ():
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise InvalidInput(f"{option} {text!r}: write NAME=VALUE")
        if name in found:
            raise InvalidInput(f"{option}: {name} is said twice")
        found[name] = value
    return found


def _number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise InvalidInput(f"{option} {text!r} is no whole number")
    return int(text)


def _float(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"{option} {text!r} is no number") from None


def _told_site(site: "SiteView") -> str:
    rows = [["device", "address", "memory", "up", "down", "delay", "utilisation"]]
    for one in site["devices"]:
        links = [_said(one["up_mbit"], "Mbit/s"), _said(one["down_mbit"], "Mbit/s"), _said(one["delay_ms"], "ms")]
        address = "revoked" if one["revoked"] else one["address"] or "says no site-address"
        rows.append([one["name"], address, size(one["memory_bytes"]), *links, f"{one['utilisation']:g}"])
    serving = "no plan serves" if site["serving"] is None else f"plan {site['serving']} serves"
    moving = "" if site["under_way"] is None else f", plan {site['under_way']} is under way"
    return "\n".join([f"site {site['name']}: {serving}{moving}", *aligned(rows), _settings(site)])


def _settings(site: "SiteView") -> str:
    """Say all that `edit` would have to say anew, by the names of its options."""
    times = (site["hold_s"], site["switch_s"], site["pays_within_s"])
    said = ["hold-s {:g}; switch-s {:g}; pays-within-s {:g}".format(*times)]
    if site["auto_repair"]:
        said.append("auto-repair")
    if site["uplink_mbit"] is not None:
        said.append(f"uplink {site['uplink_mbit']:g} Mbit/s")
    return "; ".join(said)


def _said(value: float | None, unit: str) -> str:
    return "as measured" if value is None else f"{value:g} {unit}"


def _told_plan(plan: "SitePlanView") -> list[str]:
    reason = f": {plan['reason']}" if plan["reason"] else ""
    deadline = f", until {plan['deadline_at']}" if plan["deadline_at"] else ""
    lines = [f"plan {plan['site']}/{plan['number']} of {', '.join(plan['tasks'])} is {plan['state']}{deadline}{reason}"]
    placed = plan["placement"]
    if placed is not None:
        proof = "no placement is better" if placed["proven"] == "optimal" else f"within {placed['gap']:.1%} of the best"
        times = ", ".join(f"{name} {1000 * seconds:,.1f} ms" for name, seconds in placed["tasks"].items())
        lines.append(f"{times}; {proof}")
    for one in plan["tests"]:
        before = "" if one["old_correct"] is None else f", {one['old_correct']} by what served ({_change(one)})"
        lines.append(f"{one['task']} had {one['new_correct']} of {one['samples']} samples right{before}")
    lines += _behind(plan)
    modules = [[f"{one['model']}@{one['release']}", ", ".join(one["hosts"])] for one in plan["modules"]]
    lines += aligned([["module", "on"], *modules])
    ways = [
        [f"{task}@{device}", "; ".join(f"{step}: {', then '.join(way)}" for step, way in sorted(steps.items()))]
        for task, said in sorted(plan["tasks"].items())
        for device, steps in sorted(said["routes"].items())
    ]
    lines += aligned([["asked", "each step goes to"], *ways]) if ways else []
    if plan["members"]:
        rows = [
            [one["name"], one["address"] or "only asks", one["state"], one["phase"] or "-", _fetching(one)]
            for one in plan["members"]
        ]
        lines += aligned([["member", "address", "said", "signed", "fetches"], *rows])
    return lines + [f"note: {one}" for one in plan["warnings"]]


def _fetching(member: "SitePlanMemberView") -> str:
    if member["fetching"] == "waits":
        return f"waits its turn, until {member['turn_at']} at most"
    return {"fetching": "since its turn came", "done": "has all"}.get(member["fetching"] or "", "-")


def _behind(plan: "SitePlanView") -> list[str]:
    """Say what a plan was made for, and what the full plan behind a repair would bring."""
    because = {
        "repair": "repairs",
        "improvement": "is the full plan behind",
        "renewal": "renews",
        "step": "is a step on the way to",
    }
    lines = [f"it {because[plan['cause']]} plan {plan['parent']}"] if plan["cause"] in because else []
    if plan["steps"]:
        wished = f", as {plan['wished_by']} asked" if plan["wished_by"] else ""
        lines.append(f"plans {', '.join(map(str, plan['steps']))} in between lead to it{wished}")
    found = plan["improvement"]
    if found is None:
        return lines
    if found["plan"] is None:
        return [*lines, f"nothing behind it: {found['why']}"]
    saved = f"would save {found['saved_s']:,.4g} s of waiting in {found['pays_within_s']:,.0f} s"
    cost = f"moving {size(found['moved_bytes'])} costs {found['cost_s']:,.4g} s"
    return [*lines, f"plan {found['plan']} behind it {saved}; {cost}: {found['why']}"]


def _change(test: dict[str, Any]) -> str:
    return f"{test['only_old']} lost, {test['only_new']} won"


def _previewed(shown: "SitePlanPreview") -> list[str]:
    rows = [["device", "fetches", "holds", "while it replaces", "of"]]
    turns = []
    for one in shown["members"]:
        fetches = ", ".join(f"{each['model']}@{each['release']} {size(each['bytes'])}" for each in one["fetches"])
        memory = [size(one["holds_bytes"]), size(one["while_replacing_bytes"]), size(one["memory_bytes"])]
        rows.append([one["name"], fetches or "nothing", *memory])
        turns += [(each["starts_s"], one["name"], each) for each in one["fetches"]]
    lines = aligned(rows)
    if turns:
        times = [["from", "to", "device", "fetches"]]
        for starts_s, name, each in sorted(turns, key=lambda turn: turn[:2]):
            times.append([f"{starts_s:,.1f} s", f"{each['ends_s']:,.1f} s", name, f"{each['model']}@{each['release']}"])
        gap = 1 - shown["fetched_bound_s"] / shown["fetched_s"] if shown["fetched_s"] else 0.0
        proof = "no order is faster" if gap < _SLIGHT else f"no order takes less than {shown['fetched_bound_s']:,.1f} s"
        lines += [*aligned(times), f"all is fetched after {shown['fetched_s']:,.1f} s; {proof}"]
    if shown["steps"]:
        lines.append(f"plans {', '.join(map(str, shown['steps']))} in between are applied before: memory is short")
    figures = [] if shown["figures"] is None else told_figures(shown["figures"])
    return [*lines, *figures, *(f"in the way: {each}" for each in shown["obstacles"])]
