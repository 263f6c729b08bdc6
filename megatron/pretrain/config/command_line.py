"""From the command line to a configuration."""

import difflib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from megatron.pretrain.config.always_on import ALIASES, ALWAYS_ON
from megatron.pretrain.config.flags import Flag, all_flags, values_of
from megatron.pretrain.config.help_text import help_text
from megatron.pretrain.config.model_presets import PRESET_FLAG, preset_note, preset_values
from megatron.pretrain.config.pretrain_config import GROUPS, PretrainConfig
from megatron.pretrain.config.refused_flags import find_refusal, find_refused_value
from megatron.pretrain.config.resolve import resolve
from megatron.pretrain.config.world import world_from_environment
from overlap_recompute.plan.errors import ConfigError

HELP = ("-h", "--help")
SEE = "see --help and docs/flags.md"


def parse_command_line(argv: Sequence[str], environ: Mapping[str, str]) -> PretrainConfig:
    """The configuration that the words of the command line and the launcher's environment describe.

    Values that follow from others are filled in and explained in `PretrainConfig.notes`; contradictions are left to
    `validate`. Flags are never abbreviated; of a flag that is given twice the last one counts. --model-preset becomes
    the flags that it stands for, of which those given by the user count. --help prints the help and ends the program
    with status 0.

    Args:
        argv: the words after the program's name.
        environ: environment variables; only the launcher's are read.

    Raises:
        ConfigError: an unknown, refused, incomplete or malformed flag, or a malformed environment.
    """
    if any(word in HELP for word in argv):
        sys.stdout.write(help_text())
        sys.stdout.flush()
        raise SystemExit(os.EX_OK)
    flags = {flag.name: flag for _, options in GROUPS for flag in all_flags(options)}
    given: dict[str, Any] = {}
    notes: list[str] = []
    for name, words in _split(argv):
        always_on = _always_on_note(name, words)
        if always_on:
            notes.append(always_on)
            continue
        for full_name, full_words in _expand(name, words):
            value = _value(_known(full_name, flags), full_words)
            if full_name in given and given[full_name] != value:
                notes.append(f"{full_name} is given more than once; the last one counts")
            given[full_name] = value
    notes += _fill_from_preset(given, flags)
    _check_required(given, flags)
    groups: dict[str, Any] = {
        name: options(**{flag.field_name: given[flag.name] for flag in all_flags(options) if flag.name in given})
        for name, options in GROUPS
    }
    config = resolve(PretrainConfig(world=world_from_environment(environ), **groups))
    return replace(config, notes=(*notes, *config.notes))


def _split(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Each flag with the words up to the next; "--flag=word" is one word."""
    name: str | None = None
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            if name is not None:
                yield name, words
            name, equals, value = word.partition("=")
            words = [value] if equals else []
        elif name is None:
            raise ConfigError(f"the word {word!r} before any flag", "only flags and their values", SEE)
        else:
            words.append(word)
    if name is not None:
        yield name, words


def _expand(name: str, words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The flag itself, or what it is another spelling of."""
    spelled = ALIASES.get(name)
    if spelled is None:
        yield name, words
    elif words:
        raise ConfigError(f"{name} {' '.join(words)}", f"{name} without a value", "remove the value")
    else:
        yield from _split(spelled)


def _always_on_note(name: str, words: list[str]) -> str | None:
    entry = next((entry for entry in ALWAYS_ON if entry.flag == name), None)
    if entry is None:
        return None
    expected = [] if entry.value is None else [entry.value]
    if words != expected:
        full = " ".join([name, *expected])
        raise ConfigError(f"{name} {' '.join(words)}".strip(), full, f"write {full} or remove it: {entry.note}")
    return f"{name} has no effect of its own: {entry.note}"


def _known(name: str, flags: Mapping[str, Flag]) -> Flag:
    if name in flags:
        return flags[name]
    refusal = find_refusal(name)
    if refusal:
        raise ConfigError(
            f"{name}, a flag of Megatron-LM that is refused because {refusal.reason}",
            "flags of docs/flags.md",
            refusal.instead,
        )
    spellings = [*flags, *ALIASES, *(entry.flag for entry in ALWAYS_ON)]
    nearest = difflib.get_close_matches(name.replace("_", "-").lower(), spellings, n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}? Otherwise {SEE}" if nearest else SEE
    raise ConfigError(f"the unknown flag {name}", "a flag of this program", hint)


def _value(flag: Flag, words: list[str]) -> Any:
    if flag.is_switch:
        if words:
            raise ConfigError(f"{flag.name} {' '.join(words)}", f"{flag.name} without a value", "remove the value")
        return not flag.default
    if not words or (len(words) > 1 and not flag.is_tuple):
        count = "at least one value" if flag.is_tuple else "one value"
        found = " ".join([flag.name, *words]) if words else f"{flag.name} without a value"
        raise ConfigError(found, f"{count} after {flag.name}", f"correct {flag.name}")
    for word in words:
        refused = find_refused_value(flag.name, word)
        if refused:
            raise ConfigError(
                f"{flag.name} {word}, which is refused because {refused.reason}",
                f"{flag.name} with {flag.describe_values()}",
                refused.instead,
            )
    return values_of(flag, words)


def _fill_from_preset(given: dict[str, Any], flags: Mapping[str, Flag]) -> list[str]:
    """Replace --model-preset by the flags that it stands for, those that are given left alone; returns notes."""
    name = given.pop(PRESET_FLAG, None)
    if name is None:
        return []
    spelled = {flag.field_name: flag.name for flag in flags.values()}
    values = {spelled[field]: value for field, value in preset_values(name).items()}
    note = preset_note(name, values, given.keys())
    for flag, value in values.items():
        given.setdefault(flag, value)
    return [note]


def _check_required(given: Mapping[str, Any], flags: Mapping[str, Flag]) -> None:
    missing = [name for name, flag in flags.items() if flag.is_required and name not in given]
    if missing:
        raise ConfigError(
            f"no {', no '.join(missing)}",
            "a value for each of them",
            f"add them, or {PRESET_FLAG} for the shape of a well-known model; {SEE}",
        )
