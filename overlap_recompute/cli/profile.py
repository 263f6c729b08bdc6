"""`overlap-recompute profile`: measure a profile with a short run, or show one."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from overlap_recompute.cli.commands import Command
from overlap_recompute.cli.outputs import check_outputs
from overlap_recompute.cli.parser import whole_number
from overlap_recompute.cli.profile_texts import profile_text
from overlap_recompute.plan.codec import to_text
from overlap_recompute.plan.errors import ConfigError, UserError
from overlap_recompute.plan.validation import read_profile

DESCRIPTION = """Measure what the units and waits of a training run are like, and write it to a profile.

Starts the trainer for a few iterations, on this machine, with the command line behind --, and saves nothing. A run of
several machines measures itself: add --overlap-recompute-profile FILE to its own command line."""
EPILOG = """examples:
  overlap-recompute profile --output profile.json -- --num-layers 4 --hidden-size 512 ... --mock-data
  overlap-recompute profile --nproc 2 -- ... --tensor-model-parallel-size 2
  overlap-recompute profile --show profile.json
"""
TRAINER = Path(__file__).resolve().parents[2] / "pretrain_gpt.py"
WARM_UP, ITERATIONS = "2", "5"
MOST_PROCESSES = 1024
_OURS = {
    "--overlap-recompute-profile": "it is --output here",
    "--train-iters": "it follows from --warmup and --iterations",
    "--train-samples": "the run ends when the profile is there",
    "--save": "a run that is measured saves nothing",
    "--load": "weights do not matter, and a run that resumes counts on",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--output", type=Path, default=Path("profile.json"), help="file to write (profile.json)")
    parser.add_argument("--nproc", default="1", metavar="N", help="ranks on this machine (1)")
    parser.add_argument(
        "--warmup", default=WARM_UP, metavar="N", help=f"iterations before the measured ones ({WARM_UP})"
    )
    parser.add_argument("--iterations", default=ITERATIONS, metavar="N", help=f"measured iterations ({ITERATIONS})")
    parser.add_argument("--show", type=Path, metavar="FILE", help="show this profile; start no run")
    parser.add_argument("--json", action="store_true", help="write the profile as JSON, not as text")
    parser.add_argument("words", nargs="*", metavar="-- FLAGS", help="flags of pretrain_gpt.py")


def run(options: argparse.Namespace, out: TextIO) -> int:
    """Measure unless --show is given, then show."""
    if options.show is not None:
        if options.words:
            raise ConfigError("--show with flags of a run", "one of the two", "leave out --show to measure")
    else:
        measure(options)
    profile = read_profile(options.show or options.output)
    out.write(to_text(profile) if options.json else profile_text(profile))
    return 0


def measure(options: argparse.Namespace) -> None:
    """Run the trainer; its log goes to standard error.

    Raises:
        ConfigError: flags that do not go with a profile.
        UserError: the run failed.
    """
    command = command_of(
        options.words,
        output=options.output,
        ranks=whole_number("--nproc", options.nproc, 1),
        warm_up=whole_number("--warmup", options.warmup, 1),
        iterations=whole_number("--iterations", options.iterations, 1),
    )
    check_outputs({"--output": options.output})
    if not TRAINER.is_file():
        raise UserError(
            f"no trainer at {TRAINER}",
            "pretrain_gpt.py beside the package",
            "use a clone that pip install -e installed",
        )
    sys.stderr.write(f"runs {options.nproc} rank(s): {shlex.join(command)}\n")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise UserError(
            f"a run that ended with exit status {done.returncode} before its profile was there",
            "a run that trains",
            "see its last words above, and try the same flags with pretrain_gpt.py",
        )


def command_of(words: Sequence[str], *, output: Path, ranks: int, warm_up: int, iterations: int) -> list[str]:
    """The command line of the run.

    Args:
        words: flags of pretrain_gpt.py.
        output: the profile's file.
        ranks: processes on this machine.
        warm_up: iterations before the measured ones.
        iterations: iterations that are measured.

    Raises:
        ConfigError: no flags, or one that this command sets itself.
    """
    if not words:
        raise ConfigError("no flags of a run", "those of pretrain_gpt.py behind --", "see the examples of --help")
    for word in words:
        reason = _OURS.get(word.partition("=")[0])
        if reason is not None:
            raise ConfigError(f"{word} among the flags of the run", f"a command line without it: {reason}", "remove it")
    if ranks > MOST_PROCESSES:
        raise ConfigError(f"--nproc {ranks}", f"at most {MOST_PROCESSES} on one machine", "correct --nproc")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    return [
        sys.executable, *torchrun, str(TRAINER), *words,
        "--train-iters", str(warm_up + iterations), "--eval-iters", "0", "--log-interval", "1",
        "--overlap-recompute-profile", str(output),
        "--overlap-recompute-profile-warmup", str(warm_up),
        "--overlap-recompute-profile-iterations", str(iterations),
    ]  # fmt: skip


COMMAND = Command(description=DESCRIPTION, epilog=EPILOG, add_arguments=add_arguments, run=run)
