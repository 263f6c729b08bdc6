"""`--model-preset`: what it fills in, what wins over it, and that it leaves no trace but its flags."""

import dataclasses

import pytest

from megatron.pretrain.config import PretrainConfig, parse_command_line, validate
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.presets import PRESETS, preset_named
from tests.unit.config.conftest import environment

RUN = "--micro-batch-size 1 --train-iters 10 --lr 1e-4 --mock-data --vocab-size 512 --distributed-backend gloo"


def parse(flags: str) -> PretrainConfig:
    return parse_command_line([*RUN.split(), *flags.split()], environment(1))


@pytest.mark.parametrize("name", [preset.name for preset in PRESETS])
def test_the_trainer_s_shape_is_the_preset_s(name: str) -> None:
    preset, config = preset_named(name, flag="x"), parse(f"--model-preset {name}")
    validate(config)
    shape = preset.shape()
    model = config.model
    assert (model.num_layers, model.hidden_size, model.seq_length) == (preset.layers, preset.hidden, preset.sequence)
    assert (config.ffn_hidden_size, config.kv_channels) == (shape.ffn_hidden_size, shape.kv_channels)
    assert (model.num_attention_heads, config.num_query_groups) == (shape.num_attention_heads, shape.num_query_groups)
    assert (model.swiglu, model.disable_bias_linear) == (shape.gated, not shape.linear_bias)
    assert model.untie_embeddings_and_output_weights is not shape.tied_embeddings
    assert (model.normalization == "RMSNorm") == (shape.norm_parameters_per_channel == 1)
    assert (model.position_embedding_type == "rope") == (shape.max_position_embeddings == 0)
    assert (model.attention_dropout, model.hidden_dropout, model.rotary_base) == (0.0, 0.0, preset.rotary_base)
    assert sum(config.moe_layer_pattern) == shape.moe_layers
    if shape.moe_layers:
        assert (config.moe.num_experts, config.moe.moe_router_topk) == (8, 2)
        assert config.moe_ffn_hidden_size == shape.moe_ffn_hidden_size


@pytest.mark.parametrize("order", ["--num-layers 2 --model-preset gpt-7b", "--model-preset gpt-7b --num-layers 2"])
def test_given_flags_win_wherever_they_stand(order: str) -> None:
    config = parse(order + " --attention-dropout 0.1")
    assert (config.model.num_layers, config.model.hidden_size, config.model.attention_dropout) == (2, 4096, 0.1)
    note = next(note for note in config.notes if note.startswith("--model-preset gpt-7b sets "))
    assert "--hidden-size 4096" in note
    assert "--num-layers" not in note.partition(";")[0]
    assert note.endswith("given instead: --num-layers, --attention-dropout")


def test_the_configuration_is_that_of_the_flags_alone() -> None:
    config = parse("--model-preset llama3-8b --attention-dropout 0.1")
    assert config.model.model_preset is None
    assert "--model-preset" not in config.to_argv()
    again = parse_command_line(config.to_argv(), environment(1))
    assert dataclasses.replace(again, notes=config.notes) == config


@pytest.mark.parametrize(
    ("name", "near"), [("gpt-7", "gpt-7b"), ("Llama-2-7B", "llama2-7b"), ("llama3_70b", "llama3-70b")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"found --model-preset '{name}', .*; write {near} if that was meant"):
        parse(f"--model-preset {name}")
    with pytest.raises(ConfigError, match="give the shape flags one by one"):
        parse("--model-preset xyzzy")


def test_without_a_preset_the_shape_is_still_asked_for() -> None:
    with pytest.raises(ConfigError, match="no --num-layers, no --hidden-size"):
        parse("")
