"""One release that shares layers, in service: what comparing it has shown so far, and what follows from that.

What was shown is one small file for each model, replaced durably after each time of comparing:

    models/<name>/guard.json    {weights, requests, compared, disagreed, skipped, observations, wealth, drifted, blind}

A kill between a comparison and that write loses what was compared since the last one, and the requests that waited; it
repeats nothing. So the file is what would be there had those requests never been drawn, and as it is not what they
showed that decides on kills, the false-alarm rate holds: what is lost is time. The other way around, to write before
comparing what will be compared, would need the requests themselves on the disk.
"""

import json
import logging
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sprat_client.agent.durable import Disk, write_json
from sprat_client.agent.formats import FORMAT, check_format
from sprat_client.agent.releases import Manifest, Shelf, Slot, Slots
from sprat_client.agent.sampled import Samples
from sprat_client.agent.trial import Unhealthy
from sprat_shared.errors import InvalidInput
from sprat_shared.evidence.change import ChangeGame, Standing
from sprat_shared.protocol.fields import Fields
from sprat_shared.trust.targets import Shares

_log = logging.getLogger(__name__)
GUARD_FILE: Final = "guard.json"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRecord:
    """What comparing one release with the one that it was made from has shown.

    Attributes:
        weights: weights digest of the release.
        standing: of the game that bets on how many answers differ; one observation for each request.
        requests: that were compared,
        compared: samples in them,
        disagreed: samples of these of which the two name different classes.
        skipped: requests of which nothing can be said: the other release failed on them, or no classes are named.
        drifted: more answers differ than may; the device has to go back.
        blind: why nothing could be compared last time; None: it could.
    """

    weights: str
    standing: Standing
    requests: int = 0
    compared: int = 0
    disagreed: int = 0
    skipped: int = 0
    drifted: bool = False
    blind: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object; binary64 survives its shortest decimal form."""
        return {
            FORMAT: _FORMAT,
            "weights": self.weights,
            "observations": self.standing.observations,
            "wealth": list(self.standing.wealth),
            "requests": self.requests,
            "compared": self.compared,
            "disagreed": self.disagreed,
            "skipped": self.skipped,
            "drifted": self.drifted,
            "blind": self.blind,
        }

    @classmethod
    def of(cls, value: Any) -> "GuardRecord":
        """Read the JSON object.

        Raises:
            InvalidInput: a field is missing or wrong.
            NewerFormat: a newer agent wrote it.
        """
        check_format(value, Path(GUARD_FILE), _FORMAT)
        fields = Fields(value, GUARD_FILE)
        return cls(
            weights=fields.digest("weights"),
            standing=ChangeGame.standing(fields.integer("observations"), fields.list_of("wealth")),
            requests=fields.integer("requests"),
            compared=fields.integer("compared"),
            disagreed=fields.integer("disagreed"),
            skipped=fields.integer("skipped"),
            drifted=fields.flag("drifted"),
            blind=fields.text("blind") if fields.has("blind") else None,
        )


def read_record(shelf: Shelf, disk: Disk) -> GuardRecord | None:
    """Return what is known of a model's release that was guarded last; None where nothing is, or it cannot be read.

    Raises:
        NewerFormat: a newer agent wrote it.
        OSError: the disk fails.
    """
    path = shelf.folder / GUARD_FILE
    if not disk.exists(path):
        return None
    try:
        return GuardRecord.of(json.loads(disk.read(path)))
    except (ValueError, InvalidInput) as bad:
        _log.warning("what was compared before is forgotten: it cannot be read", extra={"detail": f"{path}: {bad}"})
        return None


def base_slot(slots: Slots | None, shares: Shares) -> Slot | None:
    """Return the other slot, if it holds the release that the active one was made from, by its signed digest."""
    other = None if slots is None else slots.previous
    return other if other is not None and other.weights == shares.weights else None


class Guarded:
    """One release that shares layers, while it serves.

    Args:
        manifest: of the release; it shares.
        shelf: the model's releases and slots.
        disk: where what is shown is written.
        alpha: how likely it may be taken back although it keeps its budget, ever.
        samples: the requests to compare.

    Attributes:
        shares: what is signed of it.
        samples: the requests that wait for their comparison.
        record: what was shown so far; as it is on the disk, but for what was compared since.
    """

    def __init__(self, manifest: Manifest, shelf: Shelf, disk: Disk, *, alpha: float, samples: Samples) -> None:
        if manifest.shares is None:
            raise AssertionError("only a release that shares is guarded")
        self.manifest, self.shelf, self.shares, self.samples = manifest, shelf, manifest.shares, samples
        self._disk, self._enough = disk, 1.0 / alpha
        self._game = ChangeGame(self.shares.budget)
        self._lock = threading.Lock()
        found = read_record(shelf, disk)
        if found is None or found.weights != manifest.weights:
            found = GuardRecord(weights=manifest.weights, standing=self._game.start())
        self.record = found

    @property
    def e_value(self) -> float:
        """The evidence that more answers differ than may; 1 at the start."""
        return self._game.e_value(self.record.standing)

    @property
    def verdict(self) -> Unhealthy | None:
        """Why the release must not serve any more; None: nothing proves that."""
        record = self.record
        if not record.drifted:
            return None
        return Unhealthy(
            "sharing.drifted",
            f"{record.disagreed} of {record.compared} answers, in {record.requests} requests, differ from those of "
            f"release {self.shares.base}, which shares nothing; {self.shares.budget:.3%} may (e-value "
            f"{self.e_value:,.0f} of {self._enough:,.0f})",
        )

    def play(self, disagreed: int, compared: int) -> None:
        """Take note of one request; `keep` makes it durable.

        Args:
            disagreed: samples of which the two name different classes, of
            compared: so many; 0: nothing can be said of the request.
        """
        with self._lock:
            record = self.record
            if not compared:
                self.record = replace(record, skipped=record.skipped + 1)
                return
            standing = self._game.play(record.standing, disagreed / compared)
            self.record = replace(
                record,
                standing=standing,
                requests=record.requests + 1,
                compared=record.compared + compared,
                disagreed=record.disagreed + disagreed,
                drifted=record.drifted or self._game.e_value(standing) >= self._enough,
            )

    def keep(self, *, blind: str | None = None) -> None:
        """Make durable what was shown, and why nothing can be compared just now.

        Raises:
            OSError: the disk fails; what was shown stays in memory, and the next time tries again.
        """
        with self._lock:
            record = replace(self.record, blind=blind)
            write_json(self._disk, self.shelf.folder / GUARD_FILE, record.as_json())
            self.record = record


def read_guard(shelf: Shelf, disk: Disk) -> dict[str, Any] | None:
    """Return what is known of the release that serves, for people and programs; None where it shares nothing.

    Raises:
        NewerFormat: a newer agent wrote it.
        StoreCorrupted: the slots or the release cannot be read.
        OSError: the disk fails.
    """
    slots = shelf.slots()
    if slots.active is None or (shares := shelf.manifest(slots.active.release_id).shares) is None:
        return None
    game, record = ChangeGame(shares.budget), read_record(shelf, disk)
    if record is None or record.weights != slots.active.weights:
        record = GuardRecord(weights=slots.active.weights, standing=game.start())
    missing = f"release {shares.base}, which shares nothing, is not in the other slot: nothing can be compared"
    return {
        "donor": shares.donor,
        "budget": shares.budget,
        "requests": record.requests,
        "compared": record.compared,
        "disagreed": record.disagreed,
        "skipped": record.skipped,
        "e_value": round(game.e_value(record.standing), 6),
        "drifted": record.drifted,
        "blind": record.blind if base_slot(slots, shares) else missing,
    }
