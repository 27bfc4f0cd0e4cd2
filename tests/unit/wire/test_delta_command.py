"""`sprat delta` as a shell sees it."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sprat_client.cli.app import run
from sprat_client.cli.delta import parse_bytes
from sprat_shared.encode import encode_full
from sprat_shared.errors import InvalidInput
from sprat_shared.wire.records import Drawn, Record, Rows, Subspace, ThreeFactors
from sprat_shared.wire.safetensors import SafetensorsFile, write_safetensors
from sprat_shared.wire.tensors import Array, ArrayTensors, TensorSpec, TensorTable, digest_of
from sprat_shared.wire.update import encode_update

LOADED = """
import runpy, sys
sys.argv = ["sprat", "delta", "apply", *sys.argv[1:]]
try:
    runpy.run_module("sprat_client.cli", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@dataclass(frozen=True)
class Ended:
    returncode: object
    stdout: str
    stderr: str


def sprat_delta(*words: str | Path) -> Ended:
    """Run the command in this process, which is quick, as its entry point does."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sprat", "delta", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            run()
    return Ended(end.value.code or 0, out.getvalue(), err.getvalue())


def done(*words: str | Path) -> dict[str, object]:
    ended = sprat_delta(*words, "--json")
    assert ended.returncode == 0, ended.stderr
    result: dict[str, object] = json.loads(ended.stdout)
    return result


def tensors(seed: int) -> dict[str, tuple[str, Array]]:
    rng = np.random.default_rng(seed)
    return {
        "conv1.weight": ("F32", rng.standard_normal((16, 3, 3, 3), dtype=np.float32)),
        "fc.weight": (
            "BF16",
            (rng.standard_normal((40, 30), dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16),
        ),
        "fc.bias": ("F16", rng.standard_normal(40).astype(np.float16)),
        "steps": ("I64", np.array(seed)),
        "mask": ("BOOL", np.array([True, False, seed % 2 == 0])),
        "fixed": ("F32", np.ones(5, np.float32)),
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    write_safetensors(path, ArrayTensors(tensors(1)))
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    path = tmp_path / "new.safetensors"
    write_safetensors(path, ArrayTensors(tensors(2)))
    return path


def test_lossless_gives_the_new_file_byte_for_byte(tmp_path: Path, base: Path, new: Path) -> None:
    encoded = done("encode", base, new, "-o", tmp_path / "u", "--lossless")
    applied = done("apply", base, tmp_path / "u", "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == new.read_bytes()
    with SafetensorsFile(new) as file:
        assert encoded["weights"] == applied["weights"] == digest_of(file)
    assert encoded["bytes"] == (tmp_path / "u").stat().st_size
    assert (applied["tensors"], applied["tensors_changed"]) == (6, 5)


@pytest.mark.parametrize("how", [(), ("--budget", "1.2kB"), ("--max-error", "0.01")])
def test_what_apply_gives_is_what_encode_promised(tmp_path: Path, base: Path, new: Path, how: tuple[str, ...]) -> None:
    encoded = done("encode", base, new, "-o", tmp_path / "u", *how)
    assert done("apply", base, tmp_path / "u", "-o", tmp_path / "out")["weights"] == encoded["weights"]
    with SafetensorsFile(tmp_path / "out") as out, SafetensorsFile(new) as wished:
        assert out.table == wished.table
        assert digest_of(out) == encoded["weights"]
        if "--max-error" in how:
            index = out.table.index_of("conv1.weight")
            assert np.abs(out.read(index) - wished.read(index)).max() <= 0.01
    if "--budget" in how:
        assert (tmp_path / "u").stat().st_size <= 1200


def test_metadata_and_ties_of_the_base_stay(tmp_path: Path) -> None:
    for name, fill in (("base", 1.0), ("new", 2.0)):
        metadata = {"format": "pt", "sprat.aliases": '{"head.weight":"w"}'}
        safetensors.torch.save_file({"w": torch.full((3, 3), fill)}, tmp_path / name, metadata=metadata)
    done("encode", tmp_path / "base", tmp_path / "new", "-o", tmp_path / "u")
    done("apply", tmp_path / "base", tmp_path / "u", "-o", tmp_path / "out")
    with SafetensorsFile(tmp_path / "out") as file:
        assert file.metadata == {"format": "pt", "sprat.aliases": '{"head.weight":"w"}'}
        assert file.table.aliases == {"head.weight": "w"}


def test_inspect_tells_header_and_records(tmp_path: Path, base: Path, new: Path) -> None:
    done("encode", base, new, "-o", tmp_path / "u")
    alone = done("inspect", tmp_path / "u")
    assert (alone["flags"], alone["lanes"], alone["records"]) == (["RESULT"], 1, None)
    records = done("inspect", tmp_path / "u", "--base", base)["records"]
    assert isinstance(records, list)
    assert {record["tensor"] for record in records} >= {"conv1.weight", "fc.weight", "steps", "mask"}
    for record in records:
        assert record["kind"] in {"low-rank", "dense", "lossless"}
        assert record["bytes"] > 0
        assert (record["scale"] is None) == (record["step"] is None) == (record["kind"] == "lossless")
        assert (record["rank"] is None) == (record["kind"] != "low-rank")
    assert sum(record["bytes"] for record in records) <= (tmp_path / "u").stat().st_size
    text = sprat_delta("inspect", tmp_path / "u", "--base", base).stdout
    assert "conv1.weight" in text
    assert "--base" in sprat_delta("inspect", tmp_path / "u").stdout
    assert sprat_delta("inspect", tmp_path / "u", "--base", new).returncode == 76


def test_inspect_tells_what_is_particular_of_each_kind(tmp_path: Path) -> None:
    table = TensorTable([TensorSpec("embedding", "F32", (40, 6)), TensorSpec("conv", "F32", (5, 4, 3, 3))])
    records: list[Record] = [
        ThreeFactors(0, 90, np.ones((5, 2), np.int8), np.ones((2, 3, 9), np.int16), Drawn(7)),
        Rows(1, 80, np.array([3, 9], np.uint32), np.ones((2, 6), np.int32)),
        Subspace(1, 70, 7, np.ones(50, np.int16)),
    ]
    (tmp_path / "u").write_bytes(encode_update(table, records, base_digest=None))
    told = done("inspect", tmp_path / "u")["records"]
    assert isinstance(told, list)
    assert [(record["tensor"], record["kind"], record["scale"], record["detail"]) for record in told] == [
        ("conv", "three-factors", 90, "core 2 x 3 x 9, sides sent and drawn"),
        ("embedding", "rows", 80, "2 rows"),
        ("embedding", "subspace", 70, "50 coefficients, seed 7"),
    ]
    assert "50 coefficients, seed 7" in sprat_delta("inspect", tmp_path / "u").stdout


def test_a_full_update_needs_no_base_and_the_digest_where_it_carries_none(tmp_path: Path, new: Path) -> None:
    with SafetensorsFile(new) as file:
        (tmp_path / "u").write_bytes(encode_full(file))
        digest = digest_of(file)
    records = done("inspect", tmp_path / "u")["records"]
    assert isinstance(records, list)
    assert len(records) == 6
    ended = sprat_delta("apply", tmp_path / "none", tmp_path / "u", "-o", tmp_path / "out")
    assert (ended.returncode, (tmp_path / "out").exists()) == (65, False)
    done("apply", tmp_path / "none", tmp_path / "u", "-o", tmp_path / "out", "--expect", digest)
    assert (tmp_path / "out").read_bytes() == new.read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"fc.bias": ("F32", np.ones(40, np.float32))}, "'fc.bias' is F16 in the base and F32 in the new"),
        ({"fc.bias": ("F16", np.full(40, np.nan, np.float16))}, "'fc.bias' of the new weights holds nan"),
        ({"conv1.weight": ("F32", np.full((16, 3, 3, 3), -np.inf, np.float32))}, "'conv1.weight' of the new weights"),
        ({"fc.weight": ("BF16", np.full((40, 30), 0x7F80, np.uint16))}, "'fc.weight' of the new weights holds inf"),
    ],
)
def test_what_cannot_be_encoded_is_named(
    tmp_path: Path, base: Path, change: dict[str, tuple[str, Array] | None], says: str
) -> None:
    wished = {name: tensor for name, tensor in {**tensors(2), **change}.items() if tensor is not None}
    write_safetensors(tmp_path / "new", ArrayTensors(wished))
    ended = sprat_delta("encode", base, tmp_path / "new", "-o", tmp_path / "u")
    assert ended.returncode == 65
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "u").exists()


def test_an_update_to_other_tensors_is_told_and_rebuilt(tmp_path: Path, base: Path) -> None:
    wished = tensors(1)
    del wished["fc.bias"]
    wished["conv1.weight"] = ("F32", np.ones((20, 3, 3, 3), np.float32))
    wished["extra"] = ("F32", np.ones(2, np.float32))
    write_safetensors(tmp_path / "new", ArrayTensors(wished))
    table = "- fc.bias, conv1.weight [16, 3, 3, 3] -> [20, 3, 3, 3], + extra [2]"
    assert done("encode", base, tmp_path / "new", "-o", tmp_path / "u", "--lossless")["table"] == table
    told = done("inspect", tmp_path / "u", "--base", base)
    assert (told["table"], told["flags"]) == (table, ["RESULT", "PATCH"])
    done("apply", base, tmp_path / "u", "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "new").read_bytes()


def test_another_base_a_cut_file_and_a_wrong_promise_leave_no_output(tmp_path: Path, base: Path, new: Path) -> None:
    done("encode", base, new, "-o", tmp_path / "u")
    data = (tmp_path / "u").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-3])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "out").write_bytes(b"as before")
    attempts = [
        ((new, tmp_path / "u"), 76, "made for weights"),
        ((base, tmp_path / "cut"), 76, "cut"),
        ((base, tmp_path / "empty"), 76, "not a sprat update"),
        ((base, base), 76, "not a sprat update"),
        ((base, tmp_path / "none"), 65, "none"),
        ((tmp_path / "none", tmp_path / "u"), 65, "none"),
        ((base, tmp_path / "u", "--expect", "sha256:" + "0" * 64), 76, "expected sha256:0000"),
        ((base, tmp_path / "u", "--expect", "0000"), 65, "not a digest"),
    ]
    for words, code, says in attempts:
        ended = sprat_delta("apply", *words, "-o", tmp_path / "out")
        assert (ended.returncode, ended.stdout) == (code, ""), ended.stderr
        assert says in ended.stderr
        assert "Traceback" not in ended.stderr
    assert (tmp_path / "out").read_bytes() == b"as before"
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*"))


def test_a_folder_that_is_not_there_and_a_full_disk_are_said(tmp_path: Path, base: Path, new: Path) -> None:
    ended = sprat_delta("encode", base, new, "-o", tmp_path / "none" / "u")
    assert (ended.returncode, "cannot be written" in ended.stderr) == (65, True)
    limited = (
        f"ulimit -f 1; exec {sys.executable} -m sprat_client.cli delta encode {base} {new} -o {tmp_path}/u --lossless"
    )
    ended = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, check=False)
    assert (ended.returncode, "cannot be written" in ended.stderr) == (75, True), ended.stderr
    assert not (tmp_path / "u").exists()


def test_the_output_may_take_the_place_of_the_base(tmp_path: Path, base: Path, new: Path) -> None:
    done("encode", base, new, "-o", tmp_path / "u", "--lossless")
    done("apply", base, tmp_path / "u", "-o", base)
    assert base.read_bytes() == new.read_bytes()


def test_apply_loads_neither_the_runtime_nor_the_trust_client(tmp_path: Path, base: Path, new: Path) -> None:
    done("encode", base, new, "-o", tmp_path / "u")
    command = [sys.executable, "-c", LOADED, base, tmp_path / "u", "-o", tmp_path / "out"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert {"numpy", "sprat_shared"} <= loaded
    assert not {"onnxruntime", "tuf", "httpx", "cryptography", "securesystemslib", "torch", "rich"} & loaded


def test_only_one_way_to_bound_the_error_is_taken(tmp_path: Path, base: Path, new: Path) -> None:
    ended = sprat_delta("encode", base, new, "-o", tmp_path / "u", "--lossless", "--budget", "1kB")
    assert (ended.returncode, "ask for one" in ended.stderr) == (65, True)
    ended = sprat_delta("encode", base, new, "-o", tmp_path / "u", "--budget", "3", "--json")
    assert (ended.returncode, json.loads(ended.stderr)["error"]["code"]) == (65, "input.invalid")


@pytest.mark.parametrize(
    ("text", "count"), [("900", 900), ("2kB", 2000), ("1.5 MB", 1_500_000), ("64KiB", 65536), ("7B", 7), ("1GB", 10**9)]
)
def test_amounts_of_bytes_are_understood(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "kB", "-1", "2 mb", "1e3", "2kiB", "nan"])
def test_what_is_no_amount_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="such as 2kB"):
        parse_bytes(text)


def test_encode_shows_what_other_sizes_miss_and_what_data_would_buy(tmp_path: Path) -> None:
    rng, paths = np.random.default_rng(2), [tmp_path / "a", tmp_path / "b"]
    for path in paths:  # nothing in common, so of full rank
        write_safetensors(path, ArrayTensors({"w": ("F32", rng.standard_normal((70, 90), dtype=np.float32))}))
    shown = sprat_delta("encode", *paths, "-o", tmp_path / "u")
    assert shown.returncode == 0, shown.stderr
    assert "with a budget of" in shown.stdout
    assert "it is not low rank" in shown.stdout
    assert "sprat retrain" in shown.stdout
    result = done("encode", *paths, "-o", tmp_path / "u", "--budget", "600")
    curve, share = result["curve"], result["low_rank_share"]
    assert isinstance(curve, list)
    assert curve[0]["bytes"] < 1000 < curve[-1]["bytes"]
    assert curve[-1]["relative_error"] == 0
    assert isinstance(share, float)
    assert share < 0.8
    exact = done("encode", *paths, "-o", tmp_path / "u", "--lossless")
    assert (exact["curve"], exact["hint"]) == ([], None)
