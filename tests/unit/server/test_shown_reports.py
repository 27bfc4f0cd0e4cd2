"""Every kind of report that a device sends is shown to people, with all that it says."""

import dataclasses
import importlib
import pkgutil
from typing import Any

import sprat_shared.protocol
from sprat_server.fleet.schemas import ReportView


def reports() -> dict[str, list[str]]:
    """The fields of each report there is, by kind: what has a kind and a place in a device's row of reports."""
    found = {}
    for module in pkgutil.iter_modules(sprat_shared.protocol.__path__):
        members: dict[str, Any] = vars(importlib.import_module(f"sprat_shared.protocol.{module.name}"))
        for one in members.values():
            if isinstance(one, type) and dataclasses.is_dataclass(one):
                fields = {field.name: field.default for field in dataclasses.fields(one)}
                if "sequence" in fields and isinstance(kind := fields.get("kind"), str):
                    found[kind] = sorted(fields)
    return found


def test_every_kind_of_report_is_shown_with_all_its_fields() -> None:
    found = reports()
    assert {"assignment", "trust", "holdout", "facts", "site", "measures"} <= found.keys()
    shown = set(ReportView.model_fields)
    assert set(ReportView.model_json_schema()["properties"]["kind"]["enum"]) == found.keys()
    for kind, fields in found.items():
        assert set(fields) - {"device"} <= shown, kind
