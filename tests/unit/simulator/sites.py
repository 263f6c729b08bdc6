"""Layers on hardware for the tests of the analytic cost model."""

from overlap_recompute.plan.kept_bytes import CUDA, FLASH, LayerShape
from overlap_recompute.plan.profile import Profile
from overlap_recompute.simulator.analytic import pass_us
from overlap_recompute.simulator.analytic_links import RankGroup
from overlap_recompute.simulator.analytic_steps import LayerSite
from overlap_recompute.simulator.hardware import Hardware


def gpt_shape(hidden: int, heads: int, tensor_parallel: int, micro_batch: int, **others: object) -> LayerShape:
    """A GPT layer of 2048 tokens in half precision."""
    values: dict[str, object] = {
        "sequence": 2048, "micro_batch": micro_batch, "hidden": hidden, "ffn_hidden": 4 * hidden, "heads": heads,
        "groups": heads, "channels": hidden // heads, "element_bytes": 2, "rms_norm": False, "rotary": False,
        "gated": False, "biased": True, "fused_activation": True, "core": FLASH, "tensor_parallel": tensor_parallel,
        "backend": CUDA,
    }  # fmt: skip
    return LayerShape(**(values | others))  # type: ignore[arg-type]


def site_of(hardware: Hardware, shape: LayerShape) -> LayerSite:
    """The layer's tensor-parallel ranks are neighbours."""
    group = RankGroup(ranks=shape.tensor_parallel, stride=1, gpus_per_node=hardware.gpus_per_node)
    return LayerSite(hardware=hardware, shape=shape, tensor_group=group)


def mfu(profile: Profile) -> float:
    """Of an iteration of 1F1B without recompute: the slowest stage sets the pace, warm-up and cool-down add to it."""
    layout = profile.layout
    stages = []
    for stage, chunks in enumerate(layout.split):
        kind = profile.kinds[0]
        time_us = sum(chunks) * (pass_us(kind.forward) + pass_us(kind.backward))
        for end, where in ((profile.embedding, 0), (profile.head, len(layout.split) - 1)):
            time_us += (pass_us(end.forward) + pass_us(end.backward)) * (stage == where)
        stages.append(time_us)
    iteration_us = max(stages) * (layout.microbatches + layout.pipeline_parallel - 1) + profile.update_us
    tokens = layout.microbatches * layout.micro_batch * layout.sequence
    flops = profile.flops_per_token * tokens / layout.tensor_parallel / layout.pipeline_parallel
    return flops / (iteration_us * 1e-6) / (profile.peak_tflops * 1e12)
