"""`sprat device` and `sprat enrolment-token`: the fleet and how a device joins it."""

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import Columns, emit, emit_fields, emit_table
from sprat_shared.errors import InvalidInput

if TYPE_CHECKING:
    from sprat_client.api import SpratClient

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Devices: the agents of the fleet.")
enrolment_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Enrolment tokens: with them devices join the fleet."
)


SHOWN: Final[Columns] = {
    "device": lambda one: one["id"],
    "name": lambda one: one["name"],
    "group": lambda one: one["group"],
    "labels": lambda one: " ".join(f"{key}={value}" for key, value in one["labels"].items()) or "-",
    "runs": lambda one: ", ".join(f"{on['model']}@{on['active'] or '-'}" for on in one["models"]) or "-",
    "should run": lambda one: ", ".join(f"{on['model']}@{on['assigned'] or '-'}" for on in one["models"]) or "-",
    "last seen": lambda one: one["last_seen_at"] if one["revoked_at"] is None else "revoked",
}


OneOfMany = Annotated[
    str | None, typer.Argument(help="Its name, id, or a unique start or end of the id; or say --where or --group.")
]
Where = Annotated[str | None, typer.Option(help="All live devices for which this filter holds, instead of one.")]
Group = Annotated[str | None, typer.Option(help="All devices of this saved group, instead of one.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask whether those are the devices that are meant.")]


