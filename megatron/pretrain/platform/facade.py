"""A `torch` for megatron.core modules whose "cuda" is the CPU.

The facade is a module object that holds a snapshot of torch's names and falls back to torch for anything that appears
later. Only what megatron-core touches on its way through training differs from torch; `docs/platform.md` has the list.

# NOTE [ Why a facade and not a TorchFunctionMode ]
# `torch.autograd.backward` is itself overridable, so torch pops a function mode while it runs: whatever Python does
# inside a backward pass (recompute, custom autograd functions) would see the real torch.cuda. A rebound module name
# works there, in any thread, and costs nothing per operation.
"""

import functools
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

FACTORIES = (
    "arange", "as_tensor", "empty", "empty_like", "full", "full_like", "ones", "ones_like", "rand", "rand_like",
    "randint", "randn", "randn_like", "tensor", "zeros", "zeros_like",
)  # fmt: skip
"""Functions of torch that take `device=` (and some `pin_memory=`)."""

CPU = torch.device("cpu")


class FallbackModule(ModuleType):
    """A module with some names replaced; every other name is the real module's.

    Args:
        real: the module to stand in for.
        replacements: name to object.
    """

    def __init__(self, real: ModuleType, **replacements: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(real.__dict__)
        self.__dict__.update(replacements)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


class CpuEvent(torch.cpu.Event):
    """An event that has always happened; takes torch.cuda.Event's arguments."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        super().__init__()


class CpuStream(torch.cpu.Stream):
    """The one stream of a CPU; takes torch.cuda.Stream's arguments."""

    def __init__(self, device: object = None, priority: int = 0, **options: object) -> None:
        super().__init__(priority)

    # torch.cpu.Stream.record_event returns None; megatron-core's token dispatcher waits on what it returns.
    def record_event(self, event: torch.cpu.Event | None = None) -> torch.cpu.Event:  # type: ignore[override]
        return event or CpuEvent()

    def synchronize(self) -> None:
        """Nothing is ever pending."""

    def query(self) -> bool:
        """Whether all work is done: always."""
        return True


def _nothing(*args: object, **options: object) -> None:
    """Stands for a call that has no meaning on a CPU."""


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **options: Any) -> torch.Tensor:
        if str(options.get("device")).startswith("cuda"):
            options["device"] = CPU
        if "pin_memory" in options:
            options["pin_memory"] = False
        return factory(*args, **options)

    return make


def _cpu_cuda() -> FallbackModule:
    def get_rng_state(device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(new_state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(new_state)

    def stream_of_cpu(device: object = None) -> CpuStream:
        return CpuStream()

    return FallbackModule(
        torch.cuda,
        is_available=lambda: False,
        is_initialized=lambda: False,
        device_count=lambda: 1,
        current_device=lambda: CPU,
        set_device=_nothing,
        synchronize=_nothing,
        empty_cache=_nothing,
        Stream=CpuStream,
        Event=CpuEvent,
        stream=torch.cpu.stream,
        current_stream=stream_of_cpu,
        default_stream=stream_of_cpu,
        manual_seed=torch.manual_seed,
        get_rng_state=get_rng_state,
        set_rng_state=set_rng_state,
        random=SimpleNamespace(get_rng_state=get_rng_state, set_rng_state=set_rng_state),
        nvtx=SimpleNamespace(range_push=_nothing, range_pop=_nothing, mark=_nothing),
    )


def build_cpu_torch() -> FallbackModule:
    """The facade: torch with the factories of `FACTORIES` and `torch.cuda` mapped to the CPU.

    `torch.distributed` and every other submodule are the same objects as torch's, so what is replaced in them later is
    seen through the facade too; a function of torch itself that is replaced later is not.
    """
    return FallbackModule(torch, cuda=_cpu_cuda(), **{name: _on_cpu(getattr(torch, name)) for name in FACTORIES})
