"""`sprat delta`: update files from and for safetensors files, without a server.

Nothing heavy is imported before a command runs, and `apply` loads neither the runtime nor the trust client.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sprat_client.cli.invocation import JsonFlag
from sprat_client.cli.output import aligned, emit, short, shown, size
from sprat_shared.errors import InvalidInput

if TYPE_CHECKING:
    from sprat_shared.encode import Encoded

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Update files between two safetensors files; needs no server."
)

LOW_RANK_FROM: Final = 0.8  # of the change's square
DATA_HINT: Final = (
    "Weights alone cannot tell how much of the gain a smaller file keeps. With data, `sprat retrain` trains the update "
    "inside the code: about ten times fewer bytes than this for the same gain in this project's benchmark "
    "(docs/benchmarks.md)."
)
_UNITS: Final = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kKMG]?i?B?)")

Base = Annotated[Path, typer.Argument(help="The weights that the receiver holds, safetensors.")]
Update = Annotated[Path, typer.Argument(help="The update file.", metavar="F")]


@app.command()
def encode(
    *,
    base: Base,
    new: Annotated[Path, typer.Argument(help="The weights wished; tensors may have been added, removed or reshaped.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The update file to write.", metavar="F")],
    lossless: Annotated[bool, typer.Option("--lossless", help="Every bit of NEW.")] = False,
    budget: Annotated[
        str | None, typer.Option(help="At most so many bytes, as close to NEW as they go: 900, 2kB, 1.5MB.")
    ] = None,
    max_error: Annotated[float | None, typer.Option(help="No value differs from NEW by more than this.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Make the update that turns BASE into NEW, or nearly: without an option within a tenth of the change's norm.

    Where NEW has other tensors (a head that has grown), the update says so; what is new begins as zeros. Dtypes stay.

    What APPLY gives is the same on every machine, bit for bit; its weights digest is printed. So is a curve: what files
    of other sizes would miss, and whether few directions hold the change, which is when few bytes can say it.

    Example: sprat delta encode v1.safetensors v2.safetensors -o v1-v2.sprat --budget 20kB
    """
    from sprat_client.cli.delta_files import replacing, table_changes  # noqa: PLC0415 - numpy is loaded when it is needed
    from sprat_shared.encode import encode_delta  # noqa: PLC0415
    from sprat_shared.wire.safetensors import SafetensorsFile  # noqa: PLC0415

    budget_bytes = None if budget is None else parse_bytes(budget)
    with SafetensorsFile(base) as held, SafetensorsFile(new) as wished:
        encoded = encode_delta(held, wished, lossless=lossless, budget_bytes=budget_bytes, max_error=max_error)
        model_bytes, table = wished.table.nbytes, table_changes(held.table, wished.table)
    with replacing(output) as file:
        file.write(encoded.data)
    result = {
        "file": str(output),
        "bytes": len(encoded.data),
        "model_bytes": model_bytes,
        "weights": encoded.weights,
        "table": table,
        "tensors": [asdict(row) for row in encoded.tensors],
        "curve": [asdict(point) for point in encoded.curve],
        "low_rank_share": encoded.low_rank_share,
        "hint": DATA_HINT if encoded.curve else None,
    }
    rows = [["tensor", "encoding", "rank", "about", "largest error", "relative error"]]
    for row in encoded.tensors:
        rank, errors = str(row.rank or "-"), (shown(row.max_error), shown(row.relative_error))
        rows.append([row.name, row.encoding, rank, size(row.bytes), *errors])
    text = [
        *(aligned(rows) if encoded.tensors else ["no value differs"]),
        *([] if table is None else [f"tensor table: {table}"]),
        *(_curve(encoded) if encoded.curve else []),
        f"{output}: {size(len(encoded.data))} for {size(model_bytes)} of weights; it gives {short(encoded.weights)}",
    ]
    emit(result, as_json=json_, text="\n".join(text))


def _curve(encoded: "Encoded") -> list[str]:
    """Return what a person should know who wonders whether fewer bytes would do."""
    points = [[f"about {size(point.bytes)}", f"{100 * point.relative_error:.3g} %"] for point in encoded.curve]
    lines = ["", *aligned([["with a budget of", "missed of the change (norm)"], *points]), ""]
    if encoded.low_rank_share is not None:
        held = f"of the change's square {100 * encoded.low_rank_share:.0f} % lies in 16 directions of each large matrix"
        low = encoded.low_rank_share >= LOW_RANK_FROM
        lines.append(
            f"{held}: {'it is nearly low rank' if low else 'it is not low rank, and few bytes say little of it'}"
        )
    return [*lines, DATA_HINT, ""]


@app.command()
def apply(
    *,
    base: Base,
    update: Update,
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.", metavar="OUT")],
    expect: Annotated[
        str | None,
        typer.Option(help="Weights digest that the result must have; files of the server's store do not carry it."),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Rebuild the weights that the update F makes of BASE; OUT appears only when their digest is right.

    A full update does not read BASE. Memory: BASE mapped, and about three times the largest tensor.

    Example: sprat delta apply v1.safetensors v1-v2.sprat -o v2.safetensors
    """
    from sprat_client.cli.delta_files import apply_file  # noqa: PLC0415 - numpy is loaded when it is needed

    result = apply_file(base, update, output, expect)
    changed, tensors = result["tensors_changed"], result["tensors"]
    text = f"{output}: {size(result['bytes'])}, {changed} of {tensors} tensors changed, {short(result['weights'])}"
    emit(result, as_json=json_, text=text)


@app.command()
def inspect(
    *,
    update: Update,
    base: Annotated[
        Path | None, typer.Option(help="The weights that F is for: without them only a full update tells its records.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Show what the update file F says: its header, and record by record what changes.

    Example: sprat delta inspect v1-v2.sprat --base v1.safetensors --json
    """
    from sprat_client.cli.delta_files import inspect_file  # noqa: PLC0415 - numpy is loaded when it is needed

    result = inspect_file(update, base)
    text = aligned([[name, shown(value)] for name, value in result.items() if name != "records"])
    if result["records"] is not None:
        rows = [["index", "tensor", "kind", "rank", "scale", "step", "bytes", "detail"]]
        rows += [[shown(record[column]) for column in ("index", *rows[0][1:])] for record in result["records"]]
        text += ["", *aligned(rows)]
    else:
        text += ["", "its records depend on the shapes of the base: give --base BASE to see them"]
    emit(result, as_json=json_, text="\n".join(text))


def parse_bytes(text: str) -> int:
    """Return `900`, `2kB`, `1.5 MB` or `64KiB` as a number of bytes.

    Raises:
        InvalidInput: it is something else.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        units = ", ".join(unit for unit in _UNITS if unit)
        raise InvalidInput(f"{text!r} is not a number of bytes; write digits and one of {units}, such as 2kB")
    return int(float(match[1]) * _UNITS[match[2]])
