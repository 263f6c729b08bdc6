"""Hooks megatron/core/jit.py of megatron-core 0.16.1: no torch.compile for small fused functions on the CPU."""

from types import ModuleType

from megatron.pretrain.platform.seam import Expected, Seam


def _disable(module: ModuleType) -> None:
    # Decorators take the name when their module is imported, so this must come before any of those imports.
    module.disable_jit_fuser()


NO_JIT_FUSER = Seam(
    module="megatron.core.jit",
    purpose="jit_fuser is torch.compile, which needs a C++ compiler on the CPU and tens of seconds per function",
    expects=(Expected(name="disable_jit_fuser", parameters=()),),
    adjust=_disable,
)
