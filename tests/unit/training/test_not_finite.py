"""A gradient that is no number ends a run with a sentence."""

import pytest
import torch

from megatron.pretrain.model import build_model, build_transformer_config
from megatron.pretrain.training.not_finite import NotFiniteError, gradients_are_finite
from tests.unit.model.support import CPU, VOCAB, batch, config_of, one_rank


@pytest.mark.parametrize(("value", "flags"), [("nan", ""), ("inf", "--overlap-grad-reduce")])
def test_megatron_cores_check_is_put_into_words(value: str, flags: str) -> None:
    with one_rank():
        config = config_of(flags)
        (model,) = build_model(config, build_transformer_config(config), VOCAB, CPU)
        loss = model(**batch()).sum() * float(value)

        @gradients_are_finite(7)
        def step() -> None:
            loss.backward()
            model.finish_grad_sync()

        with pytest.raises(NotFiniteError, match=rf"found a gradient that is (nan|{value}) in iteration 7; .* --lr"):
            step()


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="mat1") as found, gradients_are_finite(7):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not isinstance(found.value, NotFiniteError)
