"""Tells the server how the samples drift that applications labelled: counts and histograms, seldom, never a sample."""

import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sprat_client.agent.durable import write_json
from sprat_client.agent.steps import Workshop
from sprat_client.agent.version import VERSION
from sprat_shared.errors import SpratError
from sprat_shared.protocol.fields import Fields
from sprat_shared.protocol.holdout_report import HoldoutReport

if TYPE_CHECKING:
    from sprat_client.agent.samples import Holdout
    from sprat_client.agent.serve import Serving

_log = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 60.0
_HOUR_S: Final = 3600.0
_DAY_S: Final = 24 * _HOUR_S
_FIRST: Final = 30  # samples before anything is told
_MOVED: Final = 0.1
_REPORTED: Final = "reported.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was last told of one model's samples.

    Attributes:
        at: seconds since 1970, on the device's clock.
        added: samples that had ever been added.
        shares: of the samples, by label.
        accuracy: of the release that served.
    """

    at: float
    added: int
    shares: dict[int, float]
    accuracy: float


def is_worth_looking(added: int, kept: int, last: Told | None, now: float) -> bool:
    """Return whether the serving release is asked about the samples: there are new ones, and the hour is over."""
    if last is None:
        return kept >= _FIRST
    return added != last.added and not 0 <= now - last.at < _HOUR_S


def is_worth_telling(now: Told, last: Told | None) -> bool:
    """Return whether the server is told: a day is over, or the samples or the accuracy on them moved."""
    if last is None or not 0 <= now.at - last.at < _DAY_S:
        return True
    labels = now.shares.keys() | last.shares.keys()
    distance = sum(abs(now.shares.get(one, 0.0) - last.shares.get(one, 0.0)) for one in labels) / 2
    return distance >= _MOVED or abs(now.accuracy - last.accuracy) >= _MOVED


class DriftReporter:
    """Looks at the samples of all models now and then.

    Args:
        shop: what the agent works with.
    """

    def __init__(self, shop: Workshop) -> None:
        self._shop, self._next = shop, 0.0

    def look(self) -> None:
        """Report what is worth it. What goes wrong is logged, and tried again later."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_EVERY_S
        for model in self._shop.servings.names():
            try:
                self._look_at(model)
            except (SpratError, OSError) as bad:
                _log.warning("the drift of samples is not reported", extra={"model": model, "detail": str(bad)})

    def _look_at(self, model: str) -> None:
        kept, last, serving = self._shop.holdouts.of(model), self._last(model), self._shop.servings.get(model)
        if serving is None or not is_worth_looking(kept.added, len(kept), last, time.time()):
            return
        if len(serving.host.inputs) != 1 or (holdout := kept.load(serving.host.inputs[0])) is None:
            return
        report = self._report(model, serving, holdout, kept.added)
        if report is None:
            return
        told = Told(
            at=time.time(),
            added=kept.added,
            shares={label: count / report.samples for label, count in report.classes},
            accuracy=sum(report.correct) / report.samples,
        )
        if is_worth_telling(told, last):
            self._shop.journal.say(report)
            self._shop.flush_reports()
            self._keep(model, told)

    def _report(self, model: str, serving: "Serving", holdout: "Holdout", added: int) -> HoldoutReport | None:
        from sprat_client.agent.histograms import counted  # noqa: PLC0415  # numpy, which only a model needs

        said = counted(serving.host, holdout)
        if said is None:
            return None
        return HoldoutReport(
            device=self._shop.device,
            sequence=self._shop.journal.next_sequence,
            model=model,
            release=serving.slot.release,
            samples=len(holdout.labels),
            added=added,
            classes=said.classes,
            others=said.others,
            confidences=said.confidences,
            correct=said.correct,
            agent=VERSION,
        )

    def _last(self, model: str) -> Told | None:
        path = self._shop.holdouts.folder_of(model) / _REPORTED
        if not self._shop.disk.exists(path):
            return None
        try:
            fields = Fields(json.loads(self._shop.disk.read(path)), _REPORTED)
            return Told(
                at=fields.number("at"),
                added=fields.integer("added"),
                shares={int(label): float(share) for label, share in fields.mapping("shares").items()},
                accuracy=fields.number("accuracy"),
            )
        except (SpratError, ValueError, TypeError):
            return None

    def _keep(self, model: str, told: Told) -> None:
        path = self._shop.holdouts.folder_of(model) / _REPORTED
        shares = {str(label): share for label, share in told.shares.items()}
        value = {"at": told.at, "added": told.added, "shares": shares, "accuracy": told.accuracy}
        write_json(self._shop.disk, path, value)
