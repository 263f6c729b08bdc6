"""The logged norm is that of the weights after the update."""

import math

import pytest
import torch

from megatron.pretrain.model import build_model, build_transformer_config
from megatron.pretrain.training.report import Reporter
from tests.unit.model.support import CPU, VOCAB, config_of, one_rank

GATHERED = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather"


def test_parameters_are_gathered_before_their_norm_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --overlap-param-gather a rank has the others' new weights only after the next forward pass asks for them."""
    with one_rank():
        config = config_of(GATHERED)
        model = build_model(config, build_transformer_config(config), VOCAB, CPU)
        forced = []

        def arrive(*, force_sync: bool = False) -> None:
            forced.append(force_sync)
            with torch.no_grad():
                for parameter in model[0].parameters():
                    parameter.fill_(2.0)

        monkeypatch.setattr(model[0], "start_param_sync", arrive)
        norm = Reporter(config, CPU, 1.0, None)._params_norm(model)
        count = sum(parameter.numel() for parameter in model[0].parameters())
        assert norm == pytest.approx(2.0 * math.sqrt(count))
        assert forced == [True]
