"""What the benchmark's cases are made of: foreign files are read as data only, the cache hangs on what matters."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sizes.cases import CASES, CaseUnavailable, fashion, glosses, sensors
from sizes.cases.case import splits


class Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this must not run",)


def test_a_stranger_s_tables_are_read_without_running_anything_they_name() -> None:
    for content in (Runs(), [1.5, Runs()]):
        with pytest.raises(pickle.UnpicklingError, match=r"builtin.*print"):
            sensors._Tables(io.BytesIO(pickle.dumps(content, protocol=2))).load()


def test_arrays_come_out_of_a_stranger_s_tables_as_they_went_in() -> None:
    array = np.arange(6, dtype=np.float64).reshape(2, 3)
    old_names = pickle.dumps(array, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert np.array_equal(sensors._Tables(io.BytesIO(old_names)).load(), array)


def test_windows_lie_in_one_activity_each_and_labels_begin_at_zero() -> None:
    labels = np.array([-1] * 10 + [2] * 130 + [9] * 80 + [5] * 63)
    found = list(sensors._stretches((np.zeros((6, len(labels)), np.float32), labels), 12))
    assert [(windows.shape, set(own)) for windows, own in found] == [((2, 6, 64), {1}), ((3, 6, 64), {8})]
    assert [set(own) for _, own in sensors._stretches((np.zeros((6, len(labels)), np.float32), labels), 6)] == [{1}]


def test_a_gloss_is_read_without_its_examples(tmp_path: Path) -> None:
    file = tmp_path / "data.verb"
    file.write_text(
        "  1 This software and database is being provided\n"
        '00002724 29 v 01 choke 0 002 @ 00001740 v 0000 01 + 02 00 | breathe with difficulty; "She choked"  \n'
    )
    assert glosses._read(file) == [(["breathe", "with", "difficulty"], 29)]


def test_missing_data_name_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion, "FOLDER", tmp_path)
    monkeypatch.setattr(glosses, "FILES", (tmp_path / "data.noun",))
    with pytest.raises(CaseUnavailable, match="dataset-fashion-mnist"):
        CASES["fashion"].make(0)
    with pytest.raises(CaseUnavailable, match="wordnet-base"):
        CASES["glosses"].make(0)


def test_the_cache_hangs_on_a_case_s_own_code_and_on_its_data(tmp_path: Path) -> None:
    code, data = tmp_path / "case.py", tmp_path / "data"
    code.write_text("1")
    data.mkdir()
    case = replace(CASES["fashion"], code=(code,), data=(data,))
    seen = [case.digest()]
    assert case.digest() == seen[0]
    (data / "more").write_text("1")
    seen.append(case.digest())
    code.write_text("2")
    seen.append(case.digest())
    assert len(set(seen)) == len(seen)


def test_splits_are_disjoint_and_follow_the_seed() -> None:
    train, validation, test = splits(100, 3, (50, 20, 30))
    assert sorted(np.concatenate((train, validation, test))) == list(range(100))
    assert np.array_equal(train, splits(100, 3, (50, 20, 30))[0])
    assert not np.array_equal(train, splits(100, 4, (50, 20, 30))[0])
