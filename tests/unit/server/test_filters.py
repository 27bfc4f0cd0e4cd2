"""Filters of devices: what they say, where they are wrong, and what holds for a device. The SQL is held equal to this
in tests/integration/test_targeting.py."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sprat_server.fleet import filter_grammar
from sprat_server.fleet.filter_grammar import BadFilter, parse
from sprat_server.fleet.filters import DeviceFacts, ModelState, holds

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
CAMERA = DeviceFacts(
    name="cam-07",
    site="plant-3",
    profile="cam-v2",
    agent="0.1.0",
    enrolled=NOW - timedelta(days=40),
    last_seen=NOW - timedelta(hours=3),
    labels={"site": "lab", "ring": "canary", "line": "4"},
    attributes={"memory_bytes": "4096000000", "machine": "aarch64"},
    models={"digits": ModelState(active=3, previous=2, outcome="committed", reported=NOW - timedelta(days=1))},
)


def fits(text: str, device: DeviceFacts = CAMERA) -> bool:
    return holds(parse(text).root, device, NOW)


@pytest.mark.parametrize(
    "text",
    [
        'labels.site = "lab" and model.digits.active < 4 and not profile in ("cam-v1", "x") and name ~ "cam-*"',
        'profile not in ("cam-v1", "cam-v3")',
        "last_seen > 7d ago",
        "last_seen < 1h ago and enrolled < 2026-11-01",
        "last_seen >= 2026-11-30T09:00Z",
        "attributes.memory_bytes >= 4000000000 and labels.line in (3, 4) and labels.line < 4.5",
        'labels.line = "4" and labels.line != "04" and labels.line = 4.0',
        'name = "x" or name = "y" or site = "plant-3"',
        'name = "x" and name = "y" or site = "plant-3"',
        'not (name = "x" or name = "y") and has labels.ring and not has labels.gone',
        'labels.gone != "x" and not labels.gone = "x" and not labels.gone < 4 and not labels.gone ~ "*"',
        "not model.other.failed and not failed and not has model.other.active",
        'name ~ "cam-??" and not name ~ "am-07" and name ~ "*"',
        '\n  labels.site\t=\r\n"lab"',
        "model.digits.reported > 2d ago and model.digits.previous = 2",
    ],
)
def test_what_holds_for_a_camera(text: str) -> None:
    assert fits(text)


@pytest.mark.parametrize(
    "text",
    ["last_seen < 7d ago", "labels.site > 3", "labels.line > 4", "model.digits.active != 3", "has labels.x", "failed"],
)
def test_what_does_not_hold_for_it(text: str) -> None:
    assert not fits(text)


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ('labls.site = "lab"', 1, "there is no fact 'labls.site'; known are name, site"),
        ('name = "a" and nme = "b"', 16, "there is no fact 'nme'"),
        ("name = 4", 8, "name is a text"),
        ("name", 1, "compare it, or write has name"),
        ('name < "a"', 6, "name is a text"),
        ('labels.x < "a"', 10, "or a number and < <= > >= too"),
        ("labels.x ~ 4", 10, "or a number and"),
        ('last_seen = "now"', 13, "last_seen is a time; with it go < <= > >=, and a time such as 7d ago"),
        ("last_seen > 2026-13-01", 13, "is no date"),
        ("last_seen > 99999w ago", 13, "ten years ago"),
        ("failed = 4", 10, "stands by itself"),
        ('profile in ("a", 4)', 18, "texts alone"),
        ("last_seen in (7d ago)", 15, "texts alone, or numbers alone"),
        ("model.digits.actve = 4", 1, "model.NAME.active"),
        ("model.Digits.active = 4", 1, "cannot name a model"),
        ('name = "lab', 8, "not closed"),
        ("name = 'lab'", 8, "double quotes"),
        ('name == "lab"', 7, "expected a text such as"),
        ('name = "a" or', 14, "the end does not fit here; expected a fact"),
        ("", 1, "the end does not fit here"),
        ('(name = "a"', 12, "expected"),
        ('name = "a" name = "b"', 12, "expected the end, and, or"),
        ("not " * 30 + "failed", 121, "nested deeper than 20"),
        (" or ".join(["failed"] * 101), 1001, "at most 100 comparisons"),
    ],
)
def test_an_error_points_at_the_column_and_says_what_is_known_there(text: str, column: int, says: str) -> None:
    with pytest.raises(BadFilter) as raised:
        parse(text)
    first, _, caret = str(raised.value).split("\n")
    assert f"column {column}:" in first
    assert says in first
    assert caret.strip() == "^"


def test_the_caret_stands_under_what_is_wrong_in_its_own_line() -> None:
    with pytest.raises(BadFilter) as raised:
        parse('name = "a"\n  and nme = "b"')
    assert str(raised.value).split("\n")[1:] == ['    and nme = "b"', "        ^"]


def test_a_filter_is_bounded() -> None:
    parse("(" * 900 + "failed" + ")" * 900)
    with pytest.raises(BadFilter, match="at most 2000 characters"):
        parse("failed" + " " * 1995)


def test_a_filter_knows_its_models_and_whether_devices_come_and_go_by_themselves() -> None:
    read = parse('name = "model.a.active" and model.b.active = 1 and model.a.failed')
    assert read.models == {"b": 28, "a": 51}
    assert not read.moves
    for text in ("not (failed or last_seen > 2026-01-01)", "enrolled < 7d ago", "model.a.previous = 1"):
        assert parse(text).moves, text


@given(st.text(alphabet=st.characters(), max_size=60) | st.text(alphabet='abc."=<>~() 47dago\\', max_size=60))
def test_any_text_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    try:
        parse(text)
    except BadFilter as bad:
        assert bad.code == "filter.bad"  # noqa: PT017 - junk may be read


def test_the_page_of_the_grammar_says_the_grammar() -> None:
    page = (filter_grammar.__file__).partition("server/sprat_server")[0] + "docs/targeting.md"
    with open(page, encoding="utf-8") as file:  # noqa: PTH123 - read once
        assert filter_grammar.GRAMMAR.strip() in file.read()
