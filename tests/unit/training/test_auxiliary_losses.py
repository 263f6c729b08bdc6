"""A router's losses for the log: which ones, taken once, and forgotten."""

import pytest
import torch
from megatron.core.transformer.moe import moe_utils as upstream

from megatron.pretrain.model import build_model, build_transformer_config
from megatron.pretrain.training.moe_utils import AuxiliaryLosses, auxiliary_losses
from tests.unit.model.support import CPU, EXPERTS, VOCAB, batch, config_of, one_rank


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("", ()),
        (EXPERTS, ()),
        (f"{EXPERTS} --moe-z-loss-coeff 0", ()),
        (f"{EXPERTS} --moe-router-load-balancing-type none --moe-aux-loss-coeff 1e-2", ()),
        (f"{EXPERTS} --moe-aux-loss-coeff 1e-2", ("load_balancing_loss",)),
        (
            f"{EXPERTS} --moe-router-load-balancing-type seq_aux_loss --moe-aux-loss-coeff 1 --moe-z-loss-coeff 1",
            ("seq_load_balancing_loss", "z_loss"),
        ),
        (
            f"{EXPERTS} --moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 1",
            ("global_load_balancing_loss",),
        ),
    ],
)
def test_every_rank_knows_the_names_from_the_flags(flags: str, names: tuple[str, ...]) -> None:
    assert auxiliary_losses(config_of(flags)) == names


def test_no_loss_is_no_collective() -> None:
    assert AuxiliaryLosses(config_of(EXPERTS), CPU).take(1) == {}  # there is no process group here


def test_the_mean_is_over_layers_microbatches_and_iterations_and_the_table_is_emptied() -> None:
    with one_rank():
        config = config_of(EXPERTS, "--moe-layer-freq [0,1] --moe-aux-loss-coeff 1e-2 --moe-z-loss-coeff 1e-3")
        config_twice = config_of(
            EXPERTS, "--moe-layer-freq [0,1] --moe-aux-loss-coeff 1e-2 --moe-z-loss-coeff 1e-3 --global-batch-size 4"
        )
        (chunk,) = build_model(config, build_transformer_config(config), VOCAB, CPU)
        upstream.save_to_aux_losses_tracker("z_loss", torch.tensor(9.0), 1, 50)  # of another model, in this process
        losses = AuxiliaryLosses(config, CPU)
        chunk(**batch(1))
        first = losses.take(1)
        assert first["load_balancing_loss"] == pytest.approx(1.0, rel=0.1), "1 where experts get equal shares"
        assert first["z_loss"] == pytest.approx(torch.tensor(4.0).log().item() ** 2, rel=0.1), "log 4 from equal logits"
        chunk(**batch(2))
        second = losses.take(1)
        assert second != first
        for seed in (1, 2):
            chunk(**batch(seed))
        both = losses.take(2)
        assert both == pytest.approx({name: (first[name] + second[name]) / 2 for name in first})
        for seed in (1, 2):
            chunk(**batch(seed))
        chunk.eval()
        chunk(**batch(3))  # an evaluation is not counted
        assert losses.take(2) == pytest.approx(both)
        chunk.train()
        twice = AuxiliaryLosses(config_twice, CPU)
        for seed in (1, 2):
            chunk(**batch(seed))
        assert twice.take(1) == pytest.approx(both), "two microbatches of one iteration"
        assert twice.take(1) == {"load_balancing_loss": 0.0, "z_loss": 0.0}
