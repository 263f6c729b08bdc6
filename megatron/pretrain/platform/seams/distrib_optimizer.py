"""Hooks megatron/core/optimizer/distrib_optimizer.py of megatron-core 0.16.1: checkpoints of torch's own Adam.

torch's Adam keeps a `step` tensor per parameter; Apex's and Transformer Engine's keep one number per group, and the
stock code was written for those. Without either of them:

1. `state_dict()` before the first step finds no `step` and fails an assertion (it is also the first thing a load does);
2. a load copies into leaf tensors without `no_grad`, and looks for a `step` that the checkpoint's tensors do not carry;
3. a load gives *one* `step` tensor to all parameters, so that each iteration advances it once per parameter: no error,
   but Adam's bias correction is wrong from then on.
"""

import functools
from types import ModuleType
from typing import Any

import torch

from megatron.pretrain.platform.seam import Expected, Seam


def _is_torch_adam(optimizer: Any) -> bool:
    """Whether it wraps torch's Adam; the only other choice is megatron-core's own for offloading to the host."""
    return isinstance(optimizer.optimizer, (torch.optim.Adam, torch.optim.AdamW))


def _give_fresh_parameters_their_state(adam: torch.optim.Adam) -> None:
    """Give every parameter that was never stepped the state that Adam would give it at its first step."""
    for group in adam.param_groups:
        on_device = group.get("capturable") or group.get("fused")
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.state[parameter].update(
                    step=torch.zeros((), device=parameter.device if on_device else "cpu"),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )


def _state_dict_before_first_step(stock: Any) -> Any:
    @functools.wraps(stock)
    def state_dict(self: Any) -> Any:
        if _is_torch_adam(self):
            _give_fresh_parameters_their_state(self.optimizer)
        return stock(self)

    return state_dict


def _load_with_own_steps(stock: Any) -> Any:
    @functools.wraps(stock)
    def load_state_dict(self: Any, state_dict: Any) -> None:
        stock(self, state_dict)
        if _is_torch_adam(self):
            for state in self.optimizer.state.values():
                state["step"] = state["step"].clone()

    return load_state_dict


def _copy_tensors_but_no_step(stock: Any) -> Any:
    @functools.wraps(stock)
    @torch.no_grad()
    def set_states(self: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]) -> None:
        if not _is_torch_adam(self):
            stock(self, model_param, tensors)
            return
        group_index, index_in_group = self.model_param_group_index_map[model_param]
        main_parameter = self.optimizer.param_groups[group_index]["params"][index_in_group]
        targets = {**self.optimizer.state[main_parameter], "param": main_parameter}
        del targets["step"]  # one number for the whole optimizer; load_state_dict has already set it
        for name, target in targets.items():
            target.copy_(tensors[name])

    return set_states


def _mend(module: ModuleType) -> None:
    optimizer = module.DistributedOptimizer
    if module.HAVE_APEX_OR_TE or hasattr(optimizer.state_dict, "__wrapped__"):
        return
    optimizer.state_dict = _state_dict_before_first_step(optimizer.state_dict)
    optimizer.load_state_dict = _load_with_own_steps(optimizer.load_state_dict)
    optimizer._set_main_param_and_optimizer_states = _copy_tensors_but_no_step(
        optimizer._set_main_param_and_optimizer_states
    )


ADAM_STATE_OF_TORCH = Seam(
    module="megatron.core.optimizer.distrib_optimizer",
    purpose="checkpoints of the distributed optimizer with torch's Adam fail, or load with a wrong step count",
    expects=(
        Expected(name="DistributedOptimizer.state_dict", parameters=("self",)),
        Expected(name="DistributedOptimizer.load_state_dict", parameters=("self", "state_dict")),
        Expected(
            name="DistributedOptimizer._set_main_param_and_optimizer_states",
            parameters=("self", "model_param", "tensors"),
        ),
    ),
    adjust=_mend,
)
