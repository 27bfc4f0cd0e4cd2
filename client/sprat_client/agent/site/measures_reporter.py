"""Tells the server what modules and links of the site take: a new figure at once, changes seldom, sharp ones sooner."""

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sprat_client.agent.durable import make_folder, write_json
from sprat_client.agent.formats import FORMAT, NewerFormat, check_format
from sprat_client.agent.site.plan_files import FOLDER
from sprat_client.agent.site.site_meter import SiteMeter
from sprat_client.agent.steps import Workshop
from sprat_client.agent.version import VERSION
from sprat_shared.errors import SpratError
from sprat_shared.protocol.fields import Fields
from sprat_shared.protocol.measures_report import MOST_LINKS, MOST_MODULES, MeasuresReport

if TYPE_CHECKING:
    from sprat_client.agent.site.held_plan import HeldPlan
    from sprat_shared.protocol.site_plan import PlannedModule

_log = logging.getLogger(__name__)
_FORMAT: Final = 1
_FILE: Final = "measured.json"
_MUCH: Final = 0.25  # of the smaller of what is and what was told
_SHARPLY: Final = 1.0  # likewise: twice, or half
_SOONER: Final = 12  # times, where a figure changed sharply
_NOISE: Final = 0.001  # seconds

Figures = Mapping[str, float]


class MeasuresReporter:
    """Looks at what was measured now and then, from the agent's own thread.

    What was told is kept on the disk, so that a restart repeats nothing.

    Args:
        shop: what the agent works with.
        measured: what was.
    """

    def __init__(self, shop: Workshop, measured: SiteMeter) -> None:
        self._shop, self._measured = shop, measured
        self._path = shop.settings.folder / FOLDER / _FILE
        self._next = 0.0
        self._told: tuple[float, Figures] | None = None

    def look(self, serving: Collection["HeldPlan"], held: Collection["HeldPlan"]) -> float | None:
        """Report what is worth it; return when to look again, seconds; None: once this device serves.

        What goes wrong is logged, and tried again later.
        """
        if not serving:
            self._next = time.monotonic() + self._shop.settings.site.news_s
            return None
        if (wait_s := self._next - time.monotonic()) > 0:
            return wait_s
        self._next = time.monotonic() + self._shop.settings.site.news_s
        modules = {(one.model, one.release): one for each in held for one in each.plan.modules_of(self._shop.device)}
        release_ids = {one.release_id for one in modules.values()}
        self._measured.forget_but(release_ids, {device for each in held for device in each.peers})
        try:
            self._report_if_due([one for _, one in sorted(modules.items())])
        except (SpratError, OSError) as bad:
            _log.warning("what was measured is not reported", extra={"detail": str(bad)})
        return self._shop.settings.site.news_s

    def _report_if_due(self, modules: Sequence["PlannedModule"]) -> None:
        report = MeasuresReport(
            device=self._shop.device,
            sequence=self._shop.journal.next_sequence,
            modules=self._measured.modules(modules)[:MOST_MODULES],
            links=self._measured.links()[:MOST_LINKS],
            agent=VERSION,
        )
        now, figures = time.time(), figures_of(report)
        if self._told is None:
            self._told = self._read()
        at, told = self._told
        if not is_due(figures, told, since_s=now - at, report_s=self._shop.settings.site.report_s):
            return
        self._shop.journal.say(report)
        self._shop.flush_reports()
        things = {name.split()[0] for name in figures}
        self._told = now, {name: value for name, value in told.items() if name.split()[0] in things} | figures
        make_folder(self._shop.disk, self._path.parent)
        write_json(self._shop.disk, self._path, {FORMAT: _FORMAT, "at": now, "told": self._told[1]})

    def _read(self) -> tuple[float, Figures]:
        disk = self._shop.disk
        try:
            if not disk.exists(self._path):
                return 0.0, {}
            value = json.loads(disk.read(self._path))
            check_format(value, self._path, _FORMAT)
            said = Fields(value, _FILE)
            return said.number("at"), {name: float(one) for name, one in said.mapping("told").items()}
        except (NewerFormat, SpratError, ValueError, TypeError) as bad:
            _log.warning("what was told of measures is told again", extra={"detail": f"{self._path}: {bad}"})
            return 0.0, {}


def figures_of(report: MeasuresReport) -> dict[str, float]:
    """Return each figure of a report as `thing figure`: bytes, seconds, or seconds per MB; of a spread its median."""
    said: dict[str, float | None] = {}
    for module in report.modules:
        name = f"{module.model}@{module.release}"
        said[f"{name} memory"], said[f"{name} tried"] = module.memory_bytes, module.tried_s
        said[f"{name} runs"] = None if module.runs is None else module.runs.median
    for link in report.links:
        said[f"{link.device} round-trip"] = None if link.round_trip is None else link.round_trip.median
        for what, spread in (("sent", link.sent), ("received", link.received)):
            said[f"{link.device} {what}"] = None if spread is None else 1e6 * spread.median
    return {name: float(value) for name, value in said.items() if value is not None}


def is_due(figures: Figures, told: Figures, *, since_s: float, report_s: float) -> bool:
    """Return whether figures are to be told, by what was told so many seconds ago (below 0: the clock was set back).

    New ones are at once, changed ones after `report_s`, or a twelfth of that where one is twice or half of what it was.
    """
    if figures.keys() - told.keys():
        return True
    waits_s = report_s / (_SOONER if has_changed(figures, told, by=_SHARPLY) else 1)
    return not 0 <= since_s < waits_s and has_changed(figures, told, by=_MUCH)


def has_changed(figures: Figures, told: Figures, *, by: float) -> bool:
    """Return whether a figure is another one than was told, by more than so much of the smaller of both."""
    both = ((value, told[name]) for name, value in figures.items() if name in told)
    return any(abs(value - before) > max(_NOISE, by * min(value, before)) for value, before in both)
