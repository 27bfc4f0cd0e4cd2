"""What `benchmarks/one_packet.py` says of an answer, without a server."""

import one_packet
from one_packet import lines_of, parts_of

from sprat_shared.protocol.poll import Part, PollAnswer

DICTIONARY = b'{"signed":{"_type":"snapshot","version":3}}' * 3


def answer() -> PollAnswer:
    parts = (
        Part(kind="metadata", name="image/4.snapshot.json", data=b'{"signed":{"_type":"snapshot","version":4}}'),
        Part(kind="blob", name="sha256:" + "ef" * 32, data=bytes(range(150))),
    )
    return PollAnswer(poll_interval_s=60.0, parts=parts)


def test_the_parts_add_up_to_the_body_as_it_goes_over_the_link() -> None:
    given = answer()
    parts = parts_of(given, DICTIONARY)
    assert list(parts) == ["frame", "image/4.snapshot.json", "payload sha256:efefef"]
    assert sum(part["adds"] for part in parts.values()) == len(given.to_bytes(DICTIONARY))
    assert [part["plain"] for part in parts.values()] == [0, 43, 150]


def test_the_report_says_whether_the_goal_is_met_and_what_comes_on_top() -> None:
    report = {
        "keep": 0.9,
        "update_bytes": 150,
        "recovered_gain_test": 0.912,
        "body_bytes": 1281,
        "header_bytes": 200,
        "parts": {},
        "goal_bytes": one_packet.GOAL_BYTES,
        "one_packet": False,
    }
    said = "\n".join(lines_of(report))
    assert "1,281 bytes, which does not fit in 1,280" in said
    assert "1,553 bytes" in said, "HTTP's 200, IPv6's 40, TCP's 32"
    assert "91.2%" in said
