"""The curve of a retrain: what each update that was tried took and kept, as records and as a drawing (SVG).

The drawing is text made here: a plotting library would be the largest dependency of the command line.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from sprat_client.cli.output import size
from sprat_shared.errors import NotFound

Point = Mapping[str, Any]

_WIDTH: Final = 720
_HEIGHT: Final = 440
_LEFT: Final = 70
_RIGHT: Final = 24
_TOP: Final = 48
_BOTTOM: Final = 58
_INK: Final = "#1f2937"
_FAINT: Final = "#d1d5db"
_MARK: Final = "#2563eb"
_CHOSEN: Final = "#dc2626"


def points_of(release: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every point that the retrain of this release tried, fewest bytes first; `chosen` marks its own.

    Raises:
        NotFound: the release was not made by a retrain.
    """
    metrics = release["metrics"]
    curve = metrics.get("curve")
    if not curve:
        name = f"{release['model']}@{release['number']}"
        raise NotFound(f"{name} was {release['origin']}, not retrained here: it has no curve")
    points = [{**point, "chosen": point == metrics.get("chosen")} for point in curve]
    return sorted(points, key=lambda point: point["update_bytes"])


def drawing(release: Mapping[str, Any]) -> str:
    """Return the curve as an SVG document: bytes on a log axis, share of the gain upwards, the chosen point ringed.

    Raises:
        NotFound: the release was not made by a retrain.
    """
    points, metrics = points_of(release), release["metrics"]
    plane = _Plane(points, metrics)
    keep, budget = metrics.get("keep"), metrics.get("budget")
    parts = [*plane.grid()]
    if keep is not None:
        parts.append(_line(_LEFT, plane.y(keep), _WIDTH - _RIGHT, plane.y(keep), _CHOSEN, dashed=True))
        parts.append(_text(_WIDTH - _RIGHT - 4, plane.y(keep) - 5, f"{100 * keep:g} % asked for", anchor="end"))
    if budget is not None:
        parts.append(_line(plane.x(budget), _TOP, plane.x(budget), _HEIGHT - _BOTTOM, _CHOSEN, dashed=True))
        parts.append(_text(plane.x(budget) - 5, _TOP + 14, f"at most {size(budget)}", anchor="end"))
    parts += [plane.mark(point) for point in points]
    title = f"{release['model']}@{release['number']}: gain kept by size of the update (validation split)"
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="12" fill="{_INK}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            f'<text x="{_LEFT}" y="26" font-size="15">{escape(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )


class _Plane:
    """Where bytes and shares lie on the sheet."""

    def __init__(self, points: Sequence[Point], metrics: Mapping[str, Any]) -> None:
        sizes = [point["update_bytes"] for point in points] + [metrics.get("budget") or points[0]["update_bytes"]]
        shares = [point["share"] for point in points] + [metrics.get("keep") or 1.0, 1.0]
        self._fewest, self._most = math.log10(min(sizes) * 0.8), math.log10(max(sizes) * 1.25)
        self._step = 0.1 if min(shares) > 0 else 0.2
        self._lowest: float = max(self._step * math.floor(min(shares) / self._step - 0.5), -1.0)
        self._highest: float = max(shares) + self._step / 2

    def x(self, count: float) -> float:
        part = (math.log10(count) - self._fewest) / (self._most - self._fewest)
        return round(_LEFT + part * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, share: float) -> float:
        part = (max(share, self._lowest) - self._lowest) / (self._highest - self._lowest)
        return round(_HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM), 1)

    def grid(self) -> list[str]:
        bottom, parts = _HEIGHT - _BOTTOM, []
        for count in self._round_sizes():
            parts.append(_line(self.x(count), _TOP, self.x(count), bottom, _FAINT))
            parts.append(_text(self.x(count), bottom + 18, f"{count:,}", anchor="middle"))
        for rung in range(math.ceil(self._lowest / self._step), math.floor(self._highest / self._step) + 1):
            share = rung * self._step
            parts.append(_line(_LEFT, self.y(share), _WIDTH - _RIGHT, self.y(share), _FAINT))
            parts.append(_text(_LEFT - 8, self.y(share) + 4, f"{100 * share:.0f} %", anchor="end"))
        parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, "bytes of the update", anchor="middle"))
        return parts

    def _round_sizes(self) -> list[int]:
        decades = range(math.floor(self._fewest), math.ceil(self._most) + 1)
        digits = (1, 2, 5) if self._most - self._fewest < 3 else (1,)  # noqa: PLR2004 - decades; more would collide
        sizes = [digit * 10**decade for decade in decades if decade >= 0 for digit in digits]
        return [count for count in sizes if self._fewest <= math.log10(count) <= self._most]

    def mark(self, point: Point) -> str:
        """Return a point: filled where it is what was asked for, ringed and named where it was chosen."""
        x, y = self.x(point["update_bytes"]), self.y(point["share"])
        words = [point["method"]]
        words += [f"{name} {point[name]:g}" for name in ("rank", "price") if point[name] is not None]
        words.append(f"{point['update_bytes']:,} bytes, {100 * point['share']:.1f} % of the gain")
        fill = _MARK if point["keeps"] else "white"
        dot = (
            f'<circle cx="{x}" cy="{y}" r="4.5" fill="{fill}" stroke="{_MARK}" stroke-width="1.5">'
            f"<title>{escape(', '.join(words))}</title></circle>"
        )
        if not point["chosen"]:
            return dot
        ring = f'<circle class="chosen" cx="{x}" cy="{y}" r="9" fill="none" stroke="{_CHOSEN}" stroke-width="2"/>'
        left = x > _WIDTH / 2
        label = f"{point['update_bytes']:,} bytes, {100 * point['share']:.1f} %"
        return dot + ring + _text(x - 14 if left else x + 14, y + 22, label, anchor="end" if left else "start")


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"{dashes}/>'


def _text(x: float, y: float, words: str, *, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
