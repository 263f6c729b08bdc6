"""Entry point of `overlap-recompute` and of `python -m overlap_recompute`."""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from overlap_recompute import __version__
from overlap_recompute.cli.commands import COMMANDS, Command, Entry
from overlap_recompute.cli.parser import PROGRAM, new_parser
from overlap_recompute.plan.errors import ConfigError, DataError, UserError

DONE, USER_ERROR, INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the words after the program's name; those of this process by default.

    Returns:
        Exit status: 0 done; 1 the subcommand's answer is no; 2 a fault that the user can mend, one message on standard
        error; 130 interrupted.
    """
    try:
        status = _dispatch(sys.argv[1:] if argv is None else argv, sys.stdout)
        sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough (`| head`)
        _drop_output()
        return DONE
    except OSError as error:
        if error.filename is not None:  # of a file, not of what is printed
            raise
        _drop_output()
        found = f"an output that cannot be written ({error.strerror or error})"
        fault = DataError(found, "room for it", "free some space, or send it elsewhere")
        sys.stderr.write(f"{PROGRAM}: {fault}\n")
        return USER_ERROR
    return status


def _drop_output() -> None:
    """Let what is still to be printed vanish: Python would complain once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: Sequence[str], out: TextIO) -> int:
    first, rest = (argv[0], argv[1:]) if argv else ("--help", ())
    if first in ("-h", "--help"):
        out.write(_overview())
        return DONE if argv else USER_ERROR
    if first == "--version":
        out.write(f"{PROGRAM} {__version__}\n")
        return DONE
    entry = _find(first)
    command: Command = importlib.import_module(entry.module).COMMAND
    parser = new_parser(f"{PROGRAM} {entry.name}", command.description, command.epilog)
    command.add_arguments(parser)
    try:
        options = parser.parse_args(rest)
    except SystemExit as end:  # --help has been printed
        return int(end.code or DONE)
    return command.run(options, out)


def _find(name: str) -> Entry:
    names = [entry.name for entry in COMMANDS]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"write {near[0]!r} if that was meant" if near else f"see {PROGRAM} --help"
        raise ConfigError(f"the unknown subcommand {name!r}", f"one of {', '.join(names)}", hint)
    return COMMANDS[names.index(name)]


def _overview() -> str:
    width = max(len(entry.name) for entry in COMMANDS)
    lines = [f"  {entry.name.ljust(width)}  {entry.summary}" for entry in COMMANDS]
    return "\n".join(
        [
            f"usage: {PROGRAM} SUBCOMMAND [flags]    ({PROGRAM} SUBCOMMAND --help teaches its flags)",
            "",
            "Overlapped activation recomputation: dropped activations are recomputed while communication is in flight.",
            "",
            *lines,
            "",
            "  --version  print the version and end",
            "",
        ]
    )
