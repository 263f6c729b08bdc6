"""Peak memory of a process over one step, as JSON: overlap_peak.py POLICY. Started by test_overlap.py."""

import json
import pathlib
import re
import sys

from tests.distributed.overlap_support import CPU, batches, build, config_of, groups

from megatron.overlap.session import OverlapSession  # isort: skip - after the platform
from megatron.pretrain.training.overlap import open_overlap  # isort: skip
from megatron.pretrain.training.step import TrainStep  # isort: skip

MODEL = (
    "--num-layers 4 --hidden-size 128 --num-attention-heads 4 --seq-length 512 --max-position-embeddings 512 "
    "--attention-backend unfused --attention-dropout 0 --hidden-dropout 0 --global-batch-size 2 "
    "--overlap-recompute --overlap-recompute-policy"
)


def status_bytes(name: str) -> int:
    """A size of this process, as the kernel counts it: VmRSS now, VmHWM at its peak."""
    found = re.search(rf"^{name}:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def main(policy: str) -> None:
    flags = f"{MODEL} {policy}"
    with groups(flags):
        config = config_of(flags)
        state = build(config)
        with open_overlap(config, state.model, CPU) as session:
            assert isinstance(session, OverlapSession)
            step = TrainStep(config, overlap=session)
            iterators = [batches(config)]
            step(state, iterators)  # the optimizer's state is there from now on
            session.figures.take()
            before_bytes = status_bytes("VmRSS")
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            step(state, iterators)
            peak_bytes = status_bytes("VmHWM") - before_bytes
            dropped_bytes = session.figures.take()["overlap/dropped_bytes_per_microbatch"]
    print(json.dumps({"peak_bytes": peak_bytes, "dropped_bytes": dropped_bytes}))


if __name__ == "__main__":
    main(sys.argv[1])
