"""What is known of a site's modules and links, as rows for people: each figure with where it is from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sprat_client.cli.output import aligned, size

if TYPE_CHECKING:
    from sprat_client.api.sites import FigureView, SiteMeasuresView

_LINK: Final = {"up_mbit": "Mbit/s", "down_mbit": "Mbit/s", "delay_ms": "ms"}
_LINK_HEAD: Final = ("link of", "up", "from", "down", "from", "delay", "from")


def told_measures(found: "SiteMeasuresView") -> list[str]:
    """Return the lines of `sprat site measures`."""
    rows = [["module", "device", "class", "seconds", "from", "memory", "from"]]
    for one in found["modules"]:
        module = f"{one['model']}@{one['release']}"
        rows.append(
            [module, one["device"], one["profile"] or "-", *_seconds(one["seconds"]), *_bytes(one["memory_bytes"])]
        )
    lines = aligned(rows) if len(rows) > 1 else ["no module was measured yet: plan one by hand (--hosts), and apply it"]
    links = ((one["device"], one) for one in found["links"])
    lines += ["", *aligned([_LINK_HEAD, *(_link(name, one) for name, one in links)])]
    ways = [
        [way["device"], way["to"], _round_trip(way["round_trip"]), _rate(way["sent"]), _rate(way["received"])]
        for way in found["ways"]
    ]
    head = ["from", "to", "round trip", "sent", "received"]
    return lines + (["", *aligned([head, *ways])] if ways else [])


def told_figures(figures: Mapping[str, Any]) -> list[str]:
    """Return the lines of a plan's figures, by which it was placed."""
    rows = [["module", "on", "seconds", "from", "memory", "from"]]
    for model, one in sorted(figures["modules"].items()):
        memory = _bytes(one["memory_bytes"])
        for device, seconds in sorted(one["seconds"].items()):
            rows.append([model, device, *_seconds(seconds), *memory])
            memory = ["", ""]
    links = (_link(device, one) for device, one in sorted(figures["links"].items()))
    return ["placed by:", *aligned(rows), *aligned([_LINK_HEAD, *links])]


def _link(device: str, link: Mapping[str, Any]) -> list[str]:
    cells = ([f"{_short(link[name]['value'])} {unit}", link[name]["origin"]] for name, unit in _LINK.items())
    return [device, *(cell for pair in cells for cell in pair)]


def _seconds(figure: "FigureView | None") -> list[str]:
    if figure is None:
        return ["unknown", "-"]
    spread = "" if figure["p10"] is None else f" ({figure['p10']:.3g} to {figure['p90']:.3g})"
    return [f"{figure['value']:.3g}{spread}", _origin(figure)]


def _bytes(figure: "FigureView | None") -> list[str]:
    return ["unknown", "-"] if figure is None else [size(figure["value"]), _origin(figure)]


def _origin(figure: "FigureView") -> str:
    return f"{figure['origin']}: {figure['detail']}" if figure["detail"] else figure["origin"]


def _round_trip(spread: Mapping[str, Any] | None) -> str:
    return "-" if spread is None else f"{_short(1000 * spread['median'])} ms"


def _short(value: float) -> str:
    """Return three digits of a number, without an exponent where it is one that people have a feeling for."""
    return f"{float(f'{value:.3g}'):g}"


def _rate(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "-"
    return f"{_short(8e-6 / spread['median'])} Mbit/s" if spread["median"] > 0 else "too fast to tell"
