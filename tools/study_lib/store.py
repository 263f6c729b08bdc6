"""The study's rows in a file: one list of column names, one list of values for each row."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tools.study_lib.matrix import Row

SCHEMA = "study/2"


def as_data(rows: Sequence[Row], facts: Mapping[str, object]) -> dict[str, Any]:
    """Plain values."""
    columns = [field.name for field in dataclasses.fields(Row)]
    values = [[getattr(row, name) for name in columns] for row in rows]
    return {"schema": SCHEMA, "facts": dict(facts), "columns": columns, "rows": values}


def rows_of(data: Mapping[str, Any]) -> list[Row]:
    """The rows of `as_data`."""
    return [Row(**dict(zip(data["columns"], values, strict=True))) for values in data["rows"]]
