"""Is a column one of many values: as one array. `column.in_(values)` sends a parameter for each, at most 65,535."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, any_, literal
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute


def among(column: InstrumentedAttribute[Any], values: Iterable[Any]) -> ColumnElement[bool]:
    """Return the condition that a column is one of the values; the way for whatever grows with the fleet."""
    return column == any_(literal(list(values), ARRAY(column.expression.type)))
