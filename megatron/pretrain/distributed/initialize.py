"""From a configuration to a cluster: rendezvous, process groups, seeds. Bounded in time, and clear when it fails."""

import os
from collections.abc import Mapping
from datetime import timedelta

import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
from torch.distributed import HashStore, ProcessGroup, Store

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.distributed.cluster import Cluster, RankPlace
from megatron.pretrain.distributed.gloo_threads import give_gloo_short_turns
from megatron.pretrain.distributed.liveness import LivenessWatch
from megatron.pretrain.distributed.rendezvous import meet
from megatron.pretrain.distributed.seeds import rank_seed, seed_everything
from megatron.pretrain.distributed.settle import settle

CONNECTIONS_VARIABLE = "CUDA_DEVICE_MAX_CONNECTIONS"


def initialize_distributed(config: PretrainConfig, device: torch.device) -> Cluster:
    """Form the process group of all ranks and Megatron-Core's groups, seed every generator, start the watch.

    Call after `install_platform`. A run of one process needs no address and opens no port.

    Args:
        config: a validated configuration.
        device: the device to train on, as `install_platform` returned it.

    Returns:
        The cluster; use it in a `with`.

    Raises:
        ClusterError: the ranks did not meet in time; it names the missing.
        PeerFailure: a rank was lost before all groups stood.
        OwnFailure: anything else went wrong on this rank after the ranks had met; the others know.
    """
    world, options = config.world, config.distributed
    timeout_s = options.distributed_timeout_minutes * 60
    store: Store = HashStore()
    watch: LivenessWatch | None = None
    if world.world_size > 1:
        meeting = meet(world, os.environ, timeout_s=timeout_s, liveness_timeout_s=options.liveness_timeout_s)
        store, watch = meeting.store, meeting.watch
    try:
        place = _form_groups(config, store, timedelta(seconds=timeout_s))
        if watch is not None:
            watch.place(place.describe())
        host_group = _host_group(config, timedelta(seconds=timeout_s))
        if options.distributed_backend == "gloo" and options.gloo_thread_turns == "short":
            give_gloo_short_turns()
    except BaseException as error:
        settled = settle(error, watch)
        if settled is not error:
            raise settled from error
        raise
    return Cluster(
        place=place,
        device=device,
        watch=watch,
        host_group=host_group,
        store=store,
        notes=connection_notes(config, device, os.environ),
    )


def _form_groups(config: PretrainConfig, store: Store, timeout: timedelta) -> RankPlace:
    world, parallel = config.world, config.parallel
    torch.distributed.init_process_group(
        config.distributed.distributed_backend,
        store=store,
        rank=world.rank,
        world_size=world.world_size,
        timeout=timeout,
    )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline_size,
        context_parallel_size=parallel.context_parallel_size,
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
        distributed_timeout_minutes=config.distributed.distributed_timeout_minutes,
        create_gloo_process_groups=False,  # only checkpoint formats that nobody uses here gather over gloo
    )
    place = _read_place(config)
    seed_everything(rank_seed(config.training.seed, pp_rank=place.pp_rank, dp_rank=place.dp_rank))
    init_num_microbatches_calculator(
        rank=world.rank,
        rampup_batch_size=None,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        data_parallel_size=place.dp_size,
    )
    return place


def _read_place(config: PretrainConfig) -> RankPlace:
    return RankPlace(
        rank=config.world.rank,
        world_size=config.world.world_size,
        local_rank=config.world.local_rank,
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=parallel_state.get_pipeline_model_parallel_world_size(),
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=parallel_state.get_context_parallel_world_size(),
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
        ep_size=parallel_state.get_expert_model_parallel_world_size(),
    )


def _host_group(config: PretrainConfig, timeout: timedelta) -> ProcessGroup | None:
    """A gloo group of all ranks, if a stop condition asks the ranks to agree: a GPU must not be waited for."""
    training = config.training
    if config.world.world_size == 1 or not (training.exit_signal_handler or training.exit_duration_in_mins):
        return None
    if config.distributed.distributed_backend == "gloo":
        return torch.distributed.group.WORLD
    return torch.distributed.new_group(backend="gloo", timeout=timeout)


def connection_notes(config: PretrainConfig, device: torch.device, environ: Mapping[str, str]) -> tuple[str, ...]:
    """What to say about CUDA_DEVICE_MAX_CONNECTIONS: its value matters where tensor-parallel traffic overlaps compute.

    Args:
        config: the run.
        device: the device to train on.
        environ: the environment of this process.
    """
    if device.type != "cuda" or config.parallel.tensor_model_parallel_size == 1:
        return ()
    value = environ.get(CONNECTIONS_VARIABLE)
    advice = (
        "" if value == "1" else "; with 1 the tensor-parallel collectives start before the GEMMs that should hide them"
    )
    return (f"{CONNECTIONS_VARIABLE} is {value or 'not set'}{advice}",)
