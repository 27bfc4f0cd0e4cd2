"""The poll: what goes into an answer comes out, a payload costs about its own bytes, a tag says what is held."""

import zlib
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from sprat_shared.errors import InvalidInput, LimitExceeded
from sprat_shared.ids import digest_text
from sprat_shared.protocol.poll import HeldMetadata, Part, PollAnswer, format_tag, parse_tag
from sprat_shared.wire.leb128 import pack_leb128

RANDOM = np.random.default_rng(7)


def metadata(version: int) -> Part:
    data = f'{{"signatures":[{{"sig":"{RANDOM.bytes(64).hex()}"}}],"signed":{{"version":{version}}}}}'
    return Part(kind="metadata", name=f"image/{version}.snapshot.json", data=data.encode())


def answer(*payloads: bytes) -> PollAnswer:
    blobs = (Part(kind="blob", name=digest_text(sha256(payload).digest()), data=payload) for payload in payloads)
    return PollAnswer(poll_interval_s=60.0, parts=(metadata(3), metadata(4), *blobs))


def test_several_payloads_come_out_as_they_went_in_with_and_without_a_dictionary() -> None:
    sent = answer(RANDOM.bytes(300), b"", b"text " * 200, RANDOM.bytes(5))
    dictionary = metadata(2).data
    assert PollAnswer.from_bytes(sent.to_bytes()) == sent
    assert PollAnswer.from_bytes(sent.to_bytes(dictionary), dictionary) == sent


def test_every_file_keeps_its_name() -> None:
    names = [
        f"{repository}/{name}.json"
        for repository in ("image", "director")
        for name in ("3.root", "timestamp", "1000.snapshot", "70.targets")
    ]
    parts = [Part(kind="metadata", name=name, data=b"{}") for name in (*names, "image/9.m.pcb-defects.json")]
    sent = PollAnswer(poll_interval_s=0.25, parts=tuple(parts))
    assert PollAnswer.from_bytes(sent.to_bytes()) == sent


@pytest.mark.parametrize(
    "name",
    ["image/3.timestamp.json", "image/root.json", "other/3.root.json", "director/3.m.digits.json", "3.root.json"],
)
def test_a_file_of_another_name_is_not_sent(name: str) -> None:
    with pytest.raises(InvalidInput, match="no name of a metadata file"):
        PollAnswer(poll_interval_s=1.0, parts=(Part(kind="metadata", name=name, data=b"{}"),)).to_bytes()


def test_digits_cost_the_bytes_that_they_stand_for_and_known_ones_almost_nothing() -> None:
    keyid, digest, signature = (RANDOM.bytes(length).hex() for length in (32, 32, 64))
    lengths = {
        name: len(PollAnswer(poll_interval_s=60.0, parts=(part(text),)).to_bytes(metadata(2).data + part(keyid).data))
        for name, text in (("none", ""), ("known", keyid), ("new", signature), ("twice", digest + '","' + digest))
    }
    assert lengths["known"] - lengths["none"] <= 6
    assert 64 <= lengths["new"] - lengths["none"] <= 70
    assert 32 <= lengths["twice"] - lengths["none"] <= 44


def part(text: str) -> Part:
    return Part(kind="metadata", name="image/timestamp.json", data=f'{{"signatures":["{text}"]}}'.encode())


@given(st.lists(st.sampled_from(["0" * 64, "ab" * 64, "f" * 63, "1" * 65, "c" * 129, "DE" * 32, '"', "é", " "])))
def test_digits_of_any_length_and_neighbourhood_come_out_as_they_went_in(pieces: list[str]) -> None:
    sent = PollAnswer(poll_interval_s=60.0, parts=(part("".join(pieces)), part("".join(pieces[::-1]))))
    for dictionary in (b"", part("ab" * 64).data):
        assert PollAnswer.from_bytes(sent.to_bytes(dictionary), dictionary) == sent


def test_an_answer_without_a_dictionary_is_read_by_who_holds_one() -> None:
    sent = PollAnswer(poll_interval_s=60.0, parts=(part("ab" * 32), part("cd" * 64)))
    assert PollAnswer.from_bytes(sent.to_bytes(), part("cd" * 64).data) == sent


def test_an_answer_of_a_dictionary_that_differs_by_digits_alone_is_refused() -> None:
    sent = PollAnswer(poll_interval_s=60.0, parts=(part("ab" * 32),))
    body = sent.to_bytes(part("ab" * 32).data)
    assert PollAnswer.from_bytes(body, part("ab" * 32).data) == sent
    with pytest.raises(InvalidInput, match="another dictionary"):
        PollAnswer.from_bytes(body, part("cd" * 32).data)


def test_what_is_no_json_is_not_sent() -> None:
    with pytest.raises(InvalidInput, match="control character"):
        PollAnswer(poll_interval_s=60.0, parts=(part("\x02"),)).to_bytes()


@given(st.data())
def test_an_answer_that_was_changed_on_its_way_is_refused_and_never_misread(data: st.DataObject) -> None:
    dictionary = part("ab" * 32).data
    sent = PollAnswer(poll_interval_s=60.0, parts=(part("cd" * 64), part("ab" * 32)))
    body = sent.to_bytes(dictionary)
    at = data.draw(st.integers(1, len(body) - 1))
    changed = data.draw(st.sampled_from([body[:at], body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :], body + b"x"]))
    try:
        read = PollAnswer.from_bytes(changed, dictionary)
    except (InvalidInput, LimitExceeded):
        return
    assert read == sent, "a bit of the frame's head may mean nothing"


@given(st.binary(max_size=200))
def test_a_frame_of_anything_is_refused_and_never_misread(plain: bytes) -> None:
    with suppress(InvalidInput, LimitExceeded):
        PollAnswer.from_bytes(b"\0" + zstandard.compress(plain))


def test_few_bytes_that_stand_for_many_are_not_unpacked() -> None:
    runs = 20_000
    text = b"\x02" + b"\x01\0\0" * runs
    head = bytes([0]) + pack_leb128(1) + bytes([1, 0]) + pack_leb128(64 * (runs + 1)) + pack_leb128(len(text)) + b"\0"
    checksum = zlib.crc32(b"0" * 64 * (runs + 1), zlib.crc32(head)).to_bytes(4, "little")
    body = b"\0" + zstandard.compress(checksum + head + text + bytes(32))
    (whole,) = PollAnswer.from_bytes(body).parts
    assert whole.data == b"0" * 64 * (runs + 1)
    with pytest.raises(LimitExceeded, match="1280064 bytes of metadata"):
        PollAnswer.from_bytes(body, max_bytes=100_000)


def test_a_payload_that_does_not_compress_adds_its_own_bytes_and_little_else() -> None:
    for length in (150, 400, 1200):
        sent = answer(RANDOM.bytes(length))
        empty = replace(sent, parts=(*sent.parts[:2], replace(sent.parts[2], data=b"")))
        assert length <= len(sent.to_bytes()) - len(empty.to_bytes()) <= length + 6


def test_a_payload_that_compresses_still_does() -> None:
    sent = answer(b"one layer after another " * 100)
    assert len(sent.to_bytes()) - len(answer(b"").to_bytes()) < 60


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
