"""`sprat policy`: what is asked of the devices that have a model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit
from sprat_client.cli.quantities import parse_bytes, parse_points, parse_window
from sprat_shared.errors import InvalidInput
from sprat_shared.trust.policy import DevicePolicy

if TYPE_CHECKING:
    from sprat_client.api import PolicyView

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Policies: when devices may fetch and activate releases of a model, and how they judge and try them.",
)

Model = Annotated[str, typer.Argument(help="The model.")]
Profile = Annotated[
    str | None, typer.Option(help="Of the devices of this profile, in the place of the model's policy as a whole.")
]


@app.command()
def show(ctx: typer.Context, *, model: Model, profile: Profile = None, json_: JsonFlag = False) -> None:
    """Show the policy that holds, and for what it was set.

    Example: sprat policy show digits --profile gate
    """
    with connect(ctx) as client:
        _print(client.models.policy(model, profile=profile), as_json=json_)


@app.command("set")
def set_(
    ctx: typer.Context,
    *,
    model: Model,
    profile: Profile = None,
    file: Annotated[
        Path | None, typer.Option(help="A whole policy as JSON; options below stand in the place of its values.")
    ] = None,
    fetch_window: Annotated[
        list[str] | None, typer.Option(help="Fetch only in this stretch of the day (UTC): 22:00-05:00; repeatable.")
    ] = None,
    fetch_unmetered: Annotated[
        bool, typer.Option("--fetch-unmetered", help="Fetch only over links that are not paid by the byte.")
    ] = False,
    fetch_charging: Annotated[
        bool, typer.Option("--fetch-charging", help="Fetch only on mains, or while the battery is charged.")
    ] = False,
    activate_window: Annotated[
        list[str] | None, typer.Option(help="Let a release begin to serve only then; repeatable.")
    ] = None,
    activate_idle: Annotated[
        bool, typer.Option("--activate-idle", help="And only while nobody asks the device's models.")
    ] = False,
    daily_bytes: Annotated[
        str | None, typer.Option(help="Most that a device may read in one day, such as 2MB.")
    ] = None,
    tolerance: Annotated[str | None, typer.Option(help="By how much accuracy on the holdout may fall: 0.5pp.")] = None,
    min_samples: Annotated[int | None, typer.Option(help="Holdout samples that a comparison needs.")] = None,
    too_few: Annotated[str | None, typer.Option(help="With fewer: accept or refuse the release.")] = None,
    shadow_s: Annotated[
        float | None, typer.Option(help="Seconds for which a release answers beside the old one, unserved, first.")
    ] = None,
    trial_s: Annotated[float | None, typer.Option(help="Seconds for which it is on trial.")] = None,
    attempts: Annotated[
        int | None, typer.Option(help="Failures of one release on one device before it is given up.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Set a policy in the place of the one before. What it does not say is the agent's own setting.

    Devices have it, signed, with their next poll, also for what they work on just then.

    Example: sprat policy set digits --fetch-window 22:00-05:00 --min-samples 200 --too-few refuse
    """
    said = {} if file is None else _read(file)
    fetch: dict[str, Any] = {
        **({"windows": [parse_window(one) for one in fetch_window]} if fetch_window else {}),
        **({"unmetered": True} if fetch_unmetered else {}),
        **({"charging": True} if fetch_charging else {}),
    }
    activate: dict[str, Any] = {
        **({"windows": [parse_window(one) for one in activate_window]} if activate_window else {}),
        **({"idle": True} if activate_idle else {}),
    }
    given = {
        "fetch": fetch or None,
        "activate": activate or None,
        "daily_bytes": None if daily_bytes is None else parse_bytes("--daily-bytes", daily_bytes),
        "tolerance": None if tolerance is None else parse_points("--tolerance", tolerance),
        "min_samples": min_samples,
        "too_few": too_few,
        "shadow_s": shadow_s,
        "trial_s": trial_s,
        "attempts": attempts,
    }
    said |= {name: value for name, value in given.items() if value is not None}
    if not said and file is None:
        raise InvalidInput("say what is asked of the devices: --file policy.json, or an option such as --trial-s 60")
    policy = DevicePolicy.of(said)
    with connect(ctx) as client:
        _print(client.models.set_policy(model, policy.as_json(), profile=profile), as_json=json_)


@app.command()
def clear(ctx: typer.Context, *, model: Model, profile: Profile = None, json_: JsonFlag = False) -> None:
    """Take a policy away: then the model's holds for the profile, the agents' own settings for the model.

    Example: sprat policy clear digits --profile gate
    """
    with connect(ctx) as client:
        _print(client.models.clear_policy(model, profile=profile), as_json=json_)


def _print(view: "PolicyView", *, as_json: bool) -> None:
    whose = view["model"] if view["profile"] is None else f"{view['model']}, profile {view['profile']}"
    source = {
        "profile": "set for the profile",
        "model": "set for the model",
        "agent": "nothing was said; agents go by their own settings",
    }
    lines = [f"{whose}: {source[view['source']]}"]
    if view["source"] != "agent":
        lines[0] += f" by {view['set_by']} at {view['set_at']}"
        lines.append(json.dumps(view["policy"], indent=2))
    if view["profile"] is None and view["profiles"]:
        lines.append(f"profiles with a policy of their own: {', '.join(view['profiles'])}")
    emit(view, as_json=as_json, text="\n".join(lines))


def _read(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"--file {file}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidInput(f"--file {file} is not JSON ({error})") from None
    if not isinstance(said, dict):
        raise InvalidInput(f'--file {file} must hold a JSON object, such as {{"trial_s": 60}}')
    return said
