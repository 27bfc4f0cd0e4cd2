"""`sprat report`: what the fleet's records say, summed up."""

import csv
import io
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sprat_client.cli.config_files import read_mapping
from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import aligned, emit, size
from sprat_shared.errors import InvalidInput

if TYPE_CHECKING:
    from sprat_client.api import SavingsView

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Reports: what the fleet's records say, summed up.")

_COLUMNS = (
    "part",
    "model",
    "base",
    "release",
    "updates",
    "bytes",
    "full_bytes",
    "model_bytes",
    "saved_share",
    "cost",
    "full_cost",
    "samples",
    "accuracy_before",
    "accuracy_after",
)


@app.callback()
def reports() -> None:
    """Reports: what the fleet's records say, summed up."""


@app.command()
def savings(
    ctx: typer.Context,
    *,
    since: Annotated[str | None, typer.Option(help="From this date on.  [default: the first report]")] = None,
    until: Annotated[str | None, typer.Option(help="Before this date.  [default: now]")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model alone.")] = None,
    config: Annotated[Path | None, typer.Option(help="Prices, as YAML or JSON (docs/savings.md).")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for a spreadsheet.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Say what updates took beside full models: bytes, money, accuracy, and what that makes at the same rate.

    Example: sprat report savings --since 2026-06-01 --config prices.yaml
    """
    prices = None if config is None else read_mapping("--config", config)
    with connect(ctx) as client:
        said = client.reports.savings(
            since=_moment("--since", since), until=_moment("--until", until), model=model, prices=prices
        )
    if as_csv and not json_:
        typer.echo(_csv(said), nl=False)
        return
    emit(said, as_json=json_, text="\n".join(_lines(said)))


def _moment(option: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{option} {text!r}: write a date such as 2026-06-01, or 2026-06-01T08:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


def _lines(said: "SavingsView") -> Iterator[str]:
    yield f"{said['since'][:10]} to {said['until'][:10]} ({said['days']:.1f} days), {said['devices']} devices updated"
    yield ""
    head = ["model", "from", "to", "updates", "sent", "full models", "saved", "cost", "full cost", "accuracy"]
    rows = [[row["model"], _from(row["base"]), str(row["release"]), *_cells(row, said)] for row in said["rows"]]
    rows.append(["all updates", "", "", *_cells(said["updates"], said)])
    yield from aligned([head, *rows])
    if said["first"]["updates"]:
        yield ""
        yield (
            f"First releases are full in any case, and no part of the sum: {said['first']['updates']}, "
            f"{size(said['first']['bytes'])}."
        )
    if said["devices"]:
        count, total = said["devices"], said["updates"]
        yield (
            f"Per device: {size(total['bytes'] / count)} instead of {size(total['full_bytes'] / count)}, "
            f"{_money(total['cost'] / count, said)} instead of {_money(total['full_cost'] / count, said)}."
        )
    yield ""
    if not said["projections"]:
        yield "Less than a day was observed: nothing is projected from it."
        return
    yield f"A projection, not a promise: what the rate of these {said['days']:.1f} days makes."
    yield from aligned(
        [
            ["in", "updates", "sent", "full models", "cost", "full cost", "saved"],
            *(
                [
                    one["horizon"],
                    f"{one['updates']:.0f}",
                    size(one["bytes"]),
                    size(one["full_bytes"]),
                    _money(one["cost"], said),
                    _money(one["full_cost"], said),
                    _money(one["full_cost"] - one["cost"], said),
                ]
                for one in said["projections"]
            ),
        ]
    )


def _from(base: int | None) -> str:
    return "-" if base is None else str(base)


def _cells(row: Mapping[str, Any], said: "SavingsView") -> list[str]:
    before, after = row["accuracy_before"], row["accuracy_after"]
    accuracy = "-"
    if before is not None and after is not None:
        accuracy = f"{before:.2%} to {after:.2%} (n={row['samples']})"
    return [
        str(row["updates"]),
        size(row["bytes"]),
        size(row["full_bytes"]),
        "-" if row["saved_share"] is None else f"{row['saved_share']:.2%}",
        _money(row["cost"], said),
        _money(row["full_cost"], said),
        accuracy,
    ]


def _money(amount: float, said: "SavingsView") -> str:
    return f"{amount:.2f} {said['currency']}"


def _csv(said: "SavingsView") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in said["rows"]:
        writer.writerow({"part": "step", **row})
    writer.writerow({"part": "updates", **said["updates"]})
    writer.writerow({"part": "first releases", **said["first"]})
    for one in said["projections"]:
        writer.writerow({"part": f"projection: {one['horizon']}", **one})
    return text.getvalue()
