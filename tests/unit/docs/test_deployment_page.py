"""The page of deployment names every setting, with the value that it has unless set."""

import re
from pathlib import Path

import pytest

from sprat_server.settings import PREFIX, Settings

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "deployment.md").read_text()
ROWS = re.findall(r"^\| (`SPRAT_[^|]+) \| ([^|]*) \| [^|]+ \|$", PAGE, re.MULTILINE)
UNLESS_SET = {
    name: value.strip()
    for names, values in ROWS
    for name, value in zip(
        re.findall(r"`(SPRAT_[A-Z_0-9]+)`", names),
        values.split(", ") if names.count("`SPRAT_") == values.count(",") + 1 else [values] * 9,
        strict=False,
    )
}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_has_a_row(field: str) -> None:
    assert PREFIX + field.upper() in UNLESS_SET


def test_every_row_is_of_a_setting() -> None:
    assert set(UNLESS_SET) == {PREFIX + field.upper() for field in Settings.model_fields}


@pytest.mark.parametrize("field", Settings.model_fields)
def test_a_number_that_holds_unless_set_is_the_code_s(field: str) -> None:
    value = Settings.model_fields[field].default
    if isinstance(value, int | float) and not isinstance(value, bool):
        written = UNLESS_SET[PREFIX + field.upper()]
        size = re.fullmatch(r"(\d+) ([MG])iB", written)
        told = int(size[1]) << {"M": 20, "G": 30}[size[2]] if size else float(written)
        assert told == value
