"""Safetensors files: read within bounds, written canonically, as the format's own library does."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from updates_at_random import arrays, tables

from sprat_shared.errors import SpratError
from sprat_shared.wire.safetensors import SafetensorsFile, write_safetensors
from sprat_shared.wire.tensors import ArrayTensors, digest_of

ONE_FILE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def sources(draw: st.DrawFn) -> ArrayTensors:
    table = draw(tables())
    return ArrayTensors({spec.name: (spec.dtype, draw(arrays(spec))) for spec in table}, table.aliases)


@ONE_FILE
@given(sources())
def test_reading_undoes_writing(tmp_path: Path, source: ArrayTensors) -> None:
    write_safetensors(tmp_path / "w", source)
    with SafetensorsFile(tmp_path / "w") as file:
        assert file.table == source.table
        assert digest_of(file) == digest_of(source)
        for index in range(len(file.table)):
            assert file.read(index).tobytes() == source.read(index).tobytes()
            assert file.read(index).shape == source.read(index).shape


@ONE_FILE
@given(sources(), st.data())
def test_a_cut_file_is_refused(tmp_path: Path, source: ArrayTensors, chance: st.DataObject) -> None:
    write_safetensors(tmp_path / "w", source)
    whole = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(whole[: chance.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(SpratError):
        SafetensorsFile(tmp_path / "w")


@ONE_FILE
@given(sources(), st.data())
def test_damage_gives_named_errors_only(tmp_path: Path, source: ArrayTensors, chance: st.DataObject) -> None:
    write_safetensors(tmp_path / "w", source)
    data = bytearray((tmp_path / "w").read_bytes())
    for _ in range(chance.draw(st.integers(1, 4))):
        at = chance.draw(st.integers(0, len(data) - 1))
        data[at : at + chance.draw(st.integers(0, 2))] = chance.draw(st.binary(max_size=2))
        data += b"\0"
    (tmp_path / "w").write_bytes(data)
    try:
        with SafetensorsFile(tmp_path / "w") as file:
            digest_of(file)
    except SpratError:
        pass


def test_files_of_the_published_library_are_read_and_ours_by_it(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "a": torch.randn(4, 1),
        "n": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 3),
        "eighths": torch.ones(3).to(torch.float8_e4m3fn),
    }
    safetensors.torch.save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "theirs") as file:
        assert file.metadata == {"format": "pt"}
        assert [spec.name for spec in file.table] == sorted(tensors)
        write_safetensors(tmp_path / "ours", file)
    back = safetensors.torch.load_file(tmp_path / "ours")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].float(), tensor.float())


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    tensors = {name: ("F32", np.full(3, i, np.float32)) for i, name in enumerate("cab")}
    for name, source in (("1", tensors), ("2", dict(sorted(tensors.items())))):
        write_safetensors(tmp_path / name, ArrayTensors(source))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"conv1": entry(dtype="F12")}, "'conv1'"),
        ({"conv1": entry(shape=[2])}, "'conv1'"),
        ({"conv1": entry(shape=["1"])}, "'conv1'"),
        ({"conv1": entry(shape=[-1, -1])}, "'conv1'"),
        ({"conv1": entry(shape=[True])}, "'conv1'"),
        ({"conv1": entry(offsets=[4, 0])}, "'conv1'"),
        ({"conv1": entry(offsets=[0])}, "'conv1'"),
        ({"conv1": {"dtype": "F32"}}, "'conv1'"),
        ({"conv1": 3}, "'conv1'"),
        ({"": entry()}, "name"),
        ({"\ud800": entry()}, "not Unicode"),
        ({"a": entry(), "b": entry()}, "fill"),
        ({"a": entry(offsets=[4, 8])}, "fill"),
        ({}, "fill"),
        ({"a": entry(), "__metadata__": 7}, "__metadata__"),
        ({"a": entry(), "__metadata__": {"sprat.aliases": "[" * 9999}}, "aliases"),
        ({"a": entry(), "__metadata__": {"sprat.aliases": '{"b": 1}'}}, "aliases"),
        ({"a": entry(), "__metadata__": {"sprat.aliases": '{"b": "c"}'}}, "'b'"),
        ({"a": entry(), "__metadata__": {"sprat.aliases": '{"\\ud800": "a"}'}}, "not Unicode"),
        ([], "readable"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path, header: object, says: str) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(SpratError, match=says):
        SafetensorsFile(tmp_path / "w")


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 100, struct.pack("<Q", 2) + b'{"', bytes(8)])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(SpratError, match=str(tmp_path)):
        SafetensorsFile(tmp_path / "w")


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    one = json.dumps(entry(offsets=[0, 4]))
    text = f'{{"a": {one}, "a": {one}}}'.encode()
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(SpratError, match="twice"):
        SafetensorsFile(tmp_path / "w")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SpratError, match=str(path)):
            SafetensorsFile(path)


def test_data_that_does_not_begin_at_a_multiple_of_eight_is_read(tmp_path: Path) -> None:
    text = json.dumps({"a": entry("F64", [2], [0, 16])}).encode()
    text += b" " * ((3 - len(text)) % 8)
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(text)) + text + np.array([1.5, -2.0]).tobytes())
    with SafetensorsFile(tmp_path / "w") as file:
        assert file.read(0).tolist() == [1.5, -2.0]
