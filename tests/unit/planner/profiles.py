"""Profiles for tests: small random ones, and GPT layers whose times follow from formulas."""

import random

from overlap_recompute.plan.kept_bytes import LayerShape, storage_rows
from overlap_recompute.plan.profile import (
    COMPUTE,
    PROFILE_VERSION,
    EndCost,
    LayerKind,
    Layout,
    LinkFit,
    Origin,
    PassStep,
    Profile,
    StaticRules,
    UnitCost,
)
from overlap_recompute.plan.split import Split
from overlap_recompute.plan.storages import StorageRow

FORWARD, BACKWARD = "tp_forward", "tp_backward"


def profile_of(
    kinds: tuple[LayerKind, ...], layers: tuple[int, ...], split: Split, microbatches: int, *, end_bytes: int = 0
) -> Profile:
    """A profile around layer kinds; what does not matter to planners is small."""
    end = EndCost(
        forward=(PassStep(kind=COMPUTE, name="end", duration_us=30.0),),
        backward=(PassStep(kind=COMPUTE, name="end", duration_us=60.0),),
        parameters=1000,
        kept_bytes=end_bytes,
        transient_bytes=2 * end_bytes,
    )
    return Profile(
        version=PROFILE_VERSION,
        origin=Origin(source="analytic", hardware="none", software=(), taken="2026-01-01", command="tests"),
        model_fingerprint="m",
        model="a model for tests",
        layout=Layout(
            tensor_parallel=2,
            pipeline_parallel=len(split),
            data_parallel=1,
            context_parallel=1,
            expert_parallel=1,
            sequence_parallel=False,
            split=split,
            micro_batch=1,
            sequence=128,
            microbatches=microbatches,
        ),
        kinds=kinds,
        layers=layers,
        embedding=end,
        head=end,
        links=(LinkFit(name="send", alpha_us=5.0, beta_us_per_byte=0.0),),
        boundary_bytes=100,
        static=StaticRules(
            parameter_bytes=2, gradient_bytes=4, main_parameter_bytes=4, state_bytes=8, shards=1, expert_shards=1
        ),
        base_bytes=1000,
        communication_bytes=0,
        tied_embeddings=False,
        update_us=100.0,
    )


def random_kind(rng: random.Random, units: int, *, name: str, windows: float = 1.0) -> LayerKind:
    """A layer of some units in two blocks, each block with a window behind it in forward and in backward.

    Args:
        rng: where numbers come from.
        units: how many.
        name: its fingerprint.
        windows: length of windows relative to the replays of a layer, on average.
    """
    names = [f"u{index}" for index in range(units)]
    times = [float(rng.choice((5, 10, 20, 40, 50, 80, 100)) + rng.randrange(4)) for _ in names]
    reads = [
        tuple(rng.sample(names[max(0, index - 2) : index], k=min(index, rng.choice((0, 1, 1)))))
        for index in range(units)
    ]
    rows = [StorageRow(name="input", nbytes=rng.randrange(50, 150), maker=None, held=True)]
    for unit in names:
        readers = tuple(other for other, sources in zip(names, reads, strict=True) if unit in sources)
        held = not readers or rng.random() < 0.8
        rows.append(
            StorageRow(name=f"{unit} out", nbytes=rng.randrange(50, 400), maker=unit, held=held, replay_readers=readers)
        )
        if rng.random() < 0.3:
            rows.append(StorageRow(name=f"{unit} in", nbytes=rng.randrange(10, 200), maker=unit, held=True))
    cut = rng.randrange(units + 1)
    total_us = sum(times)

    def window(kind: str) -> PassStep:
        length_us = 0.0 if rng.random() < 0.1 else round(total_us * windows * rng.uniform(0.1, 0.5))
        return PassStep(kind=kind, name="all_reduce", duration_us=length_us)

    def compute(what: str, needs: tuple[str, ...] = ()) -> PassStep:
        return PassStep(kind=COMPUTE, name=what, duration_us=total_us, needs=needs)

    return LayerKind(
        fingerprint=name,
        description=name,
        units=tuple(
            UnitCost(
                name=unit,
                forward_us=time_us,
                spread_us=0.0,
                reads=sources,
                is_random=False,
                refusal="it exchanges" if rng.random() < 0.07 else None,
            )
            for unit, time_us, sources in zip(names, times, reads, strict=True)
        ),
        storages=tuple(rows),
        forward=(compute("one"), window(FORWARD), compute("two"), window(FORWARD)),
        backward=(
            compute("two", tuple(names[cut:])),
            window(BACKWARD),
            compute("one", tuple(names[:cut])),
            window(BACKWARD),
        ),
        parameters=100,
        expert_parameters=0,
        transient_bytes=rng.randrange(100),
    )


