"""Reads the auxiliary losses that megatron/core/transformer/moe/moe_utils.py of megatron-core 0.16.1 keeps for a log.

NOTE [ sums over ranks ]
The router of each layer adds the loss of each microbatch, without its weight, to a table of the process. What it adds
is the part of its own tokens, and how the parts make a whole depends on the loss: see `_parts`. So one sum over all
ranks, and a division, give the mean over layers and microbatches, on every rank. Stock's own reduction is not used: its
average ends a process on gloo, and a pipeline stage without experts has no table and would leave the others waiting.
"""

import torch
from megatron.core.transformer.moe import moe_utils as upstream

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.platform.seam import Expected, Seam

Z_LOSS = "z_loss"
BALANCING_LOSSES = {
    "aux_loss": "load_balancing_loss",
    "seq_aux_loss": "seq_load_balancing_loss",
    "global_aux_loss": "global_load_balancing_loss",
}
"""Stock's name, and Megatron-LM's in the log, by value of --moe-router-load-balancing-type."""
_SEAM = Seam(
    module=upstream.__name__,
    purpose="auxiliary losses are missing in the log",
    expects=(
        Expected(
            name="save_to_aux_losses_tracker",
            parameters=(
                "name", "loss", "layer_number", "num_layers", "reduce_group", "avg_group", "reduce_group_has_dp",
            ),
        ),
        Expected(name="get_moe_layer_wise_logging_tracker", parameters=()),
    ),
    adjust=lambda module: None,
)  # fmt: skip


def auxiliary_losses(config: PretrainConfig) -> tuple[str, ...]:
    """Names of the losses that the flags ask for, the same on every rank."""
    moe = config.moe
    if moe.num_experts is None:
        return ()
    balancing = BALANCING_LOSSES.get(moe.moe_router_load_balancing_type) if moe.moe_aux_loss_coeff else None
    return (*([balancing] if balancing else []), *([Z_LOSS] if moe.moe_z_loss_coeff else []))


class AuxiliaryLosses:
    """Takes the losses of an interval out of the table.

    Args:
        config: the options of the run.
        device: where the model lives.

    Raises:
        UserError: the installed megatron-core has a different shape.
    """

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self._names = auxiliary_losses(config)
        self._config, self._device = config, device
        if self._names:
            _SEAM.apply(upstream)
            self._forget()

    def take(self, iterations: int) -> dict[str, float]:
        """Mean of each loss over the iterations since the last call, their microbatches and the layers with experts.

        Collective, unless there are no such losses; waits for the device. The table is empty afterwards.
        """
        if not self._names:
            return {}
        table = upstream.get_moe_layer_wise_logging_tracker()
        sums = torch.zeros(len(self._names), dtype=torch.float64, device=self._device)
        for place, name in enumerate(self._names):
            if name in table:
                sums[place] = table[name]["values"].double().sum()
        self._forget()
        torch.distributed.all_reduce(sums)
        counted = iterations * self._config.num_microbatches * sum(self._config.moe_layer_pattern)
        pairs = zip(self._names, sums.tolist(), strict=True)
        return {name: total / (counted * self._parts(name)) for name, total in pairs}

    def _parts(self, name: str) -> int:
        """How many ranks of a stage have a whole loss each; 1 where all of them together have one."""
        config = self._config
        if name == Z_LOSS:  # each rank has the mean over its own tokens
            sharing = config.parallel.tensor_model_parallel_size * config.parallel.context_parallel_size
            return config.data_parallel_size * sharing
        # Ranks that share a sequence have a part of its loss; with global_aux_loss, of that of all sequences.
        return 1 if name == BALANCING_LOSSES["global_aux_loss"] else config.data_parallel_size

    def _forget(self) -> None:
        table = upstream.get_moe_layer_wise_logging_tracker()
        for name in self._names:
            table.pop(name, None)
