"""Command lines whose errors are sentences in the house form."""

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import NoReturn

from overlap_recompute.plan.errors import ConfigError

PROGRAM = "overlap-recompute"


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `ConfigError` where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a word that it cannot place."""
        flags = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        near = near_miss(flags[0], self._option_string_actions) if "unrecognized" in message and flags else ""
        found = f"a command line that cannot be read ({message})"
        raise ConfigError(found, "what --help shows", near or f"see {self.prog} -h")


def new_parser(prog: str, description: str, epilog: str = "") -> Parser:
    """A parser that keeps the line breaks of its texts and takes no abbreviations."""
    return Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def near_miss(word: str, words: Iterable[str]) -> str:
    """What to do about a word that is nearly one of `words`; empty if it is not."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f"write {near[0]} if that was meant" if near else ""


def value_of(options: argparse.Namespace, flag: str) -> object:
    """The value of a flag; None if it was not given."""
    return getattr(options, flag.removeprefix("--").replace("-", "_"))


def refuse_idle(options: argparse.Namespace, flags: Iterable[str], where: str, expected: str) -> None:
    """Refuse flags that would do nothing.

    Args:
        options: what was given; None and False are nothing.
        flags: to look at.
        where: they do nothing, behind the flag's name ("with a plan").
        expected: what would be right.

    Raises:
        ConfigError: one of them is given.
    """
    for flag in flags:
        if value_of(options, flag) not in (None, False):
            raise ConfigError(f"{flag} {where}", expected, f"leave out {flag}")


def whole_number(flag: str, text: str, least: int, most: int | None = None) -> int:
    """The number in `text`.

    Raises:
        ConfigError: it is no whole number of at least `least`, or it is above `most`.
    """
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"{least} to {most}"
        raise ConfigError(f"{flag} {text}", f"a whole number of {bounds}", f"correct {flag}")
    return number


def one_of(flag: str, word: str, words: Sequence[str]) -> str:
    """`word` if it is one of `words`.

    Raises:
        ConfigError: it is not.
    """
    if word not in words:
        raise ConfigError(f"{flag} {word}", f"one of {', '.join(words)}", near_miss(word, words) or f"correct {flag}")
    return word
