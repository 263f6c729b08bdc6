"""Flags derived from option dataclasses: field name, annotation and default give name, type and choices.

`some_field: int` is --some-field N; a bool that starts False is the switch --some-field, one that starts True the
switch --no-some-field; Literal gives choices; a tuple takes one word or more; `| None` marks what may stay unset.
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union

from megatron.pretrain.config.ranges import Range
from overlap_recompute.plan.errors import ConfigError

KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One command-line flag, as its dataclass field describes it."""

    field_name: str
    """Name of the dataclass field."""

    name: str
    """Name on the command line, with dashes."""

    base: type
    """Type of one value: bool, int, float or str."""

    choices: tuple[Any, ...]
    """Legal values; empty when any will do."""

    range: Range | None
    """Legal range of a number."""

    is_optional: bool
    """Whether the field may be None."""

    is_tuple: bool
    """Whether the flag takes several words."""

    default: Any
    """Value when the flag is not given; MISSING when it must be given."""

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.base is bool

    @property
    def is_required(self) -> bool:
        """Whether the flag must be given."""
        return self.default is dataclasses.MISSING

    def describe_values(self) -> str:
        """Legal values in words, such as "a whole number, at least 1"."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        bounds = self.range.describe() if self.range else ""
        return ", ".join(part for part in (KINDS[self.base], bounds) if part)


def all_flags(options: type) -> tuple[Flag, ...]:
    """The flags of an option dataclass, in the order of its fields."""
    return tuple(_flag(field) for field in dataclasses.fields(options))


def values_of(flag: Flag, words: Sequence[str]) -> Any:
    """The typed value that `words`, at least one, spell for a flag that takes a value.

    Raises:
        ConfigError: a word is not of the flag's type, range or choices.
    """
    values = tuple(_value_of(flag, word) for word in words)
    return values if flag.is_tuple else values[0]


def words_of(flag: Flag, value: Any) -> tuple[str, ...]:
    """The command-line words that set `flag` to `value`; none when that is what it starts from."""
    if value is None or value == flag.default:
        return ()
    values = (() if flag.is_switch else value) if flag.is_tuple or flag.is_switch else (value,)
    return (flag.name, *map(str, values))


def check_value(flag: Flag, value: Any) -> None:
    """Check a typed value against the flag's type, choices and range.

    Raises:
        ConfigError: the value is not legal.
    """
    if value is None and flag.is_optional:
        return
    items = value if flag.is_tuple and isinstance(value, tuple) else (value,)
    for item in items:
        if not _is_legal(flag, item):
            raise _error(flag, item)


def _flag(field: dataclasses.Field) -> Flag:
    annotation, is_optional = _without_none(field.type)
    is_tuple = typing.get_origin(annotation) is tuple
    base, choices, number_range = _base(typing.get_args(annotation)[0] if is_tuple else annotation)
    prefix = "--no-" if base is bool and field.default is True else "--"
    return Flag(
        field_name=field.name,
        name=prefix + field.name.replace("_", "-"),
        base=base,
        choices=choices,
        range=number_range,
        is_optional=is_optional,
        is_tuple=is_tuple,
        default=field.default,
    )


def _without_none(annotation: Any) -> tuple[Any, bool]:
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return annotation, False
    kept = [part for part in typing.get_args(annotation) if part is not type(None)]
    assert len(kept) == 1, f"a flag has one type, or one type and None: {annotation}"
    return kept[0], True


def _base(annotation: Any) -> tuple[type, tuple[Any, ...], Range | None]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return type(arguments[0]), arguments, None
    if origin is Annotated:
        return arguments[0], (), arguments[1]
    assert annotation in (bool, str), f"a number needs a type of ranges.py: {annotation}"
    return annotation, (), None


def _value_of(flag: Flag, word: str) -> Any:
    try:
        value = flag.base(word)
    except ValueError:
        raise _error(flag, word) from None
    if not _is_legal(flag, value):
        raise _error(flag, word)
    return value


def _is_legal(flag: Flag, item: Any) -> bool:
    """A whole number will do for a float; an empty path is a shell variable that was not set."""
    kinds = (int, float) if flag.base is float else (flag.base,)
    right_type = isinstance(item, kinds) and isinstance(item, bool) == flag.is_switch
    return (
        right_type
        and (not flag.choices or item in flag.choices)
        and (flag.range is None or flag.range.contains(item))
        and not (item == "" and (flag.is_optional or flag.is_tuple))
    )


def _error(flag: Flag, found: Any) -> ConfigError:
    kind = "text that is not empty" if found == "" else flag.describe_values()
    return ConfigError(f"{flag.name} {found!r}", kind, f"correct {flag.name}")