@app.command("list")
def list_(
    ctx: typer.Context,
    *,
    where: Annotated[
        str | None, typer.Option(help="Only live devices for which this filter holds (docs/targeting.md).")
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(help="By name, site, profile, agent, enrolled or last_seen; -name: the largest first."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List the devices, newest first.

    Example: sprat device list --where 'labels.site = "lab" and last_seen > 7d ago' --limit 20
    """
    with connect(ctx) as client:
        devices = client.devices.list(where=where, sort=sort, limit=limit)
    empty = "no device yet; see: sprat enrolment-token create --help" if where is None else "no device fits"
    emit_table(devices, SHOWN, as_json=json_, empty=empty)


@app.command()
def label(
    ctx: typer.Context,
    *,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[DEVICE] LABELS...",
            help="The device (name, id, or a unique start or end), then KEY=VALUE to set a label, KEY- to remove it.",
        ),
    ],
    where: Where = None,
    group: Group = None,
    json_: JsonFlag = False,
) -> None:
    """Set and remove labels of a device, or of many: what you say of them, for filters and groups.

    Example: sprat device label press-3 site=lab ring=canary old-

    Example: sprat device label --where 'name ~ "press-*"' site=lab
    """
    many = where is not None or group is not None
    changes = dict(_label(one) for one in (words if many else words[1:]))
    if not changes:
        raise InvalidInput("say what labels: KEY=VALUE sets one, KEY- removes it", code="label.bad")
    with connect(ctx) as client:
        if many:
            count = client.devices.label_all(changes, where=where, group=group)
            emit({"devices": count}, as_json=json_, text=f"{count} devices")
            return
        changed = client.devices.label(client.devices.resolve(words[0]), changes)
    said = " ".join(f"{key}={value}" for key, value in changed["labels"].items()) or "no labels"
    emit(changed, as_json=json_, text=f"device {changed['name']} ({changed['id']}): {said}")


@app.command()
def show(
    ctx: typer.Context,
    *,
    device: Annotated[str, typer.Argument(help="Its name, id, or a unique start or end of the id.")],
    reports: Annotated[int, typer.Option(min=0, help="Show so many of its newest reports.")] = 5,
    json_: JsonFlag = False,
) -> None:
    """Show one device: what it should run, and what it reported.

    Example: sprat device show press-3 --reports 10
    """
    with connect(ctx) as client:
        device_id = client.devices.resolve(device)
        shown: dict[str, Any] = dict(client.devices.get(device_id))
        if reports:
            shown["reports"] = client.devices.reports(device_id, limit=reports)
    emit_fields(shown, as_json=json_)


@app.command()
def revoke(
    ctx: typer.Context,
    *,
    device: OneOfMany = None,
    where: Where = None,
    group: Group = None,
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")],
    yes: Yes = False,
    json_: JsonFlag = False,
) -> None:
    """Refuse a device, or many, at once and for good; rollouts wait for them no more.

    Example: sprat device revoke press-3 --reason stolen

    Example: sprat device revoke --where 'labels.site = "hall-2"' --reason "hall 2 is closed"
    """
    with connect(ctx) as client:
        if device is None:
            count = _counted(client, "revoke", where, group, yes=yes)
            left = client.devices.leave("revoke", devices=count, reason=reason, where=where, group=group)
            emit({"devices": left}, as_json=json_, text=f"{left} devices are revoked")
            return
        _require_alone(where, group)
        gone = client.devices.revoke(client.devices.resolve(device), reason=reason)
    emit(gone, as_json=json_, text=f"device {gone['name']} ({gone['id']}) is revoked")


@app.command()
def decommission(
    ctx: typer.Context,
    *,
    device: OneOfMany = None,
    where: Where = None,
    group: Group = None,
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")],
    yes: Yes = False,
    json_: JsonFlag = False,
) -> None:
    """Let a device, or many, go for good: revoke them, and forget what they hold, so that no release is kept for them.

    Example: sprat device decommission press-3 --reason scrapped

    Example: sprat device decommission --where 'labels.site = "hall-2"' --reason "hall 2 is closed"
    """
    with connect(ctx) as client:
        if device is None:
            count = _counted(client, "decommission", where, group, yes=yes)
            left = client.devices.leave("decommission", devices=count, reason=reason, where=where, group=group)
            emit({"devices": left}, as_json=json_, text=f"{left} devices are decommissioned")
            return
        _require_alone(where, group)
        gone = client.devices.decommission(client.devices.resolve(device), reason=reason)
    emit(gone, as_json=json_, text=f"device {gone['name']} ({gone['id']}) is decommissioned")


@app.command()
def replace(
    ctx: typer.Context,
    *,
    device: Annotated[str, typer.Argument(help="Its name, id, or a unique start or end of the id.")],
    expires_s: Annotated[int, typer.Option(min=1, help="Seconds until the token ends.")] = 3600,
    json_: JsonFlag = False,
) -> None:
    """Make a one-time token for a device whose folder was lost: with it, and the same name, it is itself again.

    History and group stay, counters go on. Its old key is dead as soon as the new one has joined.

    Example: sprat device replace press-3
    """
    with connect(ctx) as client:
        made = client.devices.replace(client.devices.resolve(device), expires_s=expires_s)
    emit(made, as_json=json_, text=made["token"])


@app.command()
def pending(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the devices without a token that wait to be accepted. Each agent prints its fingerprint: compare them.

    Example: sprat device pending
    """
    with connect(ctx) as client:
        rows = client.devices.pending()
    columns = {
        "id": lambda one: one["id"],
        "name": lambda one: one["name"],
        "fingerprint": lambda one: one["fingerprint"],
        "from": lambda one: one["address"],
        "machine": lambda one: one["attributes"].get("machine"),
        "since": lambda one: one["created_at"],
        "state": lambda one: "waits" if one["rejected_at"] is None else "rejected",
    }
    emit_table(rows, columns, as_json=json_, empty="no device waits")


@app.command()
def accept(
    ctx: typer.Context,
    *,
    device: Annotated[
        list[str], typer.Argument(help="Ids in `sprat device pending`, their names, or a unique start or end.")
    ],
    group: Annotated[str, typer.Option(help="Group that it belongs to.")] = "default",
    json_: JsonFlag = False,
) -> None:
    """Let devices that wait join the fleet, all or none of those that are named.

    Example: sprat device accept 01a22869 01a2286a --group line-a
    """
    with connect(ctx) as client:
        joined = client.devices.accept([client.devices.resolve_pending(one) for one in device], group=group)
    for one in joined:
        emit(one, as_json=json_, text=f"device {one['name']} ({one['id']}) has joined: {one['fingerprint']}")


@app.command()
def reject(
    ctx: typer.Context,
    *,
    device: Annotated[str, typer.Argument(help="Id in `sprat device pending`, its name, or a unique start or end.")],
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")],
    json_: JsonFlag = False,
) -> None:
    """Refuse a device that waits.

    Example: sprat device reject 01a22869 --reason "not ours"
    """
    with connect(ctx) as client:
        gone = client.devices.reject(client.devices.resolve_pending(device), reason=reason)
    emit(gone, as_json=json_, text=f"device {gone['name']} ({gone['fingerprint']}) is rejected")


@enrolment_app.command("create")
def create(
    ctx: typer.Context,
    *,
    uses: Annotated[int, typer.Option(min=1, help="How many devices may enrol with it.")] = 1,
    expires_s: Annotated[int, typer.Option(min=1, help="Seconds until it ends.")] = 3600,
    group: Annotated[str | None, typer.Option(help="Group that these devices belong to.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Make an enrolment token; it is printed once.

    Example: sprat enrolment-token create --uses 10 --expires-s 86400 --group line-a
    """
    with connect(ctx) as client:
        made = client.enrolment_tokens.create(uses=uses, expires_s=expires_s, group=group)
    emit(made, as_json=json_, text=made["token"])


@enrolment_app.callback()
def enrolment() -> None:
    """Enrolment tokens: with them devices join the fleet."""


def _counted(client: "SpratClient", verb: str, where: str | None, group: str | None, *, yes: bool) -> int:
    """Return how many devices are meant, once somebody has said that those are the ones."""
    if where is None and group is None:
        raise InvalidInput(f"say which devices to {verb}: one by its name or id, or many with --where or --group")
    found = client.devices.preview(where=where, group=group)
    count: int = found["count"]
    if not yes:
        names = ", ".join(one["name"] for one in found["sample"])
        more = f" and {count - len(found['sample'])} more" if count > len(found["sample"]) else ""
        typer.confirm(f"{verb} {count} devices for good ({names or 'none'}{more})?", abort=True, err=True)
    return count


def _require_alone(where: str | None, group: str | None) -> None:
    if where is not None or group is not None:
        raise InvalidInput("say either one device, or --where or --group for many")


def _label(text: str) -> tuple[str, str | None]:
    key, is_set, value = text.partition("=")
    if key and is_set and value:
        return key, value
    if not is_set and key.endswith("-") and len(key) > 1:
        return key[:-1], None
    raise InvalidInput(f"label {text!r}: write KEY=VALUE to set it, or KEY- to remove it", code="label.bad")
