"""`sprat sharing`: let models use each other's layers: measured, planned, shown, applied, undone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import aligned, emit, emit_table, size
from sprat_client.cli.quantities import parse_bytes
from sprat_client.cli.scores import check_png, draw, draw_front
from sprat_client.cli.watching import NoWait, finish
from sprat_shared.errors import InvalidInput

if TYPE_CHECKING:
    from sprat_client.api.sharing import SharingPlanView, SharingPreview

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Sharing: models of a box use each other's layers, certified without labels (docs/sharing.md).",
)

Models = Annotated[list[str], typer.Argument(help="Two models or more: name, or name@number.")]
Plan = Annotated[str, typer.Argument(help="The plan's id, or a unique start or end of it.")]
Dataset = Annotated[str, typer.Option(help="Inputs: name, digest or its start. Its labels are not used.")]
Seed = Annotated[int, typer.Option(help="By which inputs are parted into those that fit, choose and certify.")]
Budget = Annotated[
    list[str] | None,
    typer.Option(help="Largest share of answers that may change: 0.05, or MODEL=0.02 for one.  [default: 0.05]"),
]


@app.command()
def analyze(
    ctx: typer.Context,
    *,
    models: Models,
    dataset: Dataset,
    seed: Seed = 0,
    png: Annotated[Path | None, typer.Option(help="Draw the matrix into this file.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Measure what models could share, and show the scores of each pair; no plan is kept.

    Example: sprat sharing analyze face gate meter --dataset line-3 --png scores.png
    """
    if png is not None:
        check_png(png)
    with connect(ctx) as client:
        digest = client.datasets.resolve(dataset)["digest"]
        job = client.sharing.plan({"models": models, "dataset": digest, "seed": seed, "analyze": True})
        result = finish(client, job, no_wait=False)["result"] or {}
    if png is not None:
        draw(result["matrix"], png)
    emit(result, as_json=json_, text="\n".join([*_matrix(result["matrix"]), *_correlations(result["correlations"])]))


@app.command()
def plan(
    ctx: typer.Context,
    *,
    models: Annotated[list[str] | None, typer.Argument(help="Two models or more: name, or name@number.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Inputs: name, digest or its start; labels are not used.")] = None,
    budget: Budget = None,
    memory: Annotated[str | None, typer.Option(help="Memory that all of them must fit, such as 20MB.")] = None,
    levels: Annotated[int, typer.Option(help="Steps that each model may go down by.")] = 3,
    seed: Seed = 0,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Train what is a model's own in each level, by its recipe.")
    ] = False,
    refit: Annotated[str | None, typer.Option(metavar="PLAN", help="Ask that plan's question anew.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw what each bound would save into this file.")] = None,
    no_wait: NoWait = False,
    json_: JsonFlag = False,
) -> None:
    """Plan which models use whose layers; nothing is published before `sprat sharing apply`.

    Example: sprat sharing plan face gate meter --dataset line-3 --budget 0.05 --budget gate=0.02
    """
    if (refit is None) != (bool(models) and dataset is not None) or (refit is not None and finetune):
        raise InvalidInput("name models and --dataset, or --refit PLAN alone (it fine-tunes where that plan did)")
    if png is not None:
        check_png(png)
        if no_wait:
            raise InvalidInput("--png needs the plan: leave out --no-wait")
    with connect(ctx) as client:
        if refit is not None:
            job = client.sharing.refit(client.sharing.resolve(refit))
        else:
            question: dict[str, Any] = {"models": models, "levels": levels, "seed": seed, **_budgets(budget or [])}
            question["finetune"] = finetune
            question["dataset"] = client.datasets.resolve(dataset or "")["digest"]
            if memory is not None:
                question["memory_bytes"] = parse_bytes("--memory", memory)
            job = client.sharing.plan(question)
        job = finish(client, job, no_wait=no_wait)
        if no_wait:
            emit(job, as_json=json_, text=f"job {job['id']}")
            return
        made = client.sharing.show((job["result"] or {})["plan"])
    if png is not None:
        draw_front(made["result"], made["asked"]["budgets"], png)
    emit(made, as_json=json_, text=_told(made))


@app.command()
def preview(ctx: typer.Context, *, plan: Plan, json_: JsonFlag = False) -> None:
    """Show what `apply` would publish, who would get it, and in how many bytes.

    Example: sprat sharing preview 0198c0de
    """
    with connect(ctx) as client:
        shown = client.sharing.preview(client.sharing.resolve(plan))
    emit(shown, as_json=json_, text="\n".join(_previewed(shown)))


