"""Is a column one of many values: as one array. `column.in_(values)` sends a parameter for each, at most 65,535."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, any_, func, literal, select, tuple_
from sqlalchemy import column as named
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import InstrumentedAttribute


def among(column: InstrumentedAttribute[Any], values: Iterable[Any]) -> ColumnElement[bool]:
    """Return the condition that a column is one of the values; the way for whatever grows with the fleet."""
    return column == any_(literal(list(values), ARRAY(column.expression.type)))


def among_pairs(
    first: InstrumentedAttribute[Any], second: InstrumentedAttribute[Any], pairs: Mapping[Any, Any]
) -> ColumnElement[bool]:
    """Return the condition that two columns are one of the pairs: as two arrays, whatever their number."""
    kinds = first.expression.type, second.expression.type
    arrays = (literal(list(each), ARRAY(kind)) for each, kind in zip((pairs, pairs.values()), kinds, strict=True))
    asked = func.unnest(*arrays).table_valued(named("first", kinds[0]), named("second", kinds[1])).render_derived()
    return tuple_(first, second).in_(select(asked.c.first, asked.c.second))
