"""The poll: what goes into an answer comes out, a payload costs about its own bytes, a tag says what is held."""

from dataclasses import replace

import numpy as np
import pytest

from sprat_shared.errors import InvalidInput
from sprat_shared.protocol.poll import HeldMetadata, Part, PollAnswer, format_tag, parse_tag

RANDOM = np.random.default_rng(7)


def digest() -> str:
    return "sha256:" + RANDOM.bytes(32).hex()


def metadata(version: int) -> Part:
    data = f'{{"signatures":[{{"sig":"{RANDOM.bytes(64).hex()}"}}],"signed":{{"version":{version}}}}}'
    return Part(kind="metadata", name=f"image/{version}.snapshot.json", data=data.encode())


def answer(*payloads: bytes) -> PollAnswer:
    blobs = (Part(kind="blob", name=digest(), data=payload) for payload in payloads)
    return PollAnswer(poll_interval_s=60.0, parts=(metadata(3), metadata(4), *blobs))


def test_several_payloads_come_out_as_they_went_in_with_and_without_a_dictionary() -> None:
    given = answer(RANDOM.bytes(300), b"", b"text " * 200, RANDOM.bytes(5))
    dictionary = metadata(2).data
    assert PollAnswer.from_bytes(given.to_bytes()) == given
    assert PollAnswer.from_bytes(given.to_bytes(dictionary), dictionary) == given


def test_a_payload_that_does_not_compress_adds_its_own_bytes_and_little_else() -> None:
    for length in (150, 400, 1200):
        given = answer(RANDOM.bytes(length))
        empty = replace(given, parts=(*given.parts[:2], replace(given.parts[2], data=b"")))
        assert length <= len(given.to_bytes()) - len(empty.to_bytes()) <= length + 6


def test_a_payload_that_compresses_still_does() -> None:
    given = answer(b"one layer after another " * 100)
    assert len(given.to_bytes()) - len(answer(b"").to_bytes()) < 60


def test_a_tag_names_what_is_held_in_the_order_of_the_dictionary() -> None:
    held = [
        HeldMetadata("image", "root", 4),
        HeldMetadata("image", "timestamp", 17),
        HeldMetadata("image", "m.digits", 3),
        HeldMetadata("image", "m.pcb-defects", 9),
        HeldMetadata("director", "root", 1),
        HeldMetadata("director", "targets", 8),
    ]
    tag = format_tag(held)
    assert tag == '"i4.17.0.0,digits=3,pcb-defects=9;d1.0.0.8"'
    assert parse_tag(tag) == held
    assert format_tag(held[::-1]) == tag
    assert parse_tag(format_tag([])) == []


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "i1.2.3.4;d1.2.3.4",
        '"i1.2.3;d1.2.3.4"',
        '"i1.2.3.04;d1.2.3.4"',
        '"i1.2.3.4,b=1,a=1;d1.2.3.4"',
        '"i1.2.3.4,a=1,a=2;d1.2.3.4"',
        '"i1.2.3.4,a;d1.2.3.4"',
        'W/"i1.2.3.4;d1.2.3.4"',
        '"i1.2.3.4' + "".join(f",m{n:03}=1" for n in range(201)) + ';d1.2.3.4"',
    ],
)
def test_a_tag_of_another_form_is_refused(tag: str) -> None:
    with pytest.raises(InvalidInput, match="If-None-Match"):
        parse_tag(tag)
