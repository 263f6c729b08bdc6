"""What Megatron-Core's schedules can do and these cannot: refused before the first pass."""

from collections.abc import Iterator
from typing import Any

from overlap_recompute.plan.errors import ConfigError

_MESSAGES = {
    "variable_seq_lengths": "receives are posted before the sender knows its length",
    "mtp_standalone": "receives are posted before the sender knows its shape",
    "use_ring_exchange_p2p": "sends and receives start apart from each other",
    "defer_embedding_wgrad_compute": "the deferred weight gradient of the embedding is not computed",
    "overlap_moe_expert_parallel_comm": "it runs a forward and a backward pass as one",
    "hybrid_context_parallel": "it cuts microbatches anew in every step",
    "fine_grained_activation_offloading": "it counts passes in the order of upstream's loops",
    "num_microbatches_with_partial_activation_checkpoints": "which microbatches it takes follows upstream's loops",
}
"""Option of the model -> why it needs the stock schedules."""


def refuse_unsupported(config: Any, call: dict[str, Any]) -> None:
    """Refuse options of the model and arguments of the call that only the stock schedules honour.

    Args:
        config: the model's.
        call: arguments by name; None stands for one that was not given.

    Raises:
        ConfigError: one of them is set.
    """
    for name, why in _refused(config, call):
        raise ConfigError(
            f"{name} with --schedule-impl overlap", f"it unset ({why})", f"leave out {name}, or --schedule-impl overlap"
        )


def _refused(config: Any, call: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, why in _MESSAGES.items():
        if getattr(config, name, None) not in (None, False):
            yield name, why
    if getattr(config, "cuda_graph_impl", "none") == "local":
        yield "cuda_graph_impl=local", "graphs are captured in the order of upstream's loops"
    for name, value in call.items():
        if value is not None:
            yield f"the argument {name}", "process groups and shapes are those of parallel_state and the model"
