"""What four ranks check about checkpoints, in one launch: `python -m tests.distributed.checkpoint_scenarios OUT TMPFS`.

Every scenario is a function; its outcome ("" or a traceback) goes to OUT/results-RANK.json. TMPFS is a small mounted
file system for `full_disk`, or "-".
"""

import gc
import json
import pathlib
import sys
import time
import traceback
from collections.abc import Callable

import torch.distributed as dist

from tests.distributed import checkpoint_faults, checkpoint_resume

SCENARIOS: dict[str, Callable[[pathlib.Path, str], None]] = {
    scenario.__name__: scenario
    for scenario in (
        checkpoint_resume.resume_plain,
        checkpoint_resume.resume_distributed_optimizer,
        checkpoint_resume.resume_bf16_and_sgd,
        checkpoint_resume.reshard_plain,
        checkpoint_resume.reshard_distributed_optimizer,
        checkpoint_resume.reshard_padded_vocabulary,
        checkpoint_resume.mixture_of_experts,
        checkpoint_resume.background_save,
        checkpoint_faults.disk_errors,
        checkpoint_faults.full_disk,
        checkpoint_faults.damaged,
        checkpoint_faults.other_runs,
        checkpoint_faults.flags,
        checkpoint_faults.choice,
    )
}


def main(out: pathlib.Path, tmpfs: str) -> None:
    gc.freeze()  # the stock distributed optimizer collects garbage in every save and load; what was imported stays
    dist.init_process_group("gloo")
    results = {}
    for name, scenario in SCENARIOS.items():
        if name == "full_disk" and tmpfs == "-":
            continue
        started_s = time.monotonic()
        try:
            scenario(out / name, tmpfs)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        (out / f"results-{dist.get_rank()}.json").write_text(json.dumps(results))
        print(f"{name} took {time.monotonic() - started_s:.2f} s", results[name], flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
