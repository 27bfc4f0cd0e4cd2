"""The audit log's chain, recomputed by the client: whatever was changed is found, at its record."""

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from sprat_client.api.audit_chain import ChainBroken, Head, check_chain

Records = list[dict[str, Any]]


def chain(count: int) -> Records:
    """Records as the server gives them; every second one has no address, as those of the server itself."""
    records: Records = []
    digest = "00" * 32
    for seq in range(1, count + 1):
        record = {
            "seq": seq,
            "at": f"2026-11-29T10:00:0{seq}.250000Z",
            "actor": "operator:größer",
            "actor_id": "7",
            "action": "thing.make",
            "subject": f"thing:{seq}",
            "before": None,
            "after": {"share": 0.1, "waves": [1, {"n": 2.5e-7}], "big": 2**60},
            "request_id": "call",
            "address": "10.0.0.7" if seq % 2 else None,
        }
        epoch = f"{int(datetime(2026, 11, 29, 10, tzinfo=UTC).timestamp()) + seq}.250000"
        text = ["sprat-audit-2", seq, epoch, *(record[name] for name in list(record)[2:])]
        if record["address"] is None:
            text = ["sprat-audit-1", *text[1:-1]]
        sealed = json.dumps(text, ensure_ascii=False)
        previous, digest = digest, hashlib.sha256(bytes.fromhex(digest) + sealed.encode()).hexdigest()
        records.append({**record, "previous": previous, "digest": digest, "sealed": sealed})
    return records


def test_a_whole_chain_gives_its_head() -> None:
    records = chain(5)
    assert check_chain(records) == Head(5, records[-1]["digest"])
    assert check_chain([]) == Head(0, "00" * 32)
    assert check_chain(records, {3: records[2]["digest"]}) == Head(5, records[-1]["digest"])


FIELDS = ("seq", "at", "actor", "actor_id", "action", "subject", "before", "after", "request_id", "address")


@pytest.mark.parametrize("field", [*FIELDS, "previous", "digest", "sealed"])
def test_a_field_that_was_changed_breaks_the_chain_at_its_record(field: str) -> None:
    records = chain(5)
    records[2][field] = {"seq": 9, "at": "2026-11-29T10:00:03.250001Z", "after": {"share": 0.2}}.get(field, "ab" * 32)
    with pytest.raises(ChainBroken) as broken:
        check_chain(records)
    assert broken.value.seq == 3


def resealed(records: Records) -> None:
    """Change record 3 as somebody does who knows how it is sealed, but not those after it."""
    text = json.loads(records[2]["sealed"])
    text[6] = records[2]["subject"] = "thing:other"
    records[2]["sealed"] = json.dumps(text)
    sealed = bytes.fromhex(records[2]["previous"]) + records[2]["sealed"].encode()
    records[2]["digest"] = hashlib.sha256(sealed).hexdigest()


@pytest.mark.parametrize(
    ("damage", "seq"),
    [
        (lambda records: records.pop(0), 1),
        (lambda records: records.pop(2), 3),
        (lambda records: records.insert(2, records[1]), 3),
        (lambda records: records.reverse(), 1),
        (resealed, 4),
        (lambda records: records[3].pop("sealed"), 4),
        (lambda records: records[3].update(sealed="[]"), 4),
    ],
)
def test_records_taken_out_put_in_or_written_anew_break_it(damage: Callable[[Records], object], seq: int) -> None:
    records = chain(5)
    damage(records)
    with pytest.raises(ChainBroken) as broken:
        check_chain(records)
    assert broken.value.seq == seq


def test_a_text_of_an_unknown_form_is_not_taken_for_a_known_one() -> None:
    (record,) = chain(1)
    record["sealed"] = record["sealed"].replace("sprat-audit-2", "sprat-audit-9")
    record["digest"] = hashlib.sha256(bytes(32) + record["sealed"].encode()).hexdigest()
    with pytest.raises(ChainBroken, match="does not know"):
        check_chain([record])


def test_newest_records_cut_off_are_missed_by_what_was_noted() -> None:
    records = chain(5)
    noted = {5: records[4]["digest"]}
    with pytest.raises(ChainBroken, match="ends at 4"):
        check_chain(records[:4], noted)


def test_a_log_written_anew_is_another_than_what_was_noted() -> None:
    records = chain(3)
    with pytest.raises(ChainBroken) as broken:
        check_chain(records, {2: "ab" * 32})
    assert broken.value.seq == 2
