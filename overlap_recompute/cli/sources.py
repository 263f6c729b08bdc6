"""Where a profile comes from on a command line: a file that was measured, or a model by name on hardware by name."""

import argparse
import dataclasses
from pathlib import Path

from overlap_recompute.cli.parser import refuse_idle, value_of, whole_number
from overlap_recompute.cli.room import BYTES_PER_GIB, needed_bytes
from overlap_recompute.plan.device import DEVICE_SHARE, planned_bytes
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.profile import MOST_MICROBATCHES, Profile
from overlap_recompute.plan.validation import read_profile
from overlap_recompute.simulator.analytic_options import profile_from_options
from overlap_recompute.simulator.hardware import Hardware
from overlap_recompute.simulator.hardware_file import hardware_from

NAMES = ("--model", "--hardware")
CHOICES = ("--sequence-parallel", "--attention")
MOST_GIB = 1 << 20
"""A PiB for one rank."""
SIZES = {
    "--tensor-parallel": "ranks that share a layer (1)",
    "--pipeline-parallel": "stages (1)",
    "--data-parallel": "copies of the model (1)",
    "--expert-parallel": "ranks that share the experts of a mixture (1)",
    "--chunks": "model chunks of a stage, virtual pipeline (1)",
    "--micro-batch": "sequences of a microbatch (1)",
    "--sequence": "tokens of a sequence (the preset's)",
    "--microbatches": "of an iteration and data-parallel rank (4 a stage, 8 without a pipeline); of a profile too",
}


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that name a profile."""
    parser.add_argument("profile", type=Path, nargs="?", help="a profile file; or give --model and --hardware")
    group = parser.add_argument_group("a model on hardware, in place of a profile file (costs are then computed)")
    group.add_argument("--model", metavar="NAME", help="a model preset such as gpt-13b (docs/presets.md)")
    group.add_argument("--hardware", metavar="NAME", help="such as a100-80gb-pcie/100gbit-node, or a .yaml file")
    for flag, text in SIZES.items():
        group.add_argument(flag, metavar="N", help=text)
    group.add_argument("--sequence-parallel", action="store_true", help="as Megatron's flag of this name")
    group.add_argument("--attention", metavar="NAME", help="flash (default) or unfused")


def profile_of(options: argparse.Namespace, command: str = "") -> Profile:
    """The profile that the flags name.

    Raises:
        UserError: none or two are named, the file cannot be used, or the names are not known.
    """
    if options.profile is not None:
        computed = [flag for flag in (*NAMES, *SIZES, *CHOICES) if flag != "--microbatches"]
        refuse_idle(options, computed, "and a profile file", "one of the two")
        profile = read_profile(options.profile)
        if options.microbatches is None:
            return profile
        layout = dataclasses.replace(profile.layout, microbatches=microbatches_of(options.microbatches))
        return dataclasses.replace(profile, layout=layout)
    missing = [flag for flag in NAMES if value_of(options, flag) is None]
    if missing:
        raise ConfigError(f"no profile file and no {missing[0]}", "one of them", "name a file, or a model and hardware")
    sizes = {
        flag.removeprefix("--").replace("-", "_"): whole_number(flag, str(value_of(options, flag)), 1)
        for flag in SIZES
        if value_of(options, flag) is not None
    }
    return profile_from_options(
        model=options.model,
        hardware=options.hardware,
        sequence_parallel=options.sequence_parallel,
        attention=options.attention or "flash",
        command=command,
        **sizes,  # type: ignore[arg-type]
    )


def profile_and_plan(options: argparse.Namespace, command: str = "") -> tuple[Profile, Path | None]:
    """The profile, and the plan's path if one is named behind it.

    With --model and --hardware the only file that is named is the plan.

    Raises:
        UserError: as `profile_of`.
    """
    if options.plan is not None or any(value_of(options, flag) is None for flag in NAMES):
        return profile_of(options, command), options.plan
    return profile_of(argparse.Namespace(**{**vars(options), "profile": None}), command), options.profile


def microbatches_of(text: str) -> int:
    """The value of `--microbatches`.

    Raises:
        ConfigError: it is no number of microbatches.
    """
    return whole_number("--microbatches", text, 1, MOST_MICROBATCHES)


def hardware_of(options: argparse.Namespace) -> Hardware | None:
    """The hardware that the flags name; None for a profile file."""
    return None if options.hardware is None else hardware_from(options.hardware)


def add_budget_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that say how much memory a rank may use."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--memory-gib", metavar="X", help=f"of one rank ({DEVICE_SHARE * 100:.0f} %% of the device, where it is known)"
    )
    group.add_argument(
        "--memory-share", metavar="X", help="instead: 0 is what full recompute needs, 1 what no recompute needs"
    )


def budget_of(options: argparse.Namespace, profile: Profile) -> int:
    """What a rank may use, in bytes; by default most of the device's memory, where the hardware is known.

    Raises:
        ConfigError: not given and not known, given twice, or not a size.
    """
    if options.memory_share is not None:
        if options.memory_gib is not None:
            raise ConfigError("--memory-gib and --memory-share", "one of the two", "leave one out")
        return _shared_bytes(options.memory_share, profile)
    if options.memory_gib is None:
        hardware = hardware_of(options)
        if hardware is None:
            raise ConfigError("no --memory-gib", "the memory of one rank", "add --memory-gib X, or --memory-share X")
        return planned_bytes(hardware.memory_bytes)
    return gib_in_bytes("--memory-gib", options.memory_gib)


def _shared_bytes(text: str, profile: Profile) -> int:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--memory-share {text}", "a number from 0 (full recompute) to 1 (none)", "correct it")
    none_bytes, full_bytes = needed_bytes(profile, "none"), needed_bytes(profile, "full")
    return int(full_bytes + (none_bytes - full_bytes) * share)


def gib_in_bytes(flag: str, text: str) -> int:
    """A size in GiB as bytes.

    Raises:
        ConfigError: it is no size above 0.
    """
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib <= MOST_GIB:
        raise ConfigError(f"{flag} {text}", f"a size in GiB above 0, at most {MOST_GIB}", f"correct {flag}")
    return int(gib * BYTES_PER_GIB)
