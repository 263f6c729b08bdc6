"""The command line of tools/gpu_stage_bench.py, and the flags of `pretrain_gpt.py` that follow from it."""

import argparse
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.presets import ModelPreset, preset_named

PACED_KERNEL, COPY_ENGINE = "paced-kernel", "copy-engine"
HEAD_CHANNELS = 64
MICROBATCHES_PER_STAGE = 4
EPILOG = """Words behind a bare -- are further flags of pretrain_gpt.py, for all that is built: -- --sequence-parallel.

examples:
  gpu_stage_bench.py --preset gpt-23b --tensor-parallel 8 --pipeline-parallel 2 --output runs/stage
  gpu_stage_bench.py --preset gpt-23b --device cpu --dtype fp32 --hidden-size 256 --sequence 128 --layers 2 \\
      --num-layers 4 --tensor-parallel 2 --vocabulary 2048 --alpha-us 3000
exit status: 0; 2 for a fault of the command line, or a stage that does not fit.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to build, over what link, and how often to run it. Fields are named after their flags."""

    preset: str
    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int
    stage: int
    layers: int | None
    micro_batch: int
    sequence: int | None
    microbatches: int | None
    alpha_us: float
    gbyte_per_s: float
    pipeline_alpha_us: float | None
    pipeline_gbyte_per_s: float | None
    link: str
    blocks: int
    iterations: int
    rounds: int
    device: str
    dtype: str
    memory_gib: float | None
    json: bool
    output: pathlib.Path | None
    hidden_size: int | None
    num_attention_heads: int | None
    num_layers: int | None
    vocabulary: int | None
    further: tuple[str, ...]

    @property
    def model(self) -> ModelPreset:
        """The preset, with what the toy overrides change.

        Raises:
            ConfigError: there is no such preset.
        """
        preset = preset_named(self.preset, flag="--preset")
        hidden = self.hidden_size or preset.hidden
        heads = preset.heads
        if self.num_attention_heads or self.hidden_size:
            heads = self.num_attention_heads or max(self.tensor_parallel, hidden // HEAD_CHANNELS)
        return dataclasses.replace(
            preset,
            layers=self.num_layers or preset.layers,
            hidden=hidden,
            heads=heads,
            groups=min(preset.groups, heads) if preset.groups != preset.heads else heads,
            ffn_hidden=preset.ffn_hidden * hidden // preset.hidden,
            vocabulary=self.vocabulary or preset.vocabulary,
            sequence=self.sequence or preset.sequence,
        )

    @property
    def composed_microbatches(self) -> int:
        """Of an iteration of the whole pipeline."""
        return self.microbatches or MICROBATCHES_PER_STAGE * self.pipeline_parallel

    @property
    def stage_layers(self) -> int:
        """Layers that are built."""
        return self.layers or self.model.layers // self.pipeline_parallel

    def trainer_flags(self, *, layers: int, stages: int) -> tuple[str, ...]:
        """Flags of `pretrain_gpt.py` for a model of so many layers on so many stages."""
        model = self.model
        words = {
            "--model-preset": self.preset,
            "--distributed-backend": "nccl" if self.device == "cuda" else "gloo",
            "--num-layers": layers,
            "--hidden-size": model.hidden,
            "--num-attention-heads": model.heads,
            "--ffn-hidden-size": model.ffn_hidden,
            "--seq-length": model.sequence,
            "--tensor-model-parallel-size": self.tensor_parallel,
            "--pipeline-model-parallel-size": stages,
            "--micro-batch-size": self.micro_batch,
            "--global-batch-size": self.micro_batch * self.data_parallel * self.composed_microbatches,
            "--vocab-size": model.vocabulary - 1,  # the end of a document is one token more
            "--train-iters": 1,
            "--lr": "1e-4",
        }
        preset = preset_named(self.preset, flag="--preset")
        if preset.groups != preset.heads:
            words["--num-query-groups"] = model.groups
        switches = ["--mock-data", *(["--bf16"] if self.dtype == "bf16" else [])]
        # The trainer wants it with experts.
        switches += ["--sequence-parallel"] if model.experts and self.tensor_parallel > 1 else []
        switches += ["--use-distributed-optimizer"] if self.data_parallel > 1 else []
        named = [word for flag, value in words.items() for word in (flag, str(value))]
        return (*named, *switches, *self.further)


def parse(words: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        ConfigError: values that contradict one another, or an unknown preset.
    """
    own, further = list(words), ()
    if "--" in own:
        place = own.index("--")
        own, further = own[:place], tuple(own[place + 1 :])
    options = Options(**vars(_parser().parse_args(own)), further=further)
    _check(options)
    return options


def _check(options: Options) -> None:
    model, stages = options.model, options.pipeline_parallel
    for flag, value in (
        ("--gbyte-per-s", options.gbyte_per_s),
        ("--pipeline-gbyte-per-s", options.pipeline_gbyte_per_s),
    ):
        if value is not None and value <= 0:
            raise ConfigError(f"{flag} {value:g}", "more than 0", "correct it")
    for flag, value in (("--alpha-us", options.alpha_us), ("--pipeline-alpha-us", options.pipeline_alpha_us)):
        if value is not None and value < 0:
            raise ConfigError(f"{flag} {value:g}", "0 or more", "correct it")
    if options.stage >= stages:
        raise ConfigError(f"--stage {options.stage}", f"0 to {stages - 1}", "correct it, or --pipeline-parallel")
    if model.layers % stages:
        raise ConfigError(
            f"--pipeline-parallel {stages} for the {model.layers} layers of {model.name}",
            "a number of stages that shares them out evenly",
            "choose another one, or another number of layers with --num-layers",
        )
    each = model.layers // stages
    if options.layers is not None and options.layers > each:
        raise ConfigError(f"--layers {options.layers}", f"at most {each}, those of a stage", "correct it")
    if model.heads % options.tensor_parallel:
        raise ConfigError(
            f"--tensor-parallel {options.tensor_parallel} for {model.heads} heads", "a divisor", "correct it"
        )


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    number.__name__ = "whole number"  # argparse names it when the text is none
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu_stage_bench.py",
        description="One pipeline stage of a model on one device, at the shapes of one tensor-parallel rank, over an "
        "emulated link; the pipeline of all stages is simulated from it. See docs/gpu_stage_bench.md.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    count = _at_least(1)
    add = parser.add_argument
    add("--preset", required=True, metavar="NAME", help="model preset, e.g. gpt-23b (docs/presets.md)")
    add("--tensor-parallel", type=count, default=8, metavar="N", help="ranks that share a layer (%(default)s)")
    add("--pipeline-parallel", type=count, default=1, metavar="N", help="pipeline stages (%(default)s)")
    add("--data-parallel", type=count, default=1, metavar="N", help="copies of the model (%(default)s)")
    add("--stage", type=_at_least(0), default=0, metavar="N", help="the stage that is built, from 0 (%(default)s)")
    add("--layers", type=count, metavar="N", help="build so many layers of the stage (all)")
    add("--micro-batch", type=count, default=1, metavar="N", help="sequences of a microbatch (%(default)s)")
    add("--sequence", type=count, metavar="N", help="tokens of a sequence (the preset's)")
    add("--microbatches", type=count, metavar="N", help="of the simulated iteration (4 for each stage)")
    add("--alpha-us", type=float, default=20.0, metavar="US", help="start-up time of a collective (%(default)s)")
    add("--gbyte-per-s", type=float, default=100.0, metavar="X", help="bus bandwidth of a rank (%(default)s)")
    add("--pipeline-alpha-us", type=float, metavar="US", help="of a message between stages (that of collectives)")
    add("--pipeline-gbyte-per-s", type=float, metavar="X", help="between stages (that of collectives)")
    add("--link", choices=(PACED_KERNEL, COPY_ENGINE), default=PACED_KERNEL, help="on CUDA; %(default)s unless given")
    add("--blocks", type=count, default=16, metavar="N", help="thread blocks of the paced kernel (%(default)s)")
    add("--iterations", type=count, default=10, metavar="N", help="counted steps of each arm in a round (%(default)s)")
    add("--rounds", type=count, default=2, metavar="N", help="turns of each arm (%(default)s)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="%(default)s unless given")
    add("--dtype", choices=("bf16", "fp32"), default="bf16", help="%(default)s unless given")
    add("--memory-gib", type=float, metavar="X", help="take the device for one of so much free memory")
    add("--json", action="store_true", help="write the record to standard output instead of the table")
    add("--output", type=pathlib.Path, metavar="DIR", help="write stage.json, stage.md and profile.json there")
    toy = parser.add_argument_group("toy overrides of the preset's shape")
    toy.add_argument("--hidden-size", type=count, metavar="N", help="width; the feed-forward block follows")
    toy.add_argument("--num-attention-heads", type=count, metavar="N", help=f"(a head for {HEAD_CHANNELS} channels)")
    toy.add_argument("--num-layers", type=count, metavar="N", help="layers of the whole model")
    toy.add_argument("--vocabulary", type=count, metavar="N", help="tokens")
    return parser
