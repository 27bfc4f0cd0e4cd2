"""`sprat release` and `sprat retrain`: the immutable, numbered states of a model and how they are made."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprat_client.cli.curve import check_drawable, draw, points_of
from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.keys import KeyId, Passphrase, sign_release, waiting
from sprat_client.cli.models import parse_config
from sprat_client.cli.output import emit, emit_fields, emit_table, short, size
from sprat_client.cli.quantities import parse_bytes, parse_points
from sprat_client.cli.watching import NoWait, finish, upload, wait_for_job
from sprat_shared.errors import InvalidInput

if TYPE_CHECKING:
    from sprat_client.api import JobView
    from sprat_client.api.views import ReleaseView

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Releases: numbered, immutable weights of a model.")


class Strategy(StrEnum):
    """How a retrain makes its update."""

    AUTO = "auto"
    FULL = "full"
    FACTORS = "factors"
    SUBSPACE = "subspace"


Model = Annotated[str, typer.Argument(help="The model's name.")]
Base = Annotated[
    int | None, typer.Option(help="Number of the release to start from.  [default: the latest of its own]")
]


@app.command()
def create(
    ctx: typer.Context,
    *,
    model: Model,
    weights: Annotated[Path, typer.Option(help="The new weights, safetensors; dtypes as before.")],
    base: Base = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Keep every bit of the new weights.")] = False,
    config: Annotated[
        str | None, typer.Option(help="JSON, or @FILE: keys of the recipe's config that change with the shapes.")
    ] = None,
    graph: Annotated[Path | None, typer.Option(help="The new ONNX file, for a model without a recipe.")] = None,
    no_wait: NoWait = False,
    json_: JsonFlag = False,
) -> None:
    """Make a release from weights trained elsewhere.

    What is released is the base plus the decoded update, the same bits that devices will have. Where tensors come, go
    or change their shapes, the graph is another too: give `--config` or `--graph`.

    Example: sprat release create digits --weights retrained.safetensors
    """
    with connect(ctx) as client:
        architecture: dict[str, Any] = {} if config is None else {"config": parse_config(config)}
        if graph is not None:
            architecture["graph"] = upload(client, graph)
        digest = upload(client, weights)
        job = client.models.create_release(model, weights=digest, base=base, lossless=lossless, **architecture)
        job = finish(client, job, no_wait=no_wait)
    emit(job, as_json=json_, text=f"job {job['id']}" if no_wait else summary(model, job))


@app.command("list")
def list_(ctx: typer.Context, *, model: Model, json_: JsonFlag = False) -> None:
    """List the releases of a model.

    Example: sprat release list digits
    """
    with connect(ctx) as client:
        releases = client.models.releases(model)
    columns = {
        "release": lambda one: f"{model}@{one['number']}",
        "weights": lambda one: short(one["weights"]),
        "model": lambda one: size(one["model_bytes"]),
        "updates": lambda one: ", ".join(update_text(update) for update in one["updates"]) or "-",
        "origin": _origin,
        "state": lambda one: one["state"] if one["quarantine"] is None else f"{one['state']}, in quarantine",
        "since": lambda one: one["created_at"],
    }
    emit_table(releases, columns, as_json=json_, empty=f"{model} has no release yet")


def _origin(release: "ReleaseView") -> str:
    """Say where a release comes from, and whose layers it shares."""
    shares = release["shares"]
    return release["origin"] if shares is None else f"@{shares['base']} with layers of {shares['donor']}"


@app.command()
def show(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Argument(help="The model's name, or model@number.")],
    number: Annotated[int | None, typer.Argument(help="The release's number.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Show one release: its digests, updates and measured accuracies.

    Example: sprat release show digits@2
    """
    name, wanted = split_release(model, number)
    with connect(ctx) as client:
        emit_fields(client.models.release(name, wanted), as_json=json_)


