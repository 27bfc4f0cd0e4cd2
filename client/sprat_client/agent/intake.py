"""Which assignments one model takes: newer ones, and the standing one while it is neither fulfilled nor answered."""

import logging
from dataclasses import replace

from sprat_client.agent.active import ActiveRelease
from sprat_client.agent.desired import Desired
from sprat_client.agent.progress import Progress
from sprat_client.agent.steps import Workshop, wished_release_id
from sprat_shared.errors import UntrustedUpdate, UpdateRejected
from sprat_shared.trust.assignments import Assigned

_log = logging.getLogger(__name__)


class LoopBroken(UpdateRejected):
    """The release failed too often on this device and is not tried any more, whoever assigns it."""

    code = "agent.loop-broken"


class Intake:
    """Takes and refuses assignments of one model.

    Args:
        model: its name.
        shop: what the agent works with.
        progress: the model's record.
        active: what of its slots serves.
    """

    def __init__(self, model: str, shop: Workshop, progress: Progress, active: ActiveRelease) -> None:
        self._model, self._shop, self._progress, self._active = model, shop, progress, active
        self._tried: int | None = None  # the last assignment that this process has worked on

    def take(self, wish: Desired, *, idle: bool) -> bool:
        """Take an assignment, if it is newer, or is not fulfilled and was not refused; return whether it was taken.

        Raises:
            UntrustedUpdate: a newer one was taken before.
        """
        record = self._progress.record
        if wish.assignment < record.highest_assignment:
            raise UntrustedUpdate(
                f"assignment {wish.assignment} of {wish.full} is replayed: {record.highest_assignment} was seen before",
                code="trust.replayed",
            )
        if wish.assignment == record.highest_assignment:
            wished = wished_release_id(wish)
            if not idle or self._is_answered(wish) or self._active.fulfils(wished, at_hand=wish.prefetch):
                if (following := record.under(wish)) != record:
                    self._progress.keep(following)
                return False
        self._progress.keep(replace(record, pending=wish, highest_assignment=wish.assignment))
        _log.info("assigned", extra={"model": self._model, "release": wish.release, "assignment": wish.assignment})
        return True

    def refuse(self, assigned: Assigned, bad: UpdateRejected) -> None:
        """Say, once, that an assignment will not be taken. What serves, and the work under way, go on."""
        if assigned.assignment > self._progress.record.highest_assignment:
            self._progress.refuse(assigned, (bad.code, str(bad)))

    def breaks(self, wish: Desired) -> bool:
        """Refuse a release that failed here too often, and return that; otherwise note that it is tried."""
        if not self._is_broken(wish):
            self._tried = wish.assignment
            return False
        failed = self._progress.record.failures[wished_release_id(wish)]
        bad = LoopBroken(
            f"{wish.full} failed {failed} times on this device and is not tried any more: find out why, then "
            f"`sprat-agent retry {self._model}` there, or assign it under a policy of more attempts"
        )
        self._progress.refuse(wish, (bad.code, str(bad)))
        return True

    def retry(self) -> dict[str, int]:
        """Hold nothing against any release any more: the standing assignment is taken again when it is seen next.

        Returns:
            How often each release had failed, by release id.
        """
        record = self._progress.record
        self._progress.keep(record.retried())
        self._tried = None
        return dict(record.failures)

    def _is_broken(self, wish: Desired) -> bool:
        attempts = self._shop.settings.under(wish.policy).attempts
        return self._progress.record.failures.get(wished_release_id(wish), 0) >= attempts

    def _is_answered(self, wish: Desired) -> bool:
        """Return whether an assignment ended without its release and is not to be tried again now.

        What failed here is tried once more after a restart; what the loop breaker refused, once it would let it go.
        """
        refusal = self._progress.record.refusal(wish.assignment)
        if refusal is None:
            return False
        if refusal.code == LoopBroken.code:
            return self._is_broken(wish)
        return refusal.final or wish.assignment == self._tried
