"""The parallel layout of a run, as a checkpoint records it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from megatron.core import parallel_state

from megatron.pretrain.checkpoint.record import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelLayout:
    """How a run is spread over ranks. Random states are exact only where all of it agrees."""

    world_size: int
    tensor: int
    pipeline: int
    virtual_pipeline: int
    context: int
    expert: int
    expert_tensor: int
    device: str
    """"cpu" or "cuda": their random generators have different states."""

    @classmethod
    def of_run(cls, model: Sequence[torch.nn.Module]) -> "ParallelLayout":
        """The layout that `megatron.core.parallel_state` was initialised with; `model` has this rank's chunks."""
        return cls(
            world_size=torch.distributed.get_world_size(),
            tensor=parallel_state.get_tensor_model_parallel_world_size(),
            pipeline=parallel_state.get_pipeline_model_parallel_world_size(),
            virtual_pipeline=len(model),
            context=parallel_state.get_context_parallel_world_size(),
            expert=parallel_state.get_expert_model_parallel_world_size(),
            expert_tensor=parallel_state.get_expert_tensor_parallel_world_size(),
            device=next(model[0].parameters()).device.type,
        )

    def to_json(self) -> Mapping[str, JSON]:
        """Plain values for the run record."""
        return asdict(self)

    def differences(self, saved: Mapping[str, JSON]) -> list[str]:
        """What another layout has that this one has not, as "tensor 2 (now 1)"."""
        ours = self.to_json()
        return [f"{name} {saved.get(name)} (now {size})" for name, size in ours.items() if saved.get(name) != size]