@app.command()
def apply(
    ctx: typer.Context,
    *,
    plan: Plan,
    waves: Annotated[str | None, typer.Option(help="Waves, such as 1,10%,100%.  [default: they double]")] = None,
    start: Annotated[bool, typer.Option("--start", help="Start the rollouts too.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Publish what a plan chose, and draft a rollout for each model that shares.

    Example: sprat sharing apply 0198c0de --start
    """
    reaches = None if waves is None else [wave.strip() for wave in waves.split(",")]
    with connect(ctx) as client:
        applied = client.sharing.apply(client.sharing.resolve(plan), waves=reaches, start=start)
    emit(applied, as_json=json_, text=_told(applied))


@app.command()
def status(
    ctx: typer.Context,
    *,
    plan: Annotated[str | None, typer.Argument(help="One plan: its id, or a unique start or end of it.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Show all plans, or one with its releases and rollouts.

    Example: sprat sharing status 0198c0de
    """
    with connect(ctx) as client:
        if plan is not None:
            found = client.sharing.show(client.sharing.resolve(plan))
            emit(found, as_json=json_, text=_told(found))
            return
        plans = client.sharing.plans()
    columns = {
        "plan": lambda one: one["id"],
        "state": lambda one: one["state"],
        "models": lambda one: ", ".join(f"{name}@{number}" for name, number in one["asked"]["models"].items()),
        "saves": lambda one: size(one["result"]["saved_bytes"]),
        "of": lambda one: size(one["result"]["total_bytes"]),
        "since": lambda one: one["created_at"],
    }
    emit_table(plans, columns, as_json=json_, empty="there is no plan yet; `sprat sharing plan` makes one")


@app.command()
def undo(
    ctx: typer.Context,
    *,
    plan: Plan,
    reason: Annotated[str, typer.Option(help="Kept in the audit log.")],
    json_: JsonFlag = False,
) -> None:
    """Take a plan's rollouts back: devices return to the releases that share nothing.

    Example: sprat sharing undo 0198c0de --reason "gate got slower"
    """
    with connect(ctx) as client:
        undone = client.sharing.undo(client.sharing.resolve(plan), reason=reason)
    emit(undone, as_json=json_, text=_told(undone))


def _budgets(said: list[str]) -> dict[str, Any]:
    given: dict[str, Any] = {"budgets": {}}
    for text in said:
        name, equals, share = text.rpartition("=")
        try:
            value = float(share)
        except ValueError:
            raise InvalidInput(f"--budget {text}: say a share such as 0.05, or MODEL=0.05") from None
        if equals:
            given["budgets"][name] = value
        else:
            given["budget"] = value
    return given


def _matrix(matrix: dict[str, Any]) -> list[str]:
    """Return agreement and CKA of the best way of each pair as a table: donors down, recipients across."""
    rows = [["donor \\ shares", *matrix["models"]]]
    for name, agrees, cka in zip(matrix["models"], matrix["agreement"], matrix["cka"], strict=True):
        rows.append([name, *(_cell(*pair) for pair in zip(agrees, cka, strict=True))])
    return [*aligned(rows), "agreement of the way that agrees best (its debiased CKA)"]


def _correlations(found: dict[str, float | None]) -> list[str]:
    """Return how far similarity foretells what sharing changes, of these models."""
    said = [f"{name} {r:.2f}" for name, r in (("debiased CKA", found["cka"]), ("R2", found["r2"])) if r is not None]
    return [f"correlation with the share of answers that change: {', '.join(said)}"] if said else []


def _cell(agreement: float | None, cka: float | None) -> str:
    if agreement is None:
        return "-"
    return f"{agreement:.3f}" + ("" if cka is None else f" ({cka:.2f})")


def _told(plan: "SharingPlanView") -> str:
    result = plan["result"]
    lines = [
        f"plan {plan['id']} is {plan['state']}" + (f": {plan['stale_reason']}" if plan["stale_reason"] else ""),
        f"saves {size(result['saved_bytes'])} of {size(result['total_bytes'])}"
        + ("" if result["fits"] else "; that does not fit the memory"),
    ]
    for one in result["chosen"]:
        first = one["levels"][0]
        lines.append(
            f"{one['recipient']}@{one['base']} on {one['donor']}@{one['donor_release']}: {first['form']}, saves "
            f"{size(first['saved_bytes'])}, at most {first['bound']:.2%} of answers change "
            f"({first['disagreed']} of {first['compared']} did), {len(one['levels'])} levels"
        )
        lines += [
            f"  level {each['level']} {_finetuned(each['finetune'])}" for each in one["levels"] if "finetune" in each
        ]
    for one in result["left_out"]:
        lines.append(f"{one['recipient']} is left out: {one['why']}")
        lines += [f"  one of its levels {_finetuned(each)}" for each in one.get("finetune", [])]
    lines += [f"published {one['model']}@{one['release']}, level {one['level']}" for one in plan["releases"]]
    lines += [f"rollout {one['id']} of {one['model']}@{one['release']} is {one['state']}" for one in plan["rollouts"]]
    for one in plan["standing"]:
        levels = [f"{each['devices']} at level {each['level']}" for each in one["levels"]]
        lines.append(f"devices of {one['model']}: {', '.join(levels)}, {one['nothing']} share nothing")
    return "\n".join(lines)


def _finetuned(told: dict[str, Any]) -> str:
    """Return what fine-tuning was good for: agreement with the model that shares nothing, before and after."""
    before, after = told["agreement_before"], told["agreement_after"]
    if told["trained"]:
        return f"is fine-tuned: {before:.2%} of answers agreed before, {after:.2%} after"
    return f"is not fine-tuned ({told['why']}): {told['detail']}; {before:.2%} of answers agree"


def _previewed(shown: "SharingPreview") -> list[str]:
    lines = []
    for one in shown["recipients"]:
        lines.append(
            f"{one['model']}@{one['base']} on {one['donor']}@{one['donor_release']}: {one['devices']} devices, "
            f"{size(one['bytes_to_devices'])} in all; where {one['where']}"
        )
        for level in one["levels"]:
            form = f"{level['form']}, fine-tuned" if level["finetuned"] else level["form"]
            lines.append(
                f"  level {level['level']}: {form}, saves {size(level['saved_bytes'])}, bound {level['bound']:.2%}, "
                f"update {size(level['update_bytes'])}, full {size(level['full_bytes'])}"
            )
    return [*lines, *(f"in the way: {each}" for each in shown["obstacles"])] or ["nothing would be published"]
