"""Make this process ready for megatron-core: on the CPU over gloo, or on CUDA devices over NCCL."""

import os
import sys
from collections.abc import Callable
from importlib import metadata

import torch

from megatron.pretrain.platform.facade import CPU, build_cpu_torch
from megatron.pretrain.platform.hook import MegatronCoreFinder
from megatron.pretrain.platform.log_filters import quiet_stock_messages
from megatron.pretrain.platform.seam import SUPPORTED_MEGATRON_CORE
from megatron.pretrain.platform.seams import CPU_SEAMS, STOCK_FIXES
from megatron.pretrain.platform.tensor_methods import replace_tensor_methods
from overlap_recompute.plan.errors import ConfigError, UserError

LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "SLURM_LOCALID")
"""Environment variables that name this process's place on its host: torchrun's and srun's."""


def install_platform(distributed_backend: str) -> torch.device:
    """Choose the device and adjust megatron-core for it. Call before the first import of megatron.core.

    With "gloo" training runs on the CPU, also where a GPU is present: megatron.core modules get a `torch` whose
    "cuda" is the CPU. With "nccl" it runs on the CUDA device of this process's local rank. The stock fixes apply to
    both. Everything outside megatron.core keeps torch as it is. A second call with the same backend returns the same
    device and does nothing else.

    Args:
        distributed_backend: "gloo" or "nccl".

    Returns:
        The device to train on; with "nccl" it is also torch's current device.

    Raises:
        ConfigError: an unknown backend, or "nccl" without a CUDA device for this rank.
        UserError: an unsupported megatron-core, or one that was imported before.
    """
    if distributed_backend not in _DEVICES:
        raise ConfigError(
            found=f"--distributed-backend {distributed_backend}",
            expected="nccl or gloo",
            next_step="choose nccl for NVIDIA GPUs, gloo for CPUs",
        )
    device = _DEVICES[distributed_backend]()
    installed = [finder for finder in sys.meta_path if isinstance(finder, MegatronCoreFinder)]
    if installed:
        _require_same_device(installed[0].device, device)
        return device
    _require_supported_version()
    _require_not_imported()
    on_cpu = device.type == "cpu"
    seams = STOCK_FIXES + (CPU_SEAMS if on_cpu else ())
    sys.meta_path.insert(0, MegatronCoreFinder(device, seams, build_cpu_torch() if on_cpu else None))
    quiet_stock_messages(on_cpu)
    if on_cpu:
        replace_tensor_methods()
    return device


def _cuda_of_this_rank() -> torch.device:
    if not torch.cuda.is_available():
        raise ConfigError(
            found=f"--distributed-backend nccl, but torch {torch.__version__} sees no CUDA device",
            expected="a CUDA build of torch and an NVIDIA GPU for every rank",
            next_step="use --distributed-backend gloo to train on the CPU",
        )
    local_rank = int(next((os.environ[name] for name in LOCAL_RANK_VARIABLES if name in os.environ), "0"))
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigError(
            found=f"local rank {local_rank} on a host with {count} visible CUDA device(s)",
            expected="at most one rank per CUDA device",
            next_step=f"start at most {count} ranks on each host, or show more devices in CUDA_VISIBLE_DEVICES",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


_DEVICES: dict[str, Callable[[], torch.device]] = {"gloo": lambda: CPU, "nccl": _cuda_of_this_rank}


def _require_same_device(installed: torch.device, wanted: torch.device) -> None:
    if installed.type != wanted.type:
        raise UserError(
            found=f"a platform for {wanted.type} after one for {installed.type}",
            expected="one platform in a process",
            next_step="start a new process for the other backend",
        )


def _require_supported_version() -> None:
    try:
        version = metadata.version("megatron-core")
    except metadata.PackageNotFoundError:
        version = "absent"
    if version != SUPPORTED_MEGATRON_CORE:
        raise UserError(
            found=f"megatron-core {version}",
            expected=f"megatron-core {SUPPORTED_MEGATRON_CORE}",
            next_step=f"install megatron-core=={SUPPORTED_MEGATRON_CORE}",
        )


def _require_not_imported() -> None:
    early = next((name for name in sys.modules if name == "megatron.core" or name.startswith("megatron.core.")), None)
    if early is not None:
        raise UserError(
            found=f"{early} imported before the platform was installed",
            expected="install_platform() to run before any import of megatron.core",
            next_step="move the call to the start of the program",
        )
