"""Data classes to JSON and back, strictly: a file that is not exactly what was expected is refused, with the place.

Supported fields: int, float, str, bool, None, tuples, unions with None, and data classes of these. Floats and integers
must be finite, not negative and below 2^62: every number of a profile or plan is a count, a time or a size.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from overlap_recompute.plan.errors import UserError
from overlap_recompute.plan.files import unwritable, write_text_file

Record = TypeVar("Record")
_MAX_FILE_BYTES = 1 << 28
_MOST = 1 << 62
"""Of any number: more bytes, microseconds or layers than there are."""


class FileError(UserError):
    """A profile or plan that cannot be read."""


def to_text(record: Any) -> str:
    """The JSON text of a data class instance."""
    return json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n"


def write_record(path: Path, record: Any) -> None:
    """Write the JSON text of a data class instance; the file appears whole or not at all.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        write_text_file(path, to_text(record))
    except OSError as error:
        raise FileError(*unwritable(path, error)) from error


def read_record(path: Path, cls: type[Record], version: int) -> Record:
    """Read a data class with a field `version` from a JSON file.

    Args:
        path: the file.
        cls: the data class.
        version: the only version that is understood.

    Raises:
        FileError: the file is missing, no JSON, of another version, or differs from what `cls` describes.
    """
    return from_data(read_data(path, cls.__name__.lower()), cls, version, str(path))


def read_data(path: Path, name: str) -> Any:
    """The parsed JSON of a file, which is read once: it may be a pipe.

    Args:
        path: the file.
        name: what it should hold, for messages.

    Raises:
        FileError: the file is missing, too large, or no JSON.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise FileError(
            f"{path}, which cannot be read ({error.strerror})", f"a {name} file", "check the path"
        ) from error
    if len(content) > _MAX_FILE_BYTES:
        raise FileError(
            f"{path} of more than {_MAX_FILE_BYTES} bytes", f"a {name} of at most as many", "check the path"
        )
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"{path}, which is no JSON ({error})", f"a {name} written by overlap-recompute", f"make the {name} again"
        ) from error


def from_data(data: Any, cls: type[Record], version: int, source: str) -> Record:
    """The data class that parsed JSON describes; see `read_record`."""
    name = cls.__name__.lower()
    if not isinstance(data, dict) or "version" not in data:
        raise FileError(f"{source} without a field version", f"a {name} of version {version}", f"make the {name} again")
    if data["version"] != version:
        raise FileError(
            f"{source} of version {data['version']!r}",
            f"a {name} of version {version}, the only one that this release reads",
            f"make the {name} again with this release",
        )
    record: Record = _read(data, cls, source, name)
    return record


def _read(value: Any, kind: Any, source: str, place: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [choice for choice in typing.get_args(kind) if choice is not type(None)]
        return None if value is None else _read(value, inner[0], source, place)
    if origin is tuple:
        return _read_tuple(value, typing.get_args(kind), source, place)
    if dataclasses.is_dataclass(kind):
        return _read_fields(value, kind, source, place)
    if kind is float and type(value) in (int, float):
        return float(_checked(value, source, place))
    if kind is int and type(value) is int:
        return _checked(value, source, place)
    if kind in (str, bool) and type(value) is kind:
        return value
    raise _wrong(source, place, value, kind.__name__)


def _checked(value: float, source: str, place: str) -> float:
    # The comparison comes first: whole numbers of JSON have no bounds, and not every one of them is a float.
    if not 0 <= value <= _MOST:
        raise _wrong(source, place, value, "a number from 0 to 2^62")
    return value


def _read_tuple(value: Any, kinds: tuple[Any, ...], source: str, place: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(source, place, value, "a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_read(item, kinds[0], source, f"{place}[{index}]") for index, item in enumerate(value))
    if len(value) != len(kinds):
        raise _wrong(source, place, value, f"a list of {len(kinds)}")
    pairs = enumerate(zip(value, kinds, strict=True))
    return tuple(_read(item, kind, source, f"{place}[{index}]") for index, (item, kind) in pairs)


def _read_fields(value: Any, kind: Any, source: str, place: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(source, place, value, "an object")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise _wrong(source, f"{place}.{name}", value[name], "no such field")
    given = {}
    for name, field in fields.items():
        if name in value:
            given[name] = _read(value[name], hints[name], source, f"{place}.{name}")
        elif field.default is dataclasses.MISSING:
            raise FileError(f"{source} without {place}.{name}", "that field", "make the file again")
    return kind(**given)


def _wrong(source: str, place: str, value: Any, expected: str) -> FileError:
    shown = repr(value)
    return FileError(
        f"{source}, whose {place} is {shown if len(shown) <= 60 else shown[:57] + '...'}",
        expected,
        "make the file again",
    )
