"""The rules that `benchmarks/layer_sharing.py` compares, and the file that it keeps its facts in."""

from pathlib import Path

from sharing.kept import Kept
from sharing.measure import Row
from sharing.rules import BUDGET, RULES, Measured


def row(donor: str, recipient: str, **given: object) -> Row:
    plain = {
        "form": "stitch",
        "way": "a b 1",
        "similar": True,
        "fitted": True,
        "saved_bytes": 500,
        "cka": 0.9,
        "spread": 0.0,
        "cka_pooled": 0.9,
        "r2": 0.9,
        "compared": 1000,
        "disagreed": 5,
        "test_disagreed": 0.005,
        "drop": 0.001,
    }
    return Row(donor=donor, recipient=recipient, **{**plain, **given})  # type: ignore[arg-type]


def known(*rows: Row) -> Measured:
    names = sorted({name for one in rows for name in (one.donor, one.recipient)})
    return Measured(dict.fromkeys(names, 1000), {name: name[0] for name in names}, rows, dict.fromkeys(names, 1000), 0)


ROWS = known(
    row("v1", "v2", form="tie", saved_bytes=600),
    row("v1", "v2", form="residual", saved_bytes=800),
    row("v1", "r1", saved_bytes=900),
    row("v1", "r1", saved_bytes=950, disagreed=100),
    row("r1", "v1", saved_bytes=300, cka=0.99),
)


def test_every_rule_keeps_donors_whole_and_the_budget() -> None:
    for _, rule in RULES.values():
        found = rule(ROWS)
        assert not found.donors & set(found.chosen)
        assert found.bound <= BUDGET


def test_rules_look_at_their_own_forms() -> None:
    saved = {key: rule(ROWS).saved_bytes for key, (_, rule) in RULES.items()}
    assert saved["tie"] == 600
    assert saved["residual"] == saved["same"] == 800
    assert saved["stitch"] == 900
    assert saved["planner"] == 1700


def test_similarity_takes_what_is_most_alike_first() -> None:
    """And so gives away a better donor, whatever its threshold."""
    alike = known(row("v1", "r1", saved_bytes=900, cka=0.5), row("r1", "v1", saved_bytes=300, cka=0.99))
    assert RULES["cka"][1](alike).saved_bytes == 300


def test_similarity_goes_up_the_layers_where_the_deepest_disagree() -> None:
    alike = known(row("v1", "r1", disagreed=100, saved_bytes=900), row("v1", "r1", saved_bytes=400))
    assert RULES["cka"][1](alike).saved_bytes == 400


def test_what_was_measured_is_read_again_and_a_torn_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "measured" / "zoo-0.jsonl"
    kept = Kept(path, "code")
    kept.put("one", [1, 2])
    kept.put("two", {"a": 1})
    with path.open("a") as file:
        file.write('{"code": "code", "key": "thr')
    again = Kept(path, "code")
    assert again.get("one") == [1, 2]
    assert again.get("three") is None
    again.put("three", 3)
    assert Kept(path, "code").get("three") == 3
    assert Kept(path, "other code").get("one") is None
