"""Where a profile comes from on a command line: a file that was measured, or a model by name on hardware by name."""

import argparse
from pathlib import Path

from overlap_recompute.cli.parser import whole_number
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.profile import Profile
from overlap_recompute.plan.validation import read_profile
from overlap_recompute.planner import make_plan
from overlap_recompute.simulator.analytic_options import profile_from_options
from overlap_recompute.simulator.hardware import Hardware
from overlap_recompute.simulator.hardware_file import hardware_from

BYTES_PER_GIB = 1 << 30
_ENDLESS_BYTES = 1 << 60
DEVICE_SHARE = 0.94
"""Of a device's memory that a plan uses when nobody says otherwise: the rest is for what the model does not count."""
SIZES = {
    "--tensor-parallel": "ranks that share a layer",
    "--pipeline-parallel": "stages",
    "--data-parallel": "copies of the model",
    "--expert-parallel": "ranks that share the experts of a mixture",
    "--chunks": "model chunks of a stage (virtual pipeline)",
    "--micro-batch": "sequences of a microbatch",
    "--sequence": "tokens of a sequence (the preset's)",
    "--microbatches": "of an iteration, for each data-parallel rank",
}


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that name a profile."""
    parser.add_argument("profile", type=Path, nargs="?", help="a profile file; or give --model and --hardware")
    parser.add_argument("--model", metavar="NAME", help="a model preset such as gpt-13b (docs/presets.md)")
    parser.add_argument("--hardware", metavar="NAME", help="such as a100-80gb-pcie/100gbit-node, or a .yaml file")
    for flag, text in SIZES.items():
        parser.add_argument(flag, metavar="N", help=text)
    parser.add_argument("--sequence-parallel", action="store_true", help="as Megatron's flag of this name")
    parser.add_argument("--attention", default="flash", help="flash (default) or unfused")


def profile_of(options: argparse.Namespace, command: str = "") -> Profile:
    """The profile that the flags name.

    Raises:
        UserError: none or two are named, the file cannot be used, or the names are not known.
    """
    named = [flag for flag in ("--model", "--hardware", *SIZES) if value_of(options, flag) is not None]
    if options.profile is not None:
        allowed = [flag for flag in named if flag != "--microbatches"]
        if allowed:
            raise ConfigError(f"a profile file and {allowed[0]}", "one of the two", f"leave out {allowed[0]}")
        return read_profile(options.profile)
    missing = [flag for flag in ("--model", "--hardware") if value_of(options, flag) is None]
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
        attention=options.attention,
        command=command,
        **sizes,  # type: ignore[arg-type]
    )


def hardware_of(options: argparse.Namespace) -> Hardware | None:
    """The hardware that the flags name; None for a profile file."""
    return None if options.hardware is None else hardware_from(options.hardware)


def add_budget_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that say how much memory a rank may use."""
    parser.add_argument(
        "--memory-gib", metavar="X", help="memory of one rank (most of the device's, where it is known)"
    )
    parser.add_argument(
        "--memory-share", metavar="X", help="instead: this share of the way from full recompute's memory to none's"
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
        return int(hardware.memory_bytes * DEVICE_SHARE)
    return gib_in_bytes("--memory-gib", options.memory_gib)


def _shared_bytes(text: str, profile: Profile) -> int:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigError(f"--memory-share {text}", "a number from 0 (full recompute) to 1 (none)", "correct it")
    none_bytes, full_bytes = (
        max(stage.predicted.memory.total_bytes for stage in make_plan(profile, name, _ENDLESS_BYTES).stages)
        for name in ("none", "full")
    )
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
    if not 0 < gib < float("inf"):
        raise ConfigError(f"{flag} {text}", "a size in GiB above 0", f"correct {flag}")
    return int(gib * BYTES_PER_GIB)


def value_of(options: argparse.Namespace, flag: str) -> object:
    """The value of a flag; None if it was not given."""
    return getattr(options, flag.removeprefix("--").replace("-", "_"))
