"""The meta-path hook that adjusts each megatron.core module as it is imported, early or late."""

import importlib.machinery
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

import torch

from megatron.pretrain.platform.seam import Seam

CUDA_ONLY_PACKAGES = frozenset({"transformer_engine", "apex"})
"""Optional packages whose kernels need CUDA tensors; megatron-core uses them whenever it can import them."""


class MegatronCoreFinder(MetaPathFinder):
    """Finds megatron.core modules the ordinary way and adjusts each right after it has run.

    Args:
        device: the device that training will use.
        seams: the adjustments to make, in order.
        facade: bound in place of `torch` in every megatron.core module; None leaves torch alone. With a facade the
            packages of `CUDA_ONLY_PACKAGES` cannot be imported, so that megatron-core takes its CPU-capable paths.
    """

    def __init__(self, device: torch.device, seams: Iterable[Seam], facade: ModuleType | None) -> None:
        self.device, self.facade = device, facade
        self.seams: defaultdict[str, list[Seam]] = defaultdict(list)
        for seam in seams:
            self.seams[seam.module].append(seam)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if self.facade is not None and fullname in CUDA_ONLY_PACKAGES:
            raise ModuleNotFoundError(f"{fullname} needs CUDA and is hidden on the CPU platform", name=fullname)
        if fullname != "megatron.core" and not fullname.startswith("megatron.core."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self._adjust_after_execution(spec.loader)
        return spec

    def _adjust_after_execution(self, loader: object) -> None:
        # The loader belongs to this spec alone, so replacing its method touches no other import.
        execute = loader.exec_module  # type: ignore[attr-defined]

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self.facade is not None and module.__dict__.get("torch") is torch:
                module.torch = self.facade  # type: ignore[attr-defined]
            for seam in self.seams.get(module.__name__, ()):
                seam.apply(module)

        loader.exec_module = exec_module  # type: ignore[attr-defined]
