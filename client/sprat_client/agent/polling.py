"""One poll: ask, verify, and say what both repositories agree on; what is refused is remembered, shown and reported."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sprat_client.agent.journal import Trouble, TrustRecord
from sprat_client.agent.steps import Workshop
from sprat_client.agent.trust.store import Agreed
from sprat_client.agent.version import VERSION
from sprat_shared.errors import InvalidInput, SpratError, TryLater, UntrustedUpdate, UpdateRejected
from sprat_shared.protocol.report import TrustReport

_log = logging.getLogger(__name__)
_DETAIL_LENGTH: Final = 1000
_CLOCK_STEP_S: Final = 3600.0
_HOLDING_UP: Final = frozenset({"link.too-long", "link.too-slow"})


class Poller:
    """Asks the server, and trusts nothing of the answer but what is signed.

    Args:
        shop: what the agent works with.

    Attributes:
        interval_s: how often the server wishes to be asked, seconds; None: it did not say yet.
    """

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._name_held = True
        self._taken = False  # what is held may hold assignments that were never acted on: a cut came between
        self._standing: SpratError | None = None
        self._trouble: SpratError | None = None
        self.interval_s: float | None = None

    @property
    def refused(self) -> bool:
        """Whether what the server sent last is refused for good."""
        return isinstance(self._trouble, UpdateRejected)

    def poll(self) -> Agreed | None:
        """Ask once; return what both repositories agree on, None where nothing changed.

        Raises:
            TryLater: link, server or clock are not ready.
            UntrustedUpdate: the metadata are refused; what was trusted before still is.
            InvalidInput: the answer cannot be read.
        """
        try:
            agreed = self._ask_once_more_for_the_time()
        except (SpratError, OSError) as bad:
            if isinstance(bad, SpratError) and _is_trouble(bad):
                self._note(bad)
            raise
        if agreed is None:
            self._note(self._standing)
        return agreed

    def carried(self, parts: Mapping[str, bytes]) -> Agreed:
        """Return what both repositories agree on by metadata that somebody carried here, without the network.

        Raises:
            TryLater: they are expired, or something is missing.
            UntrustedUpdate: they are refused; what was trusted before still is.
        """
        self._taken = False
        try:
            agreed = self._shop.trust.take(parts)
        except (SpratError, OSError) as bad:
            if isinstance(bad, SpratError) and _is_trouble(bad):
                self._note(bad)
            raise
        self._taken = True
        return agreed

    def look_again(self) -> None:
        """Let the next poll bring what was agreed on, though nothing changed: it may be acted on now."""
        self._taken = False

    def settle(self, refused: SpratError | None) -> None:
        """Remember what of an answer was refused, if anything, until the next one."""
        self._standing = refused
        self._note(refused)

    def _ask_once_more_for_the_time(self) -> Agreed | None:
        """Ask; where all is expired by this device's clock, ask again for a proof of the time before it is believed."""
        try:
            return self._ask()
        except TryLater as bad:
            if bad.code != "trust.expired" or not self._shop.clock.ask():
                raise
        return self._ask()

    def _ask(self) -> Agreed | None:
        shop = self._shop
        held = shop.trust.held() if self._name_held else []
        try:
            answer = shop.link.poll(held, shop.clock.new_nonce())
        except InvalidInput:
            self._name_held = False  # the server may hold other files by these versions
            raise
        self._name_held = True
        if answer is None:
            if self._taken and shop.clock.now() < shop.trust.fresh_until():
                return None
            try:
                agreed = shop.trust.take({}, shop.link)
            except UntrustedUpdate:  # nobody offered anything: files that are held here have rotted
                if not held:
                    raise
                self._name_held = False
                return self._ask()
        else:
            self.interval_s = min(86400.0, max(1.0, answer.poll_interval_s))
            shop.blobs = {part.name: part.data for part in answer.parts if part.kind == "blob"}
            parts = {part.name: part.data for part in answer.parts if part.kind == "metadata"}
            self._taken = False
            agreed = shop.trust.take(parts, shop.link)
        self._taken = True
        return agreed

    def _note(self, trouble: SpratError | None) -> None:
        """Make durable, and report, what changed in what is not believed."""
        self._trouble = trouble
        journal = self._shop.journal
        before = journal.trust
        after = replace(before, trouble=_trouble_of(trouble, before), clock_ahead_s=self._clock_ahead_s(before))
        if after == before:
            return
        report = None
        if after.trouble is not None and (before.trouble is None or before.trouble.code != after.trouble.code):
            _log.error("not believed", extra={"code": after.trouble.code, "detail": after.trouble.detail})
            self._shop.events.note("not believed", code=after.trouble.code, detail=after.trouble.detail)
            report = TrustReport(
                device=self._shop.device,
                sequence=journal.next_sequence,
                error_code=after.trouble.code[:100],
                error_detail=after.trouble.detail,
                agent=VERSION,
            )
        journal.keep_trust(after, report)
        self._shop.flush_reports()

    def _clock_ahead_s(self, before: TrustRecord) -> float | None:
        """Return the clock's error; the one noted before where it hardly changed."""
        ahead_s, noted_s = self._shop.clock.ahead_s, before.clock_ahead_s
        if ahead_s is None or noted_s is None or abs(ahead_s - noted_s) > _CLOCK_STEP_S:
            return ahead_s
        return noted_s


def _is_trouble(bad: SpratError) -> bool:
    """Return whether an error says that somebody deceives or holds up, and not merely that the link is down."""
    return isinstance(bad, UpdateRejected) or bad.code.startswith("trust.") or bad.code in _HOLDING_UP


def _trouble_of(trouble: SpratError | None, before: TrustRecord) -> Trouble | None:
    if trouble is None:
        return None
    if before.trouble is not None and before.trouble.code == trouble.code:
        return before.trouble
    return Trouble(code=trouble.code, detail=str(trouble)[:_DETAIL_LENGTH], since=time.time())
