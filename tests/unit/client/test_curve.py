"""The curve of a retrain as operators see it: a table, JSON, and a drawing."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from answering_server import answering
from typer.testing import CliRunner, Result

from sprat_client.cli.app import app
from sprat_client.cli.curve import draw, drawing, points_of
from sprat_shared.errors import InvalidInput, NotFound


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


def test_the_coefficients_of_a_subspace_have_a_column_where_one_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    found = point(272, 0.965, keeps=True) | {"method": "subspace", "rank": None, "coefficients": 1000}
    with answering(monkeypatch, lambda *_request: release(curve=[found, CHOSEN], chosen=found)):
        lines = curve("digits@2").stdout.splitlines()
    assert lines[0].split()[-4:] == ["method", "rank", "coefficients", "price"]
    assert lines[1].split()[-4:] == ["subspace", "-", "1000", "0.001"]


@pytest.mark.usefixtures("server")
def test_with_json_each_point_is_an_object_that_says_whether_it_was_chosen() -> None:
    points = [json.loads(line) for line in curve("digits", "2", "--json").stdout.splitlines()]
    assert [(one["update_bytes"], one["chosen"]) for one in points] == [(890, False), (1384, True), (41_000, False)]
    assert points[1] == CHOSEN | {"chosen": True}


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(("name", "begins"), [("digits.png", b"\x89PNG\r\n"), ("digits.SVG", b"<?xml")])
def test_the_drawing_has_the_format_that_its_name_says(tmp_path: Path, name: str, begins: bytes) -> None:
    ended = curve("digits@2", "-o", str(tmp_path / name))
    assert ended.exit_code == 0
    assert (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.usefixtures("server")
def test_a_file_that_is_no_drawing_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    refused = curve("digits@2", "-o", "digits.pdf")
    assert isinstance(refused.exception, InvalidInput)
    assert str(refused.exception) == "-o digits.pdf: a curve is drawn as .png or .svg; call the file digits.png"
    missing = curve("digits@2", "-o", str(tmp_path / "none" / "digits.svg"))
    assert isinstance(missing.exception, InvalidInput)
    assert "No such file or directory" in str(missing.exception)


def test_without_matplotlib_the_extra_is_named_before_the_server_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused = curve("digits@2", "-o", "digits.png")
    assert isinstance(refused.exception, InvalidInput)
    assert "needs the extra 'plot' (matplotlib is missing): pip install 'sprat[cli,plot]'" in str(refused.exception)


def test_no_other_command_loads_matplotlib() -> None:
    code = "import sys; import sprat_client.cli.app; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("server")
def test_a_release_that_was_not_retrained_has_no_curve() -> None:
    ended = curve("digits@1")
    assert isinstance(ended.exception, NotFound)
    assert str(ended.exception) == "digits@1 was registered, not retrained here: it has no curve"


def test_the_chosen_point_is_ringed_and_named_and_the_target_is_a_line() -> None:
    axes = drawing(release()).axes[0]
    dots = [line for line in axes.lines if line.get_marker() in {"o", "^"} and line.get_markersize() == 6]
    (ring,) = (line for line in axes.lines if line.get_markersize() == 14)
    (target,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert axes.get_xscale() == "log"
    assert [float(dot.get_xdata()[0]) for dot in dots] == [890, 1384, 41_000]
    assert [dot.get_markerfacecolor() for dot in dots] == ["white", "#2563eb", "#2563eb"]
    assert (float(ring.get_xdata()[0]), float(ring.get_ydata()[0])) == (1384, 0.961)
    assert [text.get_text() for text in axes.texts] == ["1,384 bytes, 96.1 %"]
    assert list(target.get_ydata()) == [0.95, 0.95]
    assert [dot.get_marker() for dot in dots] == ["o", "o", "^"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["95 % asked for", "factors", "post-hoc"]


@pytest.mark.parametrize(
    ("metrics", "lines"),
    [
        ({"keep": None, "budget": 2000}, 1),
        ({"keep": None, "max_drop": 0.005}, 0),
        ({"curve": [CHOSEN], "keep": None}, 0),
        ({"curve": [CHOSEN, point(12, -3.5, keeps=False), point(10**9, 0.5, keeps=False)]}, 1),
    ],
    ids=["budget", "drop", "one-point", "far-apart"],
)
def test_every_mark_lies_on_the_sheet(metrics: dict[str, Any], lines: int) -> None:
    axes = drawing(release(**metrics)).axes[0]
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    marks = [line for line in axes.lines if line.get_marker() in {"o", "^"}]
    assert len(marks) == len(release(**metrics)["metrics"]["curve"]) + 1
    for mark in marks:
        assert left < mark.get_xdata()[0] < right
        assert low < mark.get_ydata()[0] < high
    assert len([line for line in axes.lines if line.get_linestyle() == "--"]) == lines


def test_a_models_name_cannot_break_the_drawing(tmp_path: Path) -> None:
    draw(release() | {"model": "<&>$x$"}, tmp_path / "drawn.svg")
    assert ET.parse(tmp_path / "drawn.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_points_of_a_release_made_before_accuracies_were_kept_are_shown_too() -> None:
    old = {name: value for name, value in CHOSEN.items() if name != "accuracy"}
    assert points_of(release(curve=[old], chosen=old)) == [old | {"chosen": True}]
