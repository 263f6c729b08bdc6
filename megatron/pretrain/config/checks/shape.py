"""Shape of the model."""

from megatron.pretrain.config.checks.common import Check, neighbours, require
from megatron.pretrain.config.pretrain_config import PretrainConfig


def heads_divide_hidden_size(config: PretrainConfig) -> None:
    """Unless --kv-channels decouples them."""
    model = config.model
    require(
        model.kv_channels is not None or model.hidden_size % model.num_attention_heads == 0,
        f"--hidden-size {model.hidden_size}",
        f"a multiple of --num-attention-heads {model.num_attention_heads}",
        f"choose {neighbours(model.hidden_size, model.num_attention_heads)}, or give --kv-channels",
    )


def tensor_parallel_divides_heads(config: PretrainConfig) -> None:
    """Every tensor-parallel rank holds the same number of query heads."""
    heads, ranks = config.model.num_attention_heads, config.parallel.tensor_model_parallel_size
    require(
        heads % ranks == 0,
        f"--num-attention-heads {heads}",
        f"a multiple of --tensor-model-parallel-size {ranks}",
        f"choose {neighbours(heads, ranks)} heads, or another tensor-parallel size",
    )


def query_groups_fit(config: PretrainConfig) -> None:
    """Groups divide the heads, and go evenly with the tensor-parallel ranks."""
    model, ranks = config.model, config.parallel.tensor_model_parallel_size
    heads, groups = model.num_attention_heads, config.num_query_groups
    require(
        heads % groups == 0,
        f"--num-query-groups {groups}",
        f"a divisor of --num-attention-heads {heads}",
        "choose a number of groups that divides the heads",
    )
    require(
        groups % ranks == 0 or ranks % groups == 0,
        f"--num-query-groups {groups}",
        f"a multiple or a divisor of --tensor-model-parallel-size {ranks}",
        f"choose {neighbours(groups, ranks)} groups, or another tensor-parallel size",
    )


def tensor_parallel_divides_ffn(config: PretrainConfig) -> None:
    """Every tensor-parallel rank holds the same part of a feed-forward block."""
    width, ranks = config.ffn_hidden_size, config.parallel.tensor_model_parallel_size
    require(
        width % ranks == 0,
        f"--ffn-hidden-size {width}",
        f"a multiple of --tensor-model-parallel-size {ranks}",
        f"choose {neighbours(width, ranks)}",
    )


def positions_cover_the_sequence(config: PretrainConfig) -> None:
    """The position embedding has an entry for every token."""
    positions, length = config.max_position_embeddings, config.model.seq_length
    require(
        positions >= length,
        f"--max-position-embeddings {positions}",
        f"at least --seq-length {length}",
        f"choose {length} or more, or shorten the sequence",
    )


def rotary_channels_are_even(config: PretrainConfig) -> None:
    """The rotary embedding turns channels in pairs."""
    channels = int(config.kv_channels * config.model.rotary_percent)
    require(
        config.model.position_embedding_type != "rope" or (channels > 0 and channels % 2 == 0),
        f"{channels} rotary channels per head (--kv-channels {config.kv_channels} x --rotary-percent "
        f"{config.model.rotary_percent:g})",
        "an even number",
        "choose --kv-channels or --rotary-percent so that the product is even",
    )


def one_activation(config: PretrainConfig) -> None:
    """SwiGLU and squared ReLU exclude each other."""
    require(
        not (config.model.swiglu and config.model.squared_relu),
        "both --swiglu and --squared-relu",
        "at most one activation function",
        "remove one of them",
    )


CHECKS: tuple[Check, ...] = (
    heads_divide_hidden_size,
    tensor_parallel_divides_heads,
    query_groups_fit,
    tensor_parallel_divides_ffn,
    positions_cover_the_sequence,
    rotary_channels_are_even,
    one_activation,
)
