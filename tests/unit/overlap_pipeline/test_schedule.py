"""What is refused, and what an error says."""

from types import SimpleNamespace

import pytest

from overlap_recompute.plan.actions import parse_action, parse_actions
from overlap_recompute.plan.errors import ConfigError, UserError
from tests.unit.schedules.stock import TransformerConfig, schedules  # installs the platform

from megatron.overlap.pipeline.errors import PipelineError, place_of  # isort: skip
from megatron.overlap.pipeline.refusals import refuse_unsupported  # isort: skip
from megatron.overlap.pipeline.schedules import require_stock_steps  # isort: skip


def config(**options: object) -> SimpleNamespace:
    stock = TransformerConfig(num_layers=2, hidden_size=4, num_attention_heads=1)
    return SimpleNamespace(**{**vars(stock), **options})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("variable_seq_lengths", True),
        ("defer_embedding_wgrad_compute", True),
        ("overlap_moe_expert_parallel_comm", True),
        ("num_microbatches_with_partial_activation_checkpoints", 1),
        ("fine_grained_activation_offloading", True),
        ("hybrid_context_parallel", True),
        ("use_ring_exchange_p2p", True),
        ("mtp_standalone", True),
    ],
)
def test_options_that_need_the_stock_schedules_are_refused(name: str, value: object) -> None:
    assert hasattr(config(), name), "an option of this megatron-core"
    with pytest.raises(ConfigError, match=f"found {name} with --schedule-impl overlap"):
        refuse_unsupported(config(**{name: value}), {})


def test_a_usual_model_is_accepted_and_arguments_of_others_are_not() -> None:
    refuse_unsupported(config(), {"p2p_communicator": None})
    refuse_unsupported(config(cuda_graph_impl="none"), {})
    with pytest.raises(ConfigError, match="cuda_graph_impl=local"):
        refuse_unsupported(config(cuda_graph_impl="local"), {})
    with pytest.raises(ConfigError, match="the argument p2p_communicator"):
        refuse_unsupported(config(), {"p2p_communicator": object()})


def test_an_error_names_the_action_and_what_came_before() -> None:
    executed = parse_actions("0F2 0B1 0SEND_B1 0RECV_F4")
    where = place_of(1, parse_action("0F3"), executed)
    assert where == "rank 1 failed at 0F3 (after 0B1 0SEND_B1 0RECV_F4)"
    assert place_of(0, parse_action("0F0"), ()) == "rank 0 failed at 0F0"
    assert str(PipelineError(where, KeyError("tokens"))) == f"{where}: KeyError: 'tokens'"


def test_another_megatron_core_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    require_stock_steps()
    monkeypatch.setattr(schedules, "backward_step", lambda input_tensor, output_tensor: None)
    with pytest.raises(UserError, match="backward_step"):
        require_stock_steps()
