"""Command lines whose errors are sentences in the house form."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from overlap_recompute.plan.errors import ConfigError

PROGRAM = "overlap-recompute"


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `ConfigError` where argparse would end the program."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a word that it cannot place."""
        raise ConfigError(f"a command line that cannot be read ({message})", "what --help shows", f"see {self.prog} -h")


def new_parser(prog: str, description: str, epilog: str = "") -> Parser:
    """A parser that keeps the line breaks of its texts and takes no abbreviations."""
    return Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


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
        raise ConfigError(f"{flag} {word}", f"one of {', '.join(words)}", f"correct {flag}")
    return word
