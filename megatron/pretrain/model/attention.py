"""Core attention through `torch.nn.functional.scaled_dot_product_attention`, for layers without Transformer Engine.

It fills the `core_attention` place of megatron/core/transformer/attention.py and multi_latent_attention.py (0.16.1),
where the stock module keeps the whole [sequence, sequence] score matrix and refuses context parallelism, packed
sequences and value heads of another size.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, get_cuda_rng_tracker
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from overlap_recompute.plan.errors import ConfigError, UserError

_CAUSAL = frozenset({AttnMaskType.causal, AttnMaskType.padding_causal, AttnMaskType.causal_bottom_right})


class FlashCoreAttention(MegatronModule):
    """Attention over all heads of this tensor-parallel rank.

    Args:
        config: attention dropout, sequence and context parallelism.
        layer_number: 1-based number of the layer; unused, part of the place's signature.
        attn_mask_type: how tokens may see each other when `forward` is not told otherwise.
        attention_type: "self" or "cross"; unused.
        attention_dropout: dropout of attention weights; that of `config` when None.
        softmax_scale: factor on the scores; 1 / sqrt(channels of a query head) when None.
        cp_comm_type: unused; keys and values are always gathered.
        pg_collection: process groups; `cp` is used with context parallelism.
        k_channels, v_channels: head sizes of multi-latent attention; taken from the tensors.

    Raises:
        ConfigError: an option that only the stock attention has.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
    ) -> None:
        super().__init__(config=config)
        _refuse_stock_only_options(config)
        self.attn_mask_type = attn_mask_type
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.softmax_scale = softmax_scale
        self.cp_group = None
        if config.context_parallel_size > 1:
            groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["cp"])
            self.cp_group = groups.cp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [sequence, batch, heads, channels]; [tokens, heads, channels] when packed. With context
                parallelism the sequence is this rank's two chunks, as `get_batch_on_this_cp_rank` cuts them.
            key: [sequence, batch, groups, channels]; groups divide heads (GQA).
            value: [sequence, batch, groups, value channels].
            attention_mask: bool, broadcast to [batch, 1, sequence, sequence], True where a query must not look; None
                for what the mask type says. A query that may look nowhere yields zeros.
            attn_mask_type: replaces that of the constructor.
            attention_bias: must be None.
            packed_seq_params: `cu_seqlens_q` bounds the documents; a token sees only its own.

        Returns:
            [sequence, batch, heads * value channels]; batch is 1 when packed.

        Raises:
            UserError: a bias, padded packing, or a mask or packing together with context parallelism.
        """
        if attention_bias is not None:
            raise _cannot("an attention bias", "drop the bias or train with Transformer Engine")
        mask_type = attn_mask_type or self.attn_mask_type
        if packed_seq_params is not None:
            return self._attend_documents(query, key, value, attention_mask, mask_type, packed_seq_params)
        if self.cp_group is not None:
            return self._attend_across_ranks(query, key, value, attention_mask, mask_type)
        return self._attend(query, key, value, _may_look(attention_mask, mask_type), mask_type in _CAUSAL)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, may_look: Tensor | None, causal: bool) -> Tensor:
        queries, batch, heads, _ = query.shape
        dropout = self.dropout if self.training else 0.0
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=self.softmax_scale)
        # torch aligns a causal mask with the first key; a single query (decoding) sees every key there is.
        causal = causal and may_look is None and queries > 1
        assert not causal or queries == key.shape[0], "a causal mask is for self-attention"
        with self._dropout_generator(dropout):
            if may_look is None:
                out = attend(q, k, v, is_causal=causal, enable_gqa=k.shape[1] != heads)
            else:
                # torch's kernels with a mask have no grouped heads on CUDA; they would fall back to a slow one.
                k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
                out = attend(q, k, v, attn_mask=may_look)
        return out.permute(2, 0, 1, 3).reshape(queries, batch, -1)

    def _dropout_generator(self, dropout: float) -> AbstractContextManager[None]:
        # Tensor-parallel ranks hold different heads and must drop different weights. With sequence parallelism the
        # whole transformer block already runs under the tracker's state.
        if dropout and not self.config.sequence_parallel:
            return get_cuda_rng_tracker().fork()
        return nullcontext()

    def _attend_documents(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        mask_type: AttnMaskType,
        packed: PackedSeqParams,
    ) -> Tensor:
        if self.cp_group is not None or attention_mask is not None or packed.cu_seqlens_q_padded is not None:
            raise _cannot(
                "packed documents with context parallelism, a mask or padding",
                "use --context-parallel-size 1 and unpadded documents, or train with Transformer Engine",
            )
        bounds = packed.cu_seqlens_q.tolist()
        if bounds[0] != 0 or bounds[-1] != query.shape[0]:
            raise UserError(
                found=f"packed documents from token {bounds[0]} to {bounds[-1]} in a sequence of {query.shape[0]}",
                expected="bounds from 0 to the number of tokens",
                next_step="correct cu_seqlens_q",
            )
        parts = []
        for start, end in pairwise(bounds):
            q, k, v = (x[start:end].unsqueeze(1) for x in (query, key, value))
            parts.append(self._attend(q, k, v, None, mask_type in _CAUSAL))
        return torch.cat(parts)

    def _attend_across_ranks(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, mask_type: AttnMaskType
    ) -> Tensor:
        """Gather all keys and values, then let each of this rank's two query chunks look at the keys up to its end.

        The gradient of the gather is a reduce-scatter, so keys and values get the sum over all ranks' queries.
        """
        if attention_mask is not None or mask_type not in _CAUSAL:
            raise _cannot("a mask with context parallelism", "use causal attention or --context-parallel-size 1")
        key_channels = key.shape[-1]
        gathered = gather_from_sequence_parallel_region(torch.cat((key, value), dim=-1), group=self.cp_group)
        assert self.cp_group is not None
        size, rank = self.cp_group.size(), self.cp_group.rank()
        chunks = gathered.chunk(2 * size)
        ordered = torch.cat([chunks[place] for place in zigzag_places(size)])
        keys, values = ordered.split((key_channels, ordered.shape[-1] - key_channels), dim=-1)
        length = query.shape[0] // 2
        outputs = []
        for part, chunk in zip(query.chunk(2), (rank, 2 * size - 1 - rank), strict=True):
            end = (chunk + 1) * length
            looks_back = torch.ones(length, end, dtype=torch.bool, device=query.device).tril(end - length)
            outputs.append(self._attend(part, keys[:end], values[:end], looks_back, causal=False))
        return torch.cat(outputs)


def zigzag_places(ranks: int) -> list[int]:
    """Where each chunk of a sequence lies when every rank's chunks are laid end to end.

    A sequence is cut into `2 * ranks` chunks; rank r holds chunks r and 2 * ranks - 1 - r, so that causal attention
    costs all ranks the same (`get_batch_on_this_cp_rank`, megatron/core/utils.py 0.16.1).

    >>> zigzag_places(2)  # laid end to end: chunks 0, 3 of rank 0, then chunks 1, 2 of rank 1
    [0, 2, 3, 1]
    """
    laid = [chunk for rank in range(ranks) for chunk in (rank, 2 * ranks - 1 - rank)]
    return [laid.index(chunk) for chunk in range(2 * ranks)]


def _may_look(attention_mask: Tensor | None, mask_type: AttnMaskType) -> Tensor | None:
    """The given mask with True and False exchanged, as torch wants it. Only padding_causal adds causality to it."""
    if attention_mask is None:
        return None
    may_look = ~attention_mask
    return may_look.tril() if mask_type is AttnMaskType.padding_causal else may_look


def _refuse_stock_only_options(config: TransformerConfig) -> None:
    refusals = (
        (config.window_size is not None, "sliding-window attention"),
        (config.softmax_type != "vanilla", f"softmax_type {config.softmax_type}"),
        (config.qk_clip or config.log_max_attention_logit, "the largest attention logit"),
    )
    for is_set, what in refusals:
        if is_set:
            raise ConfigError(
                found=f"{what} with --attention-backend flash or auto and no Transformer Engine",
                expected="plain softmax attention",
                next_step="use --attention-backend unfused or Transformer Engine",
            )


def _cannot(what: str, next_step: str) -> UserError:
    return UserError(found=what, expected="an input that FlashCoreAttention supports", next_step=next_step)
