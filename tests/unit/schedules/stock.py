"""Megatron-Core's own schedules with nothing to compute: they only say in which order they would."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from megatron.pretrain.platform import install_platform
from overlap_recompute.plan.actions import Action, Actions, Kind

install_platform("gloo")  # before the first import of megatron.core, which the next line causes
from megatron.core.pipeline_parallel import schedules  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402


class Group:
    """A process group of which only size and rank are asked."""

    def __init__(self, size: int, rank: int) -> None:
        self._size, self._rank = size, rank

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank


class SilentCommunicator:
    """Stands in for P2PCommunicator; every tensor is there at once."""

    def __init__(self, config: TransformerConfig, group: Group) -> None:
        self.config, self.pp_group = config, group
        self.virtual_pipeline_model_parallel_size = config.virtual_pipeline_model_parallel_size

    def send_forward_backward_recv_forward_backward(self, *_: Any, **__: Any) -> tuple[None, None]:
        return None, None

    def __getattr__(self, name: str) -> Any:
        assert name.startswith(("send_", "recv_")), name
        return lambda *_, **__: None


def stock_order(
    pp: int, vpp: int, microbatches: int, rank: int, *, group_size: int | None, forward_only: bool
) -> Actions:
    """The passes of one rank as stock code runs them; `vpp` 1: the schedule without interleaving."""
    config = TransformerConfig(
        num_layers=pp * vpp,
        hidden_size=1,
        num_attention_heads=1,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
        microbatch_group_size_per_vp_stage=group_size,
        pipeline_dtype=torch.float32,
    )
    chunks = [_Chunk(config) for _ in range(vpp)]
    group, single = Group(pp, rank), Group(1, 0)
    order: list[Action] = []

    def forward_step(*_: Any, current_microbatch: int, vp_stage: int | None = None, **__: Any) -> tuple[list[Any], int]:
        order.append(Action(kind=Kind.F, chunk=vp_stage or 0, microbatch=current_microbatch))
        return [order[-1]], 0

    def backward_step(_: Any, output: list[Action], *__: Any) -> None:
        order.append(output[0].as_kind(Kind.B))

    run = schedules.get_forward_backward_func(pp, vpp if vpp > 1 else None)
    with mock.patch.multiple(schedules, forward_step=forward_step, backward_step=backward_step):
        run(
            forward_step_func=None,
            data_iterator=[None] * vpp,
            model=chunks,
            num_microbatches=microbatches,
            seq_length=1,
            micro_batch_size=1,
            forward_only=forward_only,
            p2p_communicator=SilentCommunicator(config, group),
            pg_collection=SimpleNamespace(
                tp=single, cp=single, embd=None, pos_embd=None, pp=group, dp_cp=single, tp_dp_cp=single
            ),
        )
    return tuple(order)


class _Chunk(torch.nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.model_type = config, None
