"""The tensor table and the weights digest, against bytes put together by hand."""

import hashlib
import struct

import numpy as np
import pytest

from sprat_shared.errors import InvalidInput
from sprat_shared.wire.tensors import ArrayTensors, TensorSpec, TensorTable, digest_of, release_id, weights_digest


def test_the_weights_digest_is_that_of_the_text() -> None:
    weight, count = np.array([[1.0, -0.0]], "<f4"), np.array(5, "<i8")
    source = ArrayTensors({"b.count": ("I64", count), "a.weight": ("F32", weight)}, {"tied": "a.weight"})
    by_hand = hashlib.sha256(b"sprat-weights-1\0")
    by_hand.update(b"\x08\0a.weight" + b"\0\x02" + struct.pack("<2Q", 1, 2) + hashlib.sha256(weight.tobytes()).digest())
    by_hand.update(b"\x07\0b.count" + b"\x04\0" + hashlib.sha256(count.tobytes()).digest())
    by_hand.update(b"\xff\xff" + b"\x04\0tied" + b"\x08\0a.weight")
    assert digest_of(source) == "sha256:" + by_hand.hexdigest()


def test_the_digest_tells_minus_zero_shape_dtype_name_and_ties_apart() -> None:
    zero = np.zeros(4, np.float32)
    sources = [
        ArrayTensors({"a": ("F32", zero)}),
        ArrayTensors({"a": ("F32", -zero)}),
        ArrayTensors({"a": ("F32", zero.reshape(2, 2))}),
        ArrayTensors({"a": ("I32", zero.astype(np.int32))}),
        ArrayTensors({"b": ("F32", zero)}),
        ArrayTensors({"a": ("F32", zero)}, {"b": "a"}),
    ]
    assert len({digest_of(source) for source in sources}) == len(sources)


def test_names_are_in_byte_order_not_in_that_of_a_language() -> None:
    names = ["b", "a", "B", "\N{LATIN SMALL LETTER A WITH DIAERESIS}", "a.1", "\N{GRINNING FACE}", "\uffff"]
    table = TensorTable([TensorSpec(name, "F32", ()) for name in names])
    assert [spec.name for spec in table] == sorted(names, key=lambda name: name.encode())
    assert [table.index_of(spec.name) for spec in table] == list(range(len(names)))


def test_what_is_not_in_the_table_is_named() -> None:
    with pytest.raises(InvalidInput, match="'c'"):
        TensorTable([]).index_of("c")
    with pytest.raises(InvalidInput, match="same name"):
        TensorTable([TensorSpec("a", "F32", ())] * 2)
    with pytest.raises(InvalidInput, match="0 digests for 1"):
        weights_digest(TensorTable([TensorSpec("a", "F32", ())]), [])


@pytest.mark.parametrize("aliases", [{"a": "a"}, {"b": "c"}, {"": "a"}, {"x" * 1025: "a"}, {"\ud800": "a"}])
def test_an_alias_that_makes_no_sense_is_refused(aliases: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        TensorTable([TensorSpec("a", "F32", ())], aliases)


def test_an_array_of_another_dtype_than_it_says_is_refused() -> None:
    with pytest.raises(InvalidInput, match="held as <u2, got <f4"):
        ArrayTensors({"a": ("BF16", np.zeros(2, np.float32))})


def test_a_release_is_its_graph_and_its_weights() -> None:
    graph, weights = ("sha256:" + digit * 64 for digit in "ab")
    assert release_id(graph, weights) == "sha256:" + hashlib.sha256(bytes.fromhex("aa" * 32 + "bb" * 32)).hexdigest()
