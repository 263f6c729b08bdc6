"""Records as lines of a metrics file and back.

A line is one JSON object with "kind", "time_s" (seconds since the log was opened) and the record's fields under their
own names. Strict JSON has no NaN, so a float that is not finite is written as "nan", "inf" or "-inf"; null means
"not measured". The first line is of kind "run" and carries the schema's version.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

from megatron.pretrain.logs.records import EvaluationRecord, EventRecord, IterationRecord, Record, RunFacts

SCHEMA = "pretrain-metrics/1"
"""Name and version of the format; the number changes when an old reader would misread a new file."""

KINDS: Mapping[str, type] = {
    "run": RunFacts,
    "iteration": IterationRecord,
    "evaluation": EvaluationRecord,
    "event": EventRecord,
}
_KIND_OF = {record_type: kind for kind, record_type in KINDS.items()}
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class LineError(Exception):
    """A line that is not a record; the message says what is wrong with it."""


def to_json_value(value: object) -> object:
    """Rebuild a value of dataclasses, mappings, sequences, paths and numbers from what strict JSON has.

    Raises:
        TypeError: the value, or something in it, is none of these.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json_value(item) for item in value]
    if is_dataclass(value):
        return {field.name: to_json_value(getattr(value, field.name)) for field in fields(value)}
    raise TypeError(f"cannot write a {type(value).__name__} to a metrics file")


def encode(record: Record | RunFacts, time_s: float) -> bytes:
    """Return the record's line, with its line end."""
    head: dict[str, object] = {"kind": _KIND_OF[type(record)], "time_s": round(time_s, 3)}
    if isinstance(record, RunFacts):
        head = {"kind": "run", "schema": SCHEMA, "time_s": round(time_s, 3)}
    body = to_json_value(record)
    assert isinstance(body, dict)
    return json.dumps({**head, **body}, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def parse(line: bytes) -> Mapping[str, Any]:
    """Return the object on a line.

    Raises:
        LineError: it is not one JSON object with a "kind".
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise LineError(f"not JSON ({error})") from None
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise LineError('not a JSON object with a "kind"')
    return value


def decode(value: Mapping[str, Any]) -> Record | RunFacts | None:
    """Return the record that a parsed line holds, or None for a kind this version does not know.

    Fields that this version does not know are left out, so files of a later minor version can be read.

    Raises:
        LineError: another schema, a missing field or a value of the wrong type.
    """
    if value["kind"] == "run" and value.get("schema") != SCHEMA:
        raise LineError(f"schema {value.get('schema')!r} instead of {SCHEMA!r}")
    record_type = KINDS.get(value["kind"])
    if record_type is None:
        return None
    return record_type(**{field.name: _field(field, value) for field in fields(record_type) if _given(field, value)})


def _given(field: "Field[Any]", value: Mapping[str, Any]) -> bool:
    """Whether the line has the field; a field with a default may be absent."""
    optional = field.default is not MISSING or field.default_factory is not MISSING
    if field.name not in value and not optional:
        raise LineError(f'no "{field.name}"')
    return field.name in value


def _field(field: "Field[Any]", value: Mapping[str, Any]) -> Any:
    try:
        return _READERS[field.type](value[field.name])
    except (TypeError, ValueError):
        raise LineError(f'"{field.name}" is {value[field.name]!r}') from None


def _number(value: object) -> float:
    if isinstance(value, str):
        return _NOT_FINITE[value] if value in _NOT_FINITE else float("not a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def _exactly(expected: type) -> Callable[[Any], Any]:
    def read(value: object) -> object:
        if type(value) is not expected:
            raise TypeError
        return value

    return read


def _or_none(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else read(value)


def _mapping(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {key: read(item) for key, item in _exactly(dict)(value).items()}


_integer, _text = _exactly(int), _exactly(str)
# How to read a field, by its annotation in `records`.
_READERS: Mapping[object, Callable[[Any], Any]] = {
    int: _integer,
    float: _number,
    str: _text,
    int | None: _or_none(_integer),
    float | None: _or_none(_number),
    tuple[str, ...]: lambda value: tuple(_text(item) for item in _exactly(list)(value)),
    Mapping[str, str]: _mapping(_text),
    Mapping[str, int]: _mapping(_integer),
    Mapping[str, float]: _mapping(_number),
    Mapping[str, tuple[float, ...]]: _mapping(lambda value: tuple(_number(item) for item in _exactly(list)(value))),
    Mapping[str, object]: _mapping(lambda value: value),
    Mapping[str, str | float]: _mapping(lambda value: value if isinstance(value, str) else _number(value)),
}
