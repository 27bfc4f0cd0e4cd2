"""The body of a poll's answer: what goes in comes out, and a payload costs about its own bytes."""

from dataclasses import replace

import numpy as np

from sprat_shared.protocol.poll import Desired, Part, PollAnswer

RANDOM = np.random.default_rng(7)


def digest() -> str:
    return "sha256:" + RANDOM.bytes(32).hex()


def metadata(version: int) -> Part:
    data = f'{{"signatures":[{{"sig":"{RANDOM.bytes(64).hex()}"}}],"signed":{{"version":{version}}}}}'
    return Part(kind="metadata", name=f"image/{version}.snapshot.json", data=data.encode())


def answer(*payloads: bytes) -> PollAnswer:
    wish = Desired(
        model="digits",
        release=2,
        weights=digest(),
        assignment=7,
        graph="digits/graph/" + RANDOM.bytes(32).hex(),
        path=("digits/2/from-1",),
        full="digits/2/full",
    )
    blobs = (Part(kind="blob", name=digest(), data=payload) for payload in payloads)
    return PollAnswer(poll_interval_s=60.0, desired=(wish,), parts=(metadata(3), metadata(4), *blobs))


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