@app.command()
def sign(
    ctx: typer.Context,
    *,
    release: Annotated[str, typer.Argument(help="model@number.")],
    key: Annotated[str | None, typer.Option(help="URI of your private key, file2:PATH, hsm:… and so on.")] = None,
    export: Annotated[Path | None, typer.Option(help="Write a bundle to sign elsewhere, instead of signing.")] = None,
    keyid: KeyId = None,
    passphrase_file: Passphrase = None,
    json_: JsonFlag = False,
) -> None:
    """Sign a release that waits for signatures; with the last one that is needed, devices can have it.

    With `--export` what must be signed is written to a bundle, for `sprat keys sign --bundle` on a machine without a
    network and `sprat keys import` afterwards.

    Example: sprat release sign digits@2 --key file2:alice.pem
    """
    from sprat_client.cli.signing_bundles import write_bundle  # noqa: PLC0415 - cryptography is not loaded for `sprat delta`

    if (key is None) == (export is None):
        raise InvalidInput("give --key to sign here, or --export to sign elsewhere")
    name, number = split_release(release, None)
    with connect(ctx) as client:
        done = client.keys.draft_release(name, number)
        if export is not None:
            write_bundle(export, done["waiting"], {})
        elif key is not None and done["waiting"]:
            done = sign_release(client, done["waiting"], key, keyid, passphrase_file)
        after = client.models.release(name, number)
    lines = [f"{name}@{number}: {after['state']}", *map(waiting, done["waiting"])]
    emit({**after, "waiting": done["waiting"]}, as_json=json_, text="\n".join(lines))


@app.command()
def updates(
    ctx: typer.Context,
    *,
    model: Model,
    to: Annotated[int | None, typer.Option(help="Number of the release to come to.  [default: the newest]")] = None,
    json_: JsonFlag = False,
) -> None:
    """Show how devices come to a release from each other one, and the bytes that it takes.

    `way` is direct (one update), chain (several, one after another), full (the whole release) or none. Devices get
    what takes fewest bytes, starting from the release that they run or the one that they could go back to: `devices`
    counts who takes which way. Where only a chain or the full update leads on from what devices hold, a direct one is
    built in the background, and published if it saves the fleet bytes. `share` is of the model's bytes.

    Example: sprat release updates digits
    """
    with connect(ctx) as client:
        ways = client.models.updates(model, to=to)
    columns: dict[str, Callable[[Any], Any]] = {
        "from": lambda one: f"{model}@{one['base']}",
        "to": lambda one: f"{model}@{one['to']}",
        "devices": lambda one: one["devices"],
        "way": lambda one: one["way"],
        "files": lambda one: one["files"],
        "bytes": lambda one: f"{one['bytes']:,}",
        "share": lambda one: f"{100 * one['share']:.3g} %",
    }
    emit_table(ways, columns, as_json=json_, empty=f"{model} has no release yet")


