"""One pipeline stage of a large model on one GPU (or, at toy size, a CPU), the communication emulated.

    python tools/gpu_stage_bench.py --preset gpt-23b --tensor-parallel 8 --pipeline-parallel 2 --output runs/stage

What it measures, and what not: docs/gpu_stage_bench.md.
"""

import json
import logging
import pathlib
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from overlap_recompute.plan.errors import UserError  # noqa: E402
from tools.stage_bench_lib.options import Options, parse  # noqa: E402

USER_ERROR = 2


def measure(options: Options, words: Sequence[str]) -> None:
    """Run it and write what was found."""
    from tools.stage_bench_lib.link import rate_of, require_device  # imports torch

    require_device(options)
    from megatron.pretrain.platform import install_platform

    # before the first import of megatron.core
    device = install_platform("nccl" if options.device == "cuda" else "gloo")
    from overlap_recompute.plan.codec import write_record
    from tools.stage_bench_lib.bench import run_bench
    from tools.stage_bench_lib.page import page
    from tools.stage_bench_lib.record import label_of, record_of, words_of

    bench = run_bench(options, device, (words_of(words),), label_of(options, rate_of(options)))
    record = record_of(bench, device, words_of(words))
    text = page(record)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "stage.json").write_text(json.dumps(record, indent=2) + "\n")
        (options.output / "stage.md").write_text(text)
        write_record(options.output / "profile.json", bench.profile)
    sys.stdout.write(json.dumps(record, indent=2) + "\n" if options.json else text)


def main(words: Sequence[str]) -> int:
    """Parse, measure; a user's fault is one line on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        measure(parse(words), words)
    except UserError as error:
        sys.stderr.write(f"gpu_stage_bench.py: error: {error}\n")
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
