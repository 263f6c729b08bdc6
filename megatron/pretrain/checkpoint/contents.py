"""What goes into a checkpoint, and how what comes out of one is put back: the run's parts as sharded state dicts.

Keys are Megatron-LM's: `model` (or `model0`, `model1`, ... with virtual pipeline chunks), `optimizer`,
`opt_param_scheduler`; `rng_state` has one row per rank for every random stream.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module, MegatronModule

from megatron.pretrain.checkpoint.ranks import Ranks
from megatron.pretrain.checkpoint.record import JSON
from megatron.pretrain.training.state import TrainingState
from overlap_recompute.plan.errors import CheckpointError

OPTIMIZER, SCHEDULER, RANDOM = "optimizer", "opt_param_scheduler", "rng_state"

_CONTENT = "content_metadata"


def model_chunks(state: TrainingState) -> dict[str, MegatronModule]:
    """The bare models of this rank by their key in a checkpoint."""
    chunks = [_unwrap(chunk) for chunk in state.model]
    return {"model": chunks[0]} if len(chunks) == 1 else {f"model{i}": chunk for i, chunk in enumerate(chunks)}


def describe_optimizer(optimizer: MegatronOptimizer) -> dict[str, JSON]:
    """What must agree for an optimizer's state to be loadable at all."""
    return {
        "distributed": any(isinstance(part, DistributedOptimizer) for part in _parts(optimizer)),
        "expert_parallel_size": parallel_state.get_expert_model_parallel_world_size(),
    }


def collect(state: TrainingState, *, with_optimizer: bool, is_loading: bool) -> dict[str, Any]:
    """Build the sharded state dict of model, optimizer and scheduler, to save it or to be filled by a load.

    Collective for the distributed optimizer, which gathers its shards over data-parallel ranks when it is saved.
    """
    if not is_loading:
        finish_parameter_gathers(state.model)
    content = _content_metadata(state.optimizer)
    result: dict[str, Any] = {} if is_loading else {_CONTENT: dict(content)}  # modules add process groups to theirs
    for key, module in model_chunks(state).items():
        result[key] = module.sharded_state_dict(metadata=content)
    if with_optimizer:
        if is_loading:
            _give_sgd_an_initial_state(state.optimizer)
        models = {key: value for key, value in result.items() if key != _CONTENT}
        result[OPTIMIZER] = state.optimizer.sharded_state_dict(models, is_loading, metadata=content)
        if not is_loading:
            result[SCHEDULER] = state.scheduler.state_dict()
    return result


def check_schedule(saved: Mapping[str, Any], scheduler: OptimizerParamScheduler, folder: Path) -> None:
    """Check that the run's learning-rate schedule is the saved one, unless a flag says which of them holds.

    Raises:
        CheckpointError: names the values that differ. (The stock scheduler would stop at the first, with an assertion.)
    """
    if scheduler.override_opt_param_scheduler or scheduler.use_checkpoint_opt_param_scheduler:
        return
    ours = scheduler.state_dict()
    names = [name for name in ours if name != "num_steps" and saved.get(name) != ours[name]]
    if names:
        raise CheckpointError(
            found=f"another schedule in {folder}: " + ", ".join(f"{name} {saved.get(name)}" for name in names),
            expected=", ".join(f"{name} {ours[name]}" for name in names),
            next_step="go on with this run's schedule (--override-opt-param-scheduler) or with the saved one "
            "(--use-checkpoint-opt-param-scheduler)",
        )


def put_back(loaded: Mapping[str, Any], state: TrainingState, *, with_optimizer: bool) -> None:
    """Load a filled state dict into the run's parts."""
    for key, module in model_chunks(state).items():
        module.load_state_dict(loaded[key])
    if with_optimizer:
        state.optimizer.load_state_dict(loaded[OPTIMIZER])
        state.scheduler.load_state_dict(loaded[SCHEDULER])
    else:
        state.optimizer.reload_model_params()


def shard_random_states(states: Mapping[str, torch.Tensor], ranks: Ranks) -> dict[str, ShardedTensor]:
    """One row per rank: stream name -> tensor of global shape [world_size, length]."""
    return {
        name: ShardedTensor.from_rank_offsets(
            f"{RANDOM}/{name}", value.unsqueeze(0), (0, ranks.rank, ranks.world_size), replica_id=0
        )
        for name, value in states.items()
    }


def unshard_random_states(loaded: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """This rank's rows."""
    return {name: value.squeeze(0) for name, value in loaded.items()}


def _unwrap(module: MegatronModule) -> MegatronModule:
    while isinstance(module, DistributedDataParallel | Float16Module):
        module = module.module
    return module


def _parts(optimizer: MegatronOptimizer) -> Iterator[MegatronOptimizer]:
    yield from optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else (optimizer,)


def _content_metadata(optimizer: MegatronOptimizer) -> dict[str, Any]:
    """Megatron-Core's switches for how a state dict is laid out; stored so that other readers know."""
    content: dict[str, Any] = {"singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    if describe_optimizer(optimizer)["distributed"]:
        content["distrib_optim_sharding_type"] = "fully_reshardable"
    return content


def finish_parameter_gathers(model: list[DistributedDataParallel]) -> None:
    """Bring the weights up to date: with --overlap-param-gather they are gathered when the next forward needs them."""
    for chunk in model:
        if chunk.ddp_config.use_distributed_optimizer and chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def _give_sgd_an_initial_state(optimizer: MegatronOptimizer) -> None:
    """Stock plain optimizers have no initial state for SGD, and fail when a load asks for one."""
    for part in _parts(optimizer):
        if isinstance(part.optimizer, torch.optim.SGD) and getattr(part, "init_state_fn", None) is None:
            part.init_state_fn = _initial_sgd_state


def _initial_sgd_state(optimizer: torch.optim.SGD, config: object) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["momentum"] and not optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
