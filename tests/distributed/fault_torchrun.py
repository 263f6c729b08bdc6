"""Two ranks under torchrun's agent, without Megatron-Core. Usage: torchrun ... fault_torchrun.py kill|wait"""

import os
import signal
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import torch

from megatron.pretrain.config import TrainingOptions, World
from megatron.pretrain.distributed.failure import leave, run_guarded
from megatron.pretrain.distributed.rendezvous import meet
from megatron.pretrain.distributed.settle import settle
from megatron.pretrain.training.stop import StopConditions

SAVE_S = 3.0


def main() -> int:
    env = SimpleNamespace(**{name.lower(): value for name, value in os.environ.items()})
    world = World(
        rank=int(env.rank),
        world_size=int(env.world_size),
        local_rank=int(env.local_rank),
        master_addr=env.master_addr,
        master_port=int(env.master_port),
    )
    assert os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True"
    meeting = meet(world, os.environ, timeout_s=60, liveness_timeout_s=30)
    try:
        torch.distributed.init_process_group(
            "gloo", store=meeting.store, rank=world.rank, world_size=world.world_size, timeout=timedelta(seconds=60)
        )
        options = TrainingOptions(micro_batch_size=1, exit_signal_handler=True)
        with StopConditions(options, host_group=torch.distributed.group.WORLD) as stop:
            iterate(world.rank, stop)
        meeting.watch.finish()
    except BaseException as error:
        raise settle(error, meeting.watch) from error
    torch.distributed.destroy_process_group()
    meeting.watch.close()
    return 0


def iterate(rank: int, stop: StopConditions) -> None:
    for iteration in range(1, 10**6):
        torch.distributed.all_reduce(torch.ones(1))
        time.sleep(0.02)
        if iteration == 5:
            os.write(1, b"running\n")
            if sys.argv[1] == "kill" and rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        if reason := stop.check(iteration):
            os.write(1, f"{reason.message}\n".encode())
            time.sleep(SAVE_S)
            os.write(1, b"saved\n")
            return


leave(run_guarded(main))
