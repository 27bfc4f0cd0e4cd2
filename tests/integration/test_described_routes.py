"""The API's description is whole: every body has an example, every route its problems, every code a meaning."""

import json
from pathlib import Path
from typing import Any

import pytest
from described_routes import OPERATORS, operations

from sprat_server.api.described import codes_of

ROOT = Path(__file__).resolve().parents[2]
STREAMS = {"application/octet-stream"}


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    """The file; `make docs` writes it, and another test holds it to the code."""
    read: dict[str, Any] = json.loads((ROOT / "docs" / "openapi.json").read_text())
    return read


def has_example(content: dict[str, Any], schemas: dict[str, Any]) -> bool:
    schema = content.get("schema", {})
    schema = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
    variants = [schemas.get(one.get("$ref", "").rpartition("/")[2], one) for one in schema.get("anyOf", [])]
    shown = [content, schema, *variants]
    fields = schema.get("properties", {}).values()
    return any(one.get("example") or one.get("examples") for one in shown) or (
        bool(fields) and all("examples" in field for field in fields)
    )


def test_every_body_has_an_example(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    lacking = [
        f"{method} {path} ({kind})"
        for method, path, operation in operations(description)
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
        if kind not in STREAMS and not has_example(content, schemas)
    ]
    assert lacking == []


def test_every_route_of_operators_says_which_problems_it_answers(description: dict[str, Any]) -> None:
    for method, path, operation in operations(description):
        if not path.startswith(OPERATORS):
            continue
        codes = {code for response in operation["responses"].values() for code in codes_of(response)}
        assert {"access.unauthenticated", "database.away"} <= codes, (method, path)
        if method != "GET":
            assert "access.scope" in codes, (method, path)


def test_every_code_in_the_description_has_a_meaning(description: dict[str, Any]) -> None:
    meanings = (ROOT / "docs" / "errors.md").read_text()
    codes = {
        code
        for _, _, operation in operations(description)
        for response in operation["responses"].values()
        for code in codes_of(response)
    }
    assert sorted(code for code in codes if f"`{code}`" not in meanings) == []