@app.command()
def curve(
    ctx: typer.Context,
    *,
    model: Annotated[str, typer.Argument(help="The model's name, or model@number.")],
    number: Annotated[int | None, typer.Argument(help="The release's number.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Draw it into this .png or .svg file.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Show what a retrain tried: bytes of each update, and the share of the gain it has on the validation split.

    The chosen one is marked; `old` is the accuracy on a domain that was to be kept. With -o the curve is drawn as
    well, as PNG or SVG: bytes on a log axis, the chosen point ringed, a dashed line at what was asked for. Drawing
    needs the extra `plot`.

    Example: sprat release curve digits@2 -o digits.png
    """
    name, wanted = split_release(model, number)
    if output is not None:
        check_drawable(output)
    with connect(ctx) as client:
        release = client.models.release(name, wanted)
    points = points_of(release)
    if output is not None:
        draw(release, output)
        typer.echo(f"drawn: {output}", err=True)
    columns: dict[str, Callable[[Any], Any]] = {
        "": lambda one: "*" if one["chosen"] else " ",
        "bytes": lambda one: f"{one['update_bytes']:,}",
        "gain kept": lambda one: f"{one['share']:.4f}",
        "+-": lambda one: f"{one['error']:.4f}",
        "accuracy": lambda one: one.get("accuracy"),
        "old": lambda one: one.get("accuracy_old"),
        "meets": lambda one: one["keeps"],
        "method": lambda one: one["method"],
        "rank": lambda one: one["rank"],
        "coefficients": lambda one: one.get("coefficients"),
        "price": lambda one: one["price"],
    }
    for column, key in (("old", "accuracy_old"), ("coefficients", "coefficients")):
        if all(point.get(key) is None for point in points):
            del columns[column]
    emit_table(points, columns, as_json=json_, empty="nothing was tried")


@app.command()
def certify(
    ctx: typer.Context,
    *,
    release: Annotated[str, typer.Argument(help="MODEL@NUMBER: the near copy.")],
    against: Annotated[int, typer.Option(help="Number of the release that it is a near copy of.")],
    dataset: Annotated[str, typer.Option(help="Inputs that chose nothing: name, digest or its start; labels unused.")],
    budget: Annotated[
        float | None, typer.Option(help="Largest share of answers that may change, such as 0.01.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Of outputs that are no classes: most that one may move.")
    ] = None,
    no_wait: NoWait = False,
    json_: JsonFlag = False,
) -> None:
    """Bound by how much a release can be worse than another, without labels (docs/sharing.md).

    For updates that are meant to change nothing: another precision, pruned weights, shared layers. Where both give the
    same answer, both are right or both are wrong. Ends with 1 if the bound is above the budget.

    Example: sprat release certify digits@3 --against 2 --dataset line-3 --budget 0.01
    """
    model, number = split_release(release, None)
    with connect(ctx) as client:
        digest = client.datasets.resolve(dataset)["digest"]
        asked = client.models.certify(
            model, number, against=against, dataset=digest, budget=budget, tolerance=tolerance
        )
        job = finish(client, asked, no_wait=no_wait)
    found = job["result"] or {}
    emit(job if no_wait else found, as_json=json_, text=f"job {job['id']}" if no_wait else _certified(found))
    if found.get("within") is False:
        raise typer.Exit(1)


def _certified(found: dict[str, Any]) -> str:
    said = (
        f"{found['model']}@{found['release']} gave another answer than @{found['against']} on {found['disagreed']} of "
        f"{found['compared']} inputs: accuracy falls by at most {100 * found['bound']:.3g} points "
        f"(with {found['confidence']:.0%} confidence, for inputs drawn as these)"
    )
    if found["within"] is True:
        return f"{said}; within {100 * found['budget']:.3g}"
    if found["within"] is False:
        more = f"; {found['needed']:,} inputs of this kind would prove it" if found["needed"] else ""
        return f"{said}; that is above {100 * found['budget']:.3g}{more}"
    return said


def retrain(
    ctx: typer.Context,
    *,
    model: Model,
    dataset: Annotated[str, typer.Option(help="Name, digest, or a unique start of the digest.")],
    retain: Annotated[
        str | None, typer.Option(help="A dataset of the old domain that is to be kept: it is replayed and measured.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of the full retrain's gain that the update must keep.  [default: 0.95]")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most bytes of the update: 1400, 2kB, 1.5MB. The best that fits.")
    ] = None,
    max_drop: Annotated[
        str | None, typer.Option(metavar="POINTS", help="Most accuracy below the full retrain's: 0.5pp.")
    ] = None,
    strategy: Annotated[Strategy, typer.Option(help="How the update is made.")] = Strategy.AUTO,
    base: Base = None,
    config: Annotated[
        str | None, typer.Option(help='JSON, or @FILE: keys of the recipe\'s config that change, {"classes": 12}.')
    ] = None,
    local_statistics: Annotated[
        bool,
        typer.Option("--local-statistics", help="Devices compute statistics of batch norms from their own inputs."),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the training.")] = None,
    max_epochs: Annotated[int | None, typer.Option(help="Most epochs of the full retrain.")] = None,
    max_candidates: Annotated[int | None, typer.Option(help="Most sizes of update to try.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Wait for the end, with progress.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Retrain a model on a dataset and make a release whose update is small.

    One knob says how small: `--keep` and `--max-drop` give the smallest update that is good enough, `--budget` the
    best one that fits. Sizes are of the encoded file. All three are judged on the validation split; the accuracies
    that are reported are measured afterwards, on the test split.

    A model that learns a new domain forgets the old one where its inputs look different. With `--retain` samples of
    the old domain are replayed, the update is chosen on both, and the accuracies on the old one are reported too.

    `--strategy factors` trains low-rank factors on their integer grid, `subspace` a few coefficients that all matrices
    share, `full` cuts the full retrain's change afterwards; `auto` tries what promises the smallest file and falls back
    to sending every value, at last without loss. What it took is printed at the end, with every update that was tried
    in `sprat release curve`.

    With `--config` the module changes: a head of more classes, whose new rows the update sends with the graph.

    With `--local-statistics` nothing is sent of the running statistics of batch norms: each device computes them from
    at least 64 inputs of its own, without labels, before it validates the release. Its weights are trained and
    measured that way. A release made from such a one is one too.

    Example: sprat retrain digits --dataset tilted-digits --keep 0.95 --watch

    Example: sprat retrain digits --dataset tilted-digits --budget 2kB --watch
    """
    options: dict[str, float | None] = {"seed": seed, "max_epochs": max_epochs, "max_candidates": max_candidates}
    options |= target(keep, budget, max_drop)
    with connect(ctx) as client:
        digest = client.datasets.resolve(dataset)["digest"]
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        if strategy is not Strategy.AUTO:
            given["strategy"] = strategy.value
        if config is not None:
            given["config"] = parse_config(config)
        if local_statistics:
            given["local_statistics"] = True
        if retain is not None:
            given["retain"] = client.datasets.resolve(retain)["digest"]
        job = client.models.retrain(model, dataset=digest, base=base, **given)
        if watch:
            job = wait_for_job(client, job)
        else:
            typer.echo(f"the server works on it; see: sprat job watch {job['id']}", err=True)
    emit(job, as_json=json_, text=summary(model, job) if watch else f"job {job['id']}")
    if note := (job["result"] or {}).get("note"):
        typer.echo(note, err=True)


def target(keep: float | None, budget: str | None, max_drop: str | None) -> dict[str, float | None]:
    """Return the request's field for the one knob that is given; none where none is.

    Raises:
        InvalidInput: several are given, or one makes no sense.
    """
    knobs = (("--keep", keep), ("--budget", budget), ("--max-drop", max_drop))
    given = [name for name, value in knobs if value is not None]
    if len(given) > 1:
        raise InvalidInput(f"give one of --keep, --budget and --max-drop, not {' and '.join(given)}")
    if budget is not None:
        return {"budget": parse_bytes("--budget", budget)}
    if max_drop is not None:
        return {"max_drop": parse_points("--max-drop", max_drop)}
    if keep is not None and not 0 < keep <= 1:
        raise InvalidInput(f"--keep {keep:g} is not a share; give a number above 0 and up to 1")
    return {"keep": keep}


def summary(model: str, job: "JobView") -> str:
    """Return what an ended job released, in one line."""
    result: dict[str, Any] = job["result"] or {}
    parts = [f"{model}@{result['release']}" if "release" in result else model]
    if result.get("state") == "pending-signatures":
        parts.append(f"pending-signatures, see: sprat release sign {model}@{result['release']} --help")
    if "update_bytes" in result:
        way = f" ({result['method']})" if "method" in result else ""
        parts.append(f"update {result['update_bytes']:,} bytes{way}")
    if result.get("local"):
        parts.append(f"{len(result['local'])} local tensors")
    parts += [
        f"{word} {result[key]:.4f}"
        for word, key in (
            ("base", "accuracy_base"),
            ("retrained", "accuracy_retrained"),
            ("released", "accuracy_released"),
            ("gain kept", "recovered_gain"),
            ("old base", "accuracy_old_base"),
            ("old retrained", "accuracy_old_retrained"),
            ("old released", "accuracy_old_released"),
        )
        if isinstance(result.get(key), int | float)
    ]
    return "  ".join(parts)


def update_text(update: Any) -> str:
    """Return one update of a release as text."""
    origin = "full" if update["base"] is None else f"from @{update['base']}"
    return f"{origin} {size(update['bytes'])}"


def split_release(model: str, number: int | None) -> tuple[str, int]:
    """Return name and number from `digits@2`, or from `digits` and 2.

    Raises:
        InvalidInput: the number is missing or not a number.
    """
    name, at, after = model.partition("@")
    if number is None and at and after.isdecimal():
        return name, int(after)
    if number is None or at:
        raise InvalidInput(f"{model!r} does not name one release; write {name}@2, or {name} 2")
    return name, number
