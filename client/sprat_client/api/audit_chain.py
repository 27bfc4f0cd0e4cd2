"""The audit log's chain, recomputed from what REST gives: the server's word is not taken for it.

A record's digest is SHA-256 over the digest before it (32 bytes) and the text `sealed`, a JSON list that says what the
record's fields say: [form, seq, seconds since 1970, actor, actor id, action, subject, before, after, request id], and
in the form `sprat-audit-2` the address, and in `sprat-audit-3` the project. So a record that was changed, taken out or
put in breaks the chain there. What a chain cannot show is that its newest records are missing, or that all of it was
written anew: keep the newest digest elsewhere, and expect it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from sprat_shared.errors import SpratError

_START: Final = "00" * 32
_FORMS: Final = {"sprat-audit-1": 10, "sprat-audit-2": 11, "sprat-audit-3": 12}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ChainBroken(SpratError):
    """A record of the audit log does not fit the chain: it was changed, taken out, or put in.

    Attributes:
        seq: of the record.
    """

    code = "audit.broken"

    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(f"record {seq} of the audit log breaks the chain: {reason}")
        self.seq = seq


@dataclass(frozen=True, slots=True)
class Head:
    """The newest record of a chain that is whole; its digest vouches for all before it.

    Attributes:
        seq: its number, and how many records there are; 0: none.
        digest: 64 hex characters.
    """

    seq: int
    digest: str


def check_chain(records: Iterable[Mapping[str, Any]], expected: Mapping[int, str] | None = None) -> Head:
    """Return the head of the chain that `records` form, oldest first.

    Args:
        records: as `GET /api/v1/audit` and `sprat audit export` give them; looked at one by one.
        expected: digests that were noted before, by number.

    Raises:
        ChainBroken: the first record that does not fit, or that is missing.
    """
    head, due = Head(0, _START), dict(expected or {})
    for record in records:
        head = _next(head, record)
        if due.pop(head.seq, head.digest) != head.digest:
            raise ChainBroken(head.seq, f"its digest was noted as another, and is {head.digest} now")
    if due:
        raise ChainBroken(min(due), f"it was noted, and the log ends at {head.seq}")
    return head


def _next(head: Head, record: Mapping[str, Any]) -> Head:
    seq = head.seq + 1
    try:
        if record["seq"] != seq:
            raise ChainBroken(seq, f"it is missing; the next one is {record['seq']!r:.40}")
        if record["previous"] != head.digest:
            raise ChainBroken(seq, "it does not follow the one before")
        sealed: str = record["sealed"]
        digest = hashlib.sha256(bytes.fromhex(head.digest) + sealed.encode()).hexdigest()
        if record["digest"] != digest:
            raise ChainBroken(seq, "its digest is not that of its text")
        _compare(seq, record, json.loads(sealed, parse_float=Decimal))
    except (KeyError, TypeError, ValueError, AttributeError, InvalidOperation) as bad:
        raise ChainBroken(seq, f"it cannot be read ({type(bad).__name__}: {bad})") from None
    return Head(seq, digest)


def _compare(seq: int, record: Mapping[str, Any], sealed: list[Any]) -> None:
    """Raise unless the sealed text says what the fields say."""
    if len(sealed) != _FORMS.get(sealed[0]):
        raise ChainBroken(seq, f"its text has a form that this sprat does not know, {sealed[0]!r:.40}")
    at = (datetime.fromisoformat(record["at"]) - _EPOCH) // timedelta(microseconds=1)
    says = {
        "seq": sealed[1] == record["seq"],
        "at": Decimal(sealed[2]) * 1_000_000 == at,
        "address": (sealed[10] if sealed[10:] else None) == record["address"],
    }
    for place, name in enumerate(("actor", "actor_id", "action", "subject"), start=3):
        says[name] = sealed[place] == record[name]
    for place, name in enumerate(("before", "after", "request_id"), start=7):
        says[name] = _plain(sealed[place]) == _plain(record[name])
    for name, same in says.items():
        if not same:
            raise ChainBroken(seq, f"its {name} is shown otherwise than its text says")


def _plain(value: Any) -> Any:
    """Return a JSON value with its numbers as both sides read them."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
