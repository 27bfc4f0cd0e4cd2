"""Dataset files: what is read, and what is refused with a sentence that says why."""

from pathlib import Path

import numpy as np
import pytest

from sprat_server.registry.samples import DatasetInvalid, read_samples, seeded_split
from sprat_shared.wire.safetensors import write_safetensors
from sprat_shared.wire.tensors import ArrayTensors


def good(samples: int = 40) -> dict[str, np.ndarray]:
    inputs = np.arange(samples * 4, dtype=np.float32).reshape(samples, 2, 2)
    return {"inputs": inputs, "labels": np.arange(samples) % 3}


def saved(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_an_npz_file_is_read_with_a_split_of_70_15_15(tmp_path: Path) -> None:
    read = read_samples(saved(tmp_path, good(1000)))
    counts = [len(read.indices(name)) for name in ("train", "validation", "test")]
    assert (counts, read.classes, read.given_split, read.format) == ([700, 150, 150], 3, False, "npz")


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    split = np.arange(40, dtype=np.uint8) % 3
    read = read_samples(saved(tmp_path, good() | {"split": split}))
    assert read.given_split
    assert read.indices("test").tolist() == list(range(2, 40, 3))


def test_samples_without_a_label_train_and_the_others_are_split_as_if_they_were_alone(tmp_path: Path) -> None:
    arrays = good(1200)
    arrays["labels"] = np.where(np.arange(1200) % 6 == 5, -1, arrays["labels"])
    read = read_samples(saved(tmp_path, arrays))
    assert read.classes == 3
    assert (read.split[read.labels == -1] == 0).all()
    assert np.array_equal(read.split[read.labels >= 0], seeded_split(1000))


def test_a_safetensors_file_is_read_by_its_content_not_its_name(tmp_path: Path) -> None:
    arrays = good()
    path = tmp_path / "data.bin"
    write_safetensors(path, ArrayTensors({"inputs": ("F32", arrays["inputs"]), "labels": ("I64", arrays["labels"])}))
    read = read_samples(path)
    assert read.format == "safetensors"
    assert np.array_equal(read.inputs, arrays["inputs"])


def test_the_seeded_split_is_the_same_for_ever() -> None:
    assert seeded_split(20).tolist() == [2, 0, 0, 2, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]


def test_every_sample_is_in_exactly_one_split() -> None:
    assert np.bincount(seeded_split(10_007)).tolist() == [7005, 1501, 1501]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": None}, "'inputs' is missing"),
        ({"labels": None}, "'labels' is missing"),
        ({"splits": np.zeros(40)}, "'splits' is not expected"),
        ({"inputs": np.array(["a"] * 40)}, "inputs have dtype"),
        ({"inputs": np.zeros(40, np.float32)}, "inputs have shape"),
        ({"inputs": np.full((40, 2), np.nan, np.float32)}, "sample 0 of inputs holds NaN"),
        ({"labels": np.zeros(39, np.int64)}, "labels have shape"),
        ({"labels": np.zeros(40, np.float32)}, "labels have dtype"),
        ({"labels": np.full(40, -2)}, r"label -2 of sample 0 is not in 0 to 999999, nor -1 \(no label\)"),
        ({"labels": np.full(40, -1)}, "at least two classes"),
        (
            {"labels": np.arange(40) % 3 - (np.arange(40) == 4) * 2, "split": np.arange(40) % 3},
            r"sample 4 of the validation split has no label \(-1\); only training samples may",
        ),
        (
            {"labels": np.where(np.arange(40) % 3, np.arange(40) % 2, -1), "split": np.arange(40) % 3},
            "the train split has no labelled sample",
        ),
        ({"labels": np.zeros(40, np.int64)}, "at least two classes"),
        ({"split": np.full(40, 3, np.uint8)}, "split of sample 0 is 3"),
        ({"split": np.zeros(40, np.uint8)}, "validation split has no labelled sample"),
        ({"split": np.zeros(40, np.float32)}, "integers are expected"),
    ],
)
def test_what_is_no_dataset_is_refused_and_the_message_says_why(
    tmp_path: Path, change: dict[str, np.ndarray | None], words: str
) -> None:
    arrays = {name: value for name, value in (good() | change).items() if value is not None}
    with pytest.raises(DatasetInvalid, match=words):
        read_samples(saved(tmp_path, arrays))


def test_the_first_sample_with_an_infinity_is_named(tmp_path: Path) -> None:
    arrays = good(3000)
    arrays["inputs"][2047, 1, 1] = np.inf
    with pytest.raises(DatasetInvalid, match="sample 2047 of inputs"):
        read_samples(saved(tmp_path, arrays))


def test_objects_in_an_npz_file_are_not_executed(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match="without objects"):
        read_samples(saved(tmp_path, good() | {"labels": np.array([{}] * 40)}))


def test_a_cut_npz_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, good())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DatasetInvalid, match="cannot be read"):
        read_samples(path)


def test_what_is_neither_npz_nor_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my samples, enjoy", encoding="utf-8")
    with pytest.raises(DatasetInvalid, match=r"neither \.npz nor safetensors"):
        read_samples(path)
