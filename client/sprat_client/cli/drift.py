"""`sprat drift`: how models do in the field, what is watched, and what is done about it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sprat_client.cli.config_files import read_mapping
from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit
from sprat_shared.errors import InvalidInput

if TYPE_CHECKING:
    from sprat_client.api.drift import DriftPolicyView, DriftView

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Drift: when a model gets worse in the field, tell somebody, or retrain and roll out (docs/drift.md).",
)
policy_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What is watched, and what is done.")
app.add_typer(policy_app, name="policy")

Model = Annotated[str, typer.Argument(help="The model.")]
Reason = Annotated[str, typer.Option(help="Kept in the audit log.")]

_NEXT: Final = {
    "none": "nothing is done",
    "notify": "somebody is told at the next look",
    "retrain": "a retrain begins at the next look",
}


@policy_app.command("set")
def set_(
    ctx: typer.Context,
    *,
    model: Model,
    file: Annotated[
        Path | None,
        typer.Option(help="A whole policy as YAML or JSON; options below stand in the place of its values."),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Share of the devices' labelled samples that must be right, such as 0.9.")
    ] = None,
    max_input_drift: Annotated[
        float | None, typer.Option(help="How far inputs may move, 0 to 1, on the median device; needs no labels.")
    ] = None,
    min_devices: Annotated[int | None, typer.Option(help="Devices that must have spoken.  [default: 3]")] = None,
    min_samples: Annotated[int | None, typer.Option(help="Samples of all of them.  [default: 100]")] = None,
    every_s: Annotated[float | None, typer.Option(help="Least seconds between two actions.  [default: 86400]")] = None,
    most_retrains: Annotated[int | None, typer.Option(help="Most retrains in 30 days.  [default: 3]")] = None,
    retrain_on: Annotated[
        str | None, typer.Option(metavar="NAME", help="Retrain, on the newest dataset of this name.")
    ] = None,
    keep: Annotated[float | None, typer.Option(help="As in `sprat retrain`.")] = None,
    roll_out: Annotated[
        bool, typer.Option("--roll-out", help="Draft a rollout of what was retrained, for a person to start.")
    ] = False,
    waves: Annotated[str | None, typer.Option(help="Its waves: 1,10%,100%.  [default: they double]")] = None,
    start: Annotated[bool, typer.Option("--start", help="And start it, without a person.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Watch a model this way from now on, in the place of what was said before.

    Example: sprat drift policy set digits --min-accuracy 0.9 --retrain-on line-3 --roll-out --start
    """
    said: dict[str, Any] = {} if file is None else read_mapping("--file", file)
    given = {
        "min_accuracy": min_accuracy,
        "max_input_drift": max_input_drift,
        "min_devices": min_devices,
        "min_samples": min_samples,
        "every_s": every_s,
        "most_retrains": most_retrains,
    }
    said |= {name: value for name, value in given.items() if value is not None}
    if retrain_on is not None:
        said |= {
            "action": "retrain",
            "retrain": {"dataset": retrain_on, "options": {} if keep is None else {"keep": keep}},
        }
    elif keep is not None:
        raise InvalidInput("--keep is of a retrain: say --retrain-on NAME too")
    if roll_out:
        reaches = None if waves is None else [wave.strip() for wave in waves.split(",")]
        said["rollout"] = {"waves": reaches, "start": start}
    elif start or waves is not None:
        raise InvalidInput("--start and --waves are of a rollout: say --roll-out too")
    with connect(ctx) as client:
        _print(client.drift.set_policy(model, said), as_json=json_)


@policy_app.command()
def show(ctx: typer.Context, *, model: Model, json_: JsonFlag = False) -> None:
    """Show how a model is watched.

    Example: sprat drift policy show digits
    """
    with connect(ctx) as client:
        _print(client.drift.policy(model), as_json=json_)


@policy_app.command()
def clear(ctx: typer.Context, *, model: Model, json_: JsonFlag = False) -> None:
    """Watch a model no more.

    Example: sprat drift policy clear digits
    """
    with connect(ctx) as client:
        gone = client.drift.clear_policy(model)
    emit(gone, as_json=json_, text=f"{model} is watched no more; its policy was: {json.dumps(gone['policy'])}")


@app.command()
def status(
    ctx: typer.Context,
    *,
    model: Model,
    events: Annotated[int, typer.Option(min=0, max=200, help="Show so many of the newest events.")] = 10,
    json_: JsonFlag = False,
) -> None:
    """Say how a model does in the field, what would be done about it, and what was done.

    Example: sprat drift status digits
    """
    with connect(ctx) as client:
        said = client.drift.status(model, limit=events)
    emit(said, as_json=json_, text="\n".join(_lines(said)))


@app.command()
def stop(ctx: typer.Context, *, model: Model, reason: Reason, json_: JsonFlag = False) -> None:
    """Do nothing about a model's drift any more, until it is resumed. What runs goes on: see job and rollout.

    Example: sprat drift stop digits --reason "the cameras are being replaced"
    """
    with connect(ctx) as client:
        _print(client.drift.stop(model, reason=reason), as_json=json_)


@app.command()
def resume(ctx: typer.Context, *, model: Model, reason: Reason, json_: JsonFlag = False) -> None:
    """Do again what the policy says.

    Example: sprat drift resume digits --reason "the new cameras are in"
    """
    with connect(ctx) as client:
        _print(client.drift.resume(model, reason=reason), as_json=json_)


def _print(view: "DriftPolicyView", *, as_json: bool) -> None:
    lines = [f"{view['model']}: set by {view['set_by']} at {view['set_at']}"]
    if view["stop_reason"] is not None:
        lines.append(f"STOPPED at {view['stopped_at']}: {view['stop_reason']}")
    told = {name: value for name, value in view["policy"].items() if value is not None}
    emit(view, as_json=as_json, text="\n".join([*lines, json.dumps(told, indent=2)]))


def _lines(said: "DriftView") -> Iterator[str]:
    finding = said["finding"]
    yield f"{said['model']}: {finding['verdict']}: {finding['why']}"
    if said["why"] != finding["why"]:
        yield f"{_NEXT[said['action']]}: {said['why']}"
    else:
        yield _NEXT[said["action"]]
    for event in said["events"]:
        yield f"{event['at']}  {event['action']:<8} {event['why']}"
        if event["action"] == "retrain":
            yield f"{'':<34}{event['outcome'] or 'under way: sprat job watch ' + str(event['job'])}"