def transformer_shape(hidden: int, sequence: int, micro_batch: int, tensor_parallel: int, llama: bool) -> LayerShape:
    """Heads of 128 channels, half precision, flash attention."""
    return LayerShape(
        sequence=sequence,
        micro_batch=micro_batch,
        hidden=hidden,
        ffn_hidden=4 * hidden,
        heads=hidden // 128,
        groups=hidden // 128,
        channels=128,
        element_bytes=2,
        rms_norm=llama,
        rotary=llama,
        gated=llama,
        biased=not llama,
        fused_activation=True,
        tensor_parallel=tensor_parallel,
        backend="cuda",
    )


def transformer_reads(llama: bool) -> dict[str, tuple[str, ...]]:
    """What each unit of a layer takes as an argument."""
    return {
        "input_layernorm": (),
        "linear_qkv": ("input_layernorm",),
        "rotary": ("linear_qkv",),
        "core_attention": ("rotary", "linear_qkv") if llama else ("linear_qkv",),
        "pre_mlp_layernorm": (),
        "linear_fc1": ("pre_mlp_layernorm",),
        "activation": ("linear_fc1",),
    }


def transformer_times(shape: LayerShape, tflops: float, memory_gb_per_s: float) -> dict[str, float]:
    """Time of each unit in us: products by their rate, the rest by the bytes that it moves."""
    tokens, hidden, share = shape.tokens, shape.hidden, shape.tensor_parallel
    inner = shape.ffn_hidden * (2 if shape.gated else 1)

    def product_us(out: int) -> float:
        return 2.0 * tokens * hidden * out / tflops / 1e6

    def copy_us(elements: float) -> float:
        return elements * 2 / memory_gb_per_s / 1e3

    return {
        "input_layernorm": copy_us(2 * tokens * hidden),
        "linear_qkv": product_us(3 * hidden // share),
        "rotary": copy_us(4 * tokens * hidden / share),
        "core_attention": 4.0 * tokens * shape.sequence * hidden / share / tflops / 1e6,
        "pre_mlp_layernorm": copy_us(2 * tokens * hidden),
        "linear_fc1": product_us(inner // share),
        "activation": copy_us((inner + shape.ffn_hidden) * tokens / share),
    }


def transformer_kind(
    *,
    hidden: int = 4096,
    sequence: int = 2048,
    micro_batch: int = 1,
    tensor_parallel: int = 4,
    llama: bool = False,
    tflops: float = 200.0,
    memory_gb_per_s: float = 1500.0,
    link_gb_per_s: float = 20.0,
) -> LayerKind:
    """A GPT or Llama layer in half precision on a device of these rates, TP ranks joined by a link of this rate."""
    shape = transformer_shape(hidden, sequence, micro_batch, tensor_parallel, llama)
    times, reads = transformer_times(shape, tflops, memory_gb_per_s), transformer_reads(llama)
    names = [name for name in times if llama or name != "rotary"]
    share, payload = tensor_parallel, shape.tokens * hidden * 2
    reduce_us = 20.0 + 2 * (share - 1) / share * payload / link_gb_per_s / 1e3
    ffn_us, attention_us = times["linear_fc1"] * 2, times["linear_qkv"] * 4 / 3 + times["core_attention"]
    hidden_us = {"ffn": times["linear_fc1"], "attention": times["linear_qkv"]}

    def compute(name: str, duration_us: float, *needs: str) -> PassStep:
        return PassStep(kind=COMPUTE, name=name, duration_us=duration_us, needs=needs)

    def reduce(kind: str, covered_us: float = 0.0) -> PassStep:
        wait_us = max(0.0, reduce_us - covered_us)
        return PassStep(
            kind=kind, name="all_reduce", duration_us=wait_us, hidden_us=reduce_us - wait_us, payload_bytes=payload
        )

    attention = tuple(name for name in ("core_attention", "rotary", "linear_qkv", "input_layernorm") if name in names)
    return LayerKind(
        fingerprint="llama" if llama else "gpt",
        description="Llama layer" if llama else "GPT layer",
        units=tuple(
            UnitCost(name=name, forward_us=round(times[name], 3), spread_us=0.0, reads=reads[name], is_random=False)
            for name in names
        ),
        storages=storage_rows(shape),
        forward=(
            compute("attention", attention_us),
            reduce(FORWARD),
            compute("feed-forward", ffn_us),
            reduce(FORWARD),
        ),
        backward=(
            compute("feed-forward", 2 * ffn_us, "activation", "linear_fc1", "pre_mlp_layernorm"),
            reduce(BACKWARD, hidden_us["ffn"]),
            compute("norm", 20.0, "pre_mlp_layernorm"),
            compute("attention", 2 * attention_us, *attention),
            reduce(BACKWARD, hidden_us["attention"]),
            compute("norm", 20.0, "input_layernorm"),
        ),
        parameters=12 * hidden * hidden // share,
        expert_parameters=0,
        transient_bytes=4 * payload,
    )
