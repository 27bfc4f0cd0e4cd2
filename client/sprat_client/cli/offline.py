"""`sprat bundle`: what devices without a network should run, in a file for somebody to carry to them."""

from pathlib import Path
from typing import Annotated

import typer

from sprat_client.cli.invocation import JsonFlag, connect
from sprat_client.cli.output import emit, size
from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.bundle import PREFIX_BYTES, head_bytes, read_head

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Bundles: what devices without a network should run, in one file; see: sprat-agent install --help.",
)


@app.command()
def export(
    ctx: typer.Context,
    *,
    device: Annotated[
        list[str] | None, typer.Option("--for", help="For this device (name or id); may be repeated.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="For all devices that are assigned a release of this model.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    valid_days: Annotated[
        int | None,
        typer.Option(help="For how long it must be good, 1 to 90 days.  [default: what is signed anyway, 3 or more]"),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="With full updates, for devices that may hold something else than they reported."),
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Write what devices should run to a file: signed metadata of each, and each payload once.

    It holds no key and no token, and only the devices that it is for take anything from it. The models are in it.

    Example: sprat bundle export --for gate-7 --for gate-8 -o line-3.bundle --valid-days 30
    """
    if (not device) == (model is None):
        raise InvalidInput("say for whom the bundle is: --for DEVICE, which may be repeated, or --model MODEL")
    with connect(ctx) as client:
        devices = [client.devices.resolve(one) for one in device] if device else None
        valid_until = client.bundles.export(output, devices=devices, model=model, valid_days=valid_days, full=full)
    with output.open("rb") as file:
        prefix = file.read(PREFIX_BYTES)
        head = read_head(prefix, file.read(head_bytes(prefix)), file_bytes=output.stat().st_size)
    said = {
        "file": str(output),
        "bytes": head.whole_bytes,
        "devices": [str(one) for one in head.devices],
        "payloads": len(head.payloads),
        "valid_until": valid_until,
    }
    text = (
        f"{output}: {size(head.whole_bytes)}, devices: {len(head.devices)}, payloads: {len(head.payloads)}, "
        f"valid until {valid_until}; on the device: sprat-agent install {output.name} --dir D"
    )
    emit(said, as_json=json_, text=text)
