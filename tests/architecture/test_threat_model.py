"""Every threat of docs/threat-model.md has a test, and it exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| [0-9]+ \|", line)
]


def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_threats_are_numbered_without_gaps() -> None:
    assert [int(row.split("|")[1]) for row in ROWS] == list(range(1, len(ROWS) + 1))


def test_every_threat_names_a_test_that_exists() -> None:
    missing = []
    for row in ROWS:
        named = re.search(r"`(tests/[a-z0-9_/]+\.py)(?:::(test_[a-z0-9_]+))?` \|$", row)
        if named is None or not (ROOT / named[1]).is_file():
            missing.append(row)
        elif named[2] is not None and named[2] not in names_in(ROOT / named[1]):
            missing.append(named[0])
    assert missing == []
