"""`sprat model`: register, list, show."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, emit_fields, emit_table
from sprat_client.cli.watching import NoWait, finish, upload
from sprat_shared.errors import InvalidInput

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Models: named lineages of weights.")


@app.command()
def register(
    ctx: typer.Context,
    *,
    name: Annotated[str, typer.Argument(help="1 to 63 characters of a-z, 0-9 and '-'.")],
    weights: Annotated[Path, typer.Option(help="The trained weights, safetensors.")],
    recipe: Annotated[str | None, typer.Option(help="package.module:build, importable where the worker runs.")] = None,
    config: Annotated[str | None, typer.Option(help="JSON for the recipe, or @FILE that holds it.")] = None,
    graph: Annotated[Path | None, typer.Option(help="ONNX file, for a model without a recipe.")] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of the input, batch axis included: 1,1,28,28. Of several inputs, once for each, in the order "
            "of the module's arguments: name=1,64 or name=1,64:I64."
        ),
    ] = None,
    example_dtype: Annotated[str, typer.Option(help="Dtype where none is said, safetensors code.")] = "F32",
    no_wait: NoWait = False,
    json_: JsonFlag = False,
) -> None:
    """Register a model with its first weights; this makes release 1.

    A model with a recipe can be retrained on the server; one from ONNX alone takes weights trained elsewhere.

    Example: sprat model register digits --recipe shop.nets:build --config '{"width": 32}' --weights digits.safetensors
    """
    if (recipe is None) == (graph is None):
        raise InvalidInput(
            "a model comes from --recipe package.module:build or from --graph FILE.onnx: give one of them"
        )
    if recipe is None and config is not None:
        raise InvalidInput("--config is for the recipe; give --recipe too")
    inputs = parse_example(example or [], example_dtype)
    chosen = None if recipe is None else {"factory": recipe, "config": parse_config(config)}
    with connect(ctx) as client:
        job = client.models.register(
            name,
            weights=upload(client, weights),
            recipe=chosen,
            graph=None if graph is None else upload(client, graph),
            example=inputs,
        )
        job = finish(client, job, no_wait=no_wait)
    waits = (job["result"] or {}).get("state") == "pending-signatures"
    registered = f"{name}@1 is registered" + (
        f"; pending-signatures, see: sprat release sign {name}@1" if waits else ""
    )
    emit(job, as_json=json_, text=f"job {job['id']}" if no_wait else registered)


@app.command("list")
def list_(ctx: typer.Context, *, json_: JsonFlag = False) -> None:
    """List the models.

    Example: sprat model list
    """
    with connect(ctx) as client:
        models = client.models.list()
    columns = {
        "model": lambda one: one["name"],
        "latest": lambda one: one["latest"],
        "recipe": lambda one: (one["recipe"] or {}).get("factory"),
        "since": lambda one: one["created_at"],
    }
    emit_table(models, columns, as_json=json_, empty="no model yet; see: sprat model register --help")


@app.command()
def show(
    ctx: typer.Context, *, name: Annotated[str, typer.Argument(help="The model.")], json_: JsonFlag = False
) -> None:
    """Show one model.

    Example: sprat model show digits --json
    """
    with connect(ctx) as client:
        emit_fields(client.models.get(name), as_json=json_)


def parse_example(said: Sequence[str], dtype: str) -> dict[str, Any] | None:
    """Return `1,1,28,28`, or `name=1,64:I64` for each of several inputs, as the API takes it; None for nothing.

    Raises:
        InvalidInput: a shape is none, or one of several inputs has no name, or that of another.
    """
    inputs: list[dict[str, Any]] = []
    for text in said:
        name, equals, port = text.rpartition("=")
        shape, colon, code = port.partition(":")
        if (len(said) > 1 and not equals) or any(name == one["name"] for one in inputs):
            raise InvalidInput(f"--example {text!r}: several inputs are told apart by name, as --example image=1,64")
        inputs.append({"name": name, "shape": parse_shape(shape), "dtype": code if colon else dtype})
    if len(inputs) == 1 and not inputs[0]["name"]:
        return {"shape": inputs[0]["shape"], "dtype": inputs[0]["dtype"]}
    return {"inputs": inputs} if inputs else None


def parse_shape(text: str) -> list[int]:
    """Return `1,1,28,28` as numbers.

    Raises:
        InvalidInput: it is something else.
    """
    try:
        shape = [int(part) for part in text.split(",")]
    except ValueError:
        shape = []
    if not shape or min(shape) < 1:
        raise InvalidInput(f"--example {text!r} is not a shape; write positive numbers with commas, such as 1,1,28,28")
    return shape


def parse_config(text: str | None) -> dict[str, Any]:
    """Return a recipe's config from JSON, or from the file that `@FILE` names; {} for None.

    Raises:
        InvalidInput: it is not a JSON object.
    """
    if text is None:
        return {}
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except OSError as error:
            raise InvalidInput(f"--config {text}: {error.strerror}") from None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"--config is not JSON ({error})") from None
    if not isinstance(config, dict):
        raise InvalidInput('--config must be a JSON object, such as {"width": 32}')
    return config
