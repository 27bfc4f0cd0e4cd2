"""What `benchmarks/one_packet.py` says of an answer, without a server."""

from hashlib import sha256
from pathlib import Path

import one_packet
from one_packet import held_in, lines_of, parts_of

from sprat_shared.protocol.poll import HeldMetadata, Part, PollAnswer

PAYLOAD = bytes(range(150))
DIGEST = sha256(PAYLOAD).hexdigest()
DICTIONARY = b'{"signed":{"_type":"snapshot","version":3}}' * 3


def answer() -> PollAnswer:
    parts = (
        Part(kind="metadata", name="image/4.snapshot.json", data=b'{"signed":{"_type":"snapshot","version":4}}'),
        Part(kind="blob", name="sha256:" + DIGEST, data=PAYLOAD),
    )
    return PollAnswer(poll_interval_s=60.0, parts=parts)


def test_the_parts_add_up_to_the_body_as_it_goes_over_the_link() -> None:
    given = answer()
    parts = parts_of(given, DICTIONARY)
    assert list(parts) == ["head and frame", "image/4.snapshot.json", "payload sha256:" + DIGEST[:6]]
    assert sum(part["adds"] for part in parts.values()) == len(given.to_bytes(DICTIONARY))
    assert [part["plain"] for part in parts.values()] == [0, 43, 150]


def test_what_an_agent_holds_is_read_in_the_order_of_the_dictionary(tmp_path: Path) -> None:
    for name, version in (("director/targets", 8), ("image/m.digits", 2), ("image/root", 1), ("image/timestamp", 9)):
        file = tmp_path / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'{{"signed":{{"version":{version}}}}}')
    assert [item for item, _ in held_in(tmp_path)] == [
        HeldMetadata("image", "root", 1),
        HeldMetadata("image", "timestamp", 9),
        HeldMetadata("image", "m.digits", 2),
        HeldMetadata("director", "targets", 8),
    ]


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
