"""The curve of a retrain as operators see it: a table, JSON, and a drawing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from answering_server import answering
from typer.testing import CliRunner, Result

from sprat_client.cli.app import app
from sprat_client.cli.curve import drawing, points_of
from sprat_shared.errors import InvalidInput, NotFound

SVG = "{http://www.w3.org/2000/svg}"


def point(update_bytes: int, share: float, *, keeps: bool, price: float | None = 1e-3) -> dict[str, Any]:
    return {
        "method": "post-hoc" if price is None else "factors",
        "rank": None if price is None else 8,
        "price": price,
        "update_bytes": update_bytes,
        "share": share,
        "error": 0.01,
        "accuracy": 0.6 + 0.3 * share,
        "keeps": keeps,
    }


CHOSEN = point(1384, 0.961, keeps=True)


def release(**metrics: Any) -> dict[str, Any]:
    curve = [CHOSEN, point(890, 0.88, keeps=False), point(41_000, 1.002, keeps=True, price=None)]
    told = {"curve": curve, "chosen": CHOSEN, "keep": 0.95, "budget": None, "max_drop": None}
    return {"model": "digits", "number": 2, "origin": "retrained", "metrics": told | metrics}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server on loopback that knows one retrained release of digits, and release 1, which was registered."""
    answers = {"2": release(), "1": release() | {"number": 1, "origin": "registered", "metrics": {}}}

    with answering(monkeypatch, lambda _method, path, _body: answers[path.rpartition("/")[2]]):
        yield


def curve(*words: str) -> Result:
    return CliRunner().invoke(app, ["release", "curve", *words])


@pytest.mark.usefixtures("server")
def test_the_table_has_every_point_by_size_and_marks_the_chosen_one() -> None:
    lines = curve("digits@2").stdout.splitlines()
    assert lines[0].split() == ["bytes", "gain", "kept", "+-", "accuracy", "meets", "method", "rank", "price"]
    assert [line.split()[0] for line in lines[1:]] == ["890", "*", "41,000"]
    assert lines[2].split() == ["*", "1,384", "0.9610", "0.0100", "0.8883", "yes", "factors", "8", "0.001"]


def test_the_accuracy_on_an_old_domain_has_a_column_where_one_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CHOSEN | {"accuracy_old": 0.93}
    with answering(monkeypatch, lambda *_request: release(curve=[kept], chosen=kept)):
        lines = curve("digits@2").stdout.splitlines()
    assert lines[0].split()[4:6] == ["accuracy", "old"]
    assert lines[1].split()[4:6] == ["0.8883", "0.93"]


@pytest.mark.usefixtures("server")
def test_with_json_each_point_is_an_object_that_says_whether_it_was_chosen() -> None:
    points = [json.loads(line) for line in curve("digits", "2", "--json").stdout.splitlines()]
    assert [(one["update_bytes"], one["chosen"]) for one in points] == [(890, False), (1384, True), (41_000, False)]
    assert points[1] == CHOSEN | {"chosen": True}


@pytest.mark.usefixtures("server")
def test_the_drawing_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    target = tmp_path / "digits.svg"
    ended = curve("digits@2", "-o", str(target))
    assert ended.exit_code == 0
    assert target.read_text() == drawing(release())


@pytest.mark.usefixtures("server")
def test_a_file_that_is_no_svg_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    refused = curve("digits@2", "-o", "digits.png")
    assert isinstance(refused.exception, InvalidInput)
    assert str(refused.exception) == "-o digits.png: a curve is drawn as SVG; call the file digits.svg"
    missing = curve("digits@2", "-o", str(tmp_path / "none" / "digits.svg"))
    assert isinstance(missing.exception, InvalidInput)
    assert "No such file or directory" in str(missing.exception)


@pytest.mark.usefixtures("server")
def test_a_release_that_was_not_retrained_has_no_curve() -> None:
    ended = curve("digits@1")
    assert isinstance(ended.exception, NotFound)
    assert str(ended.exception) == "digits@1 was registered, not retrained here: it has no curve"


def test_the_drawing_is_svg_with_a_dot_for_each_point_and_a_ring_about_the_chosen_one() -> None:
    picture = ET.fromstring(drawing(release()))
    circles = picture.findall(f"{SVG}circle")
    rings = [circle for circle in circles if circle.get("class") == "chosen"]
    dots = [circle for circle in circles if circle.get("class") is None]
    assert (len(dots), len(rings)) == (3, 1)
    assert (rings[0].get("cx"), rings[0].get("cy")) == (dots[1].get("cx"), dots[1].get("cy"))
    assert [dot.get("fill") for dot in dots] == ["white", "#2563eb", "#2563eb"]
    assert [float(dot.get("cx") or 0) for dot in dots] == sorted(float(dot.get("cx") or 0) for dot in dots)
    words = [text.text for text in picture.findall(f"{SVG}text")]
    assert "1,384 bytes, 96.1 %" in words
    assert "95 % asked for" in words


@pytest.mark.parametrize(
    "metrics",
    [
        {"keep": None, "budget": 2000},
        {"keep": None, "max_drop": 0.005},
        {"curve": [CHOSEN], "keep": None},
        {"curve": [CHOSEN, point(12, -3.5, keeps=False), point(10**9, 0.5, keeps=False)]},
    ],
    ids=["budget", "drop", "one-point", "far-apart"],
)
def test_every_mark_lies_on_the_sheet(metrics: dict[str, Any]) -> None:
    picture = ET.fromstring(drawing(release(**metrics)))
    for circle in picture.findall(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx") or -1) <= 720
        assert 0 <= float(circle.get("cy") or -1) <= 440
    lines = [line for line in picture.findall(f"{SVG}line") if line.get("stroke-dasharray")]
    assert len(lines) == (1 if metrics.get("budget") or "keep" not in metrics else 0)


def test_a_models_name_cannot_break_the_drawing() -> None:
    assert ET.fromstring(drawing(release() | {"model": "<&>"})) is not None


def test_points_of_a_release_made_before_accuracies_were_kept_are_shown_too() -> None:
    old = {name: value for name, value in CHOSEN.items() if name != "accuracy"}
    assert points_of(release(curve=[old], chosen=old)) == [old | {"chosen": True}]
