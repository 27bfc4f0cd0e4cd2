"""Golden vectors: frozen bytes, made without sprat's encoder, their results computed in rational numbers."""

import json
from typing import Any

import make_golden
import pytest
from decoder import decode
from through_sprat import apply

GOLDEN: list[dict[str, Any]] = json.loads(make_golden.GOLDEN.read_text(encoding="ascii"))


@pytest.fixture(params=GOLDEN, ids=[entry["name"] for entry in GOLDEN])
def vector(request: pytest.FixtureRequest) -> dict[str, Any]:
    entry: dict[str, Any] = request.param
    return entry


def test_sprat_rebuilds_every_golden_vector_bit_for_bit(vector: dict[str, Any]) -> None:
    base = None if vector["base"] is None else make_golden.from_json(vector["base"])
    held = [bytes.fromhex(data) for data in vector.get("held", [])]
    release, digest = apply(bytes.fromhex(vector["update"]), base, held=held)
    assert make_golden.as_json(release) == vector["result"]
    assert digest == vector["weights"]


def test_the_second_decoder_rebuilds_every_golden_vector_bit_for_bit(vector: dict[str, Any]) -> None:
    base = None if vector["base"] is None else make_golden.from_json(vector["base"])
    held = [bytes.fromhex(data) for data in vector.get("held", [])]
    release = decode(bytes.fromhex(vector["update"]), base, held=held)
    assert make_golden.as_json(release) == vector["result"]
    assert "sha256:" + release.digest().hex() == vector["weights"]


def test_the_golden_vectors_are_what_text_and_rational_numbers_give() -> None:
    assert make_golden.vectors() == GOLDEN
