"""One rank of the memory tests: every layer of this rank keeps and drops exactly what was counted with fake tensors.

Usage: memory_ranks.py LAYOUT. Started by test_memory.py; prints a line per comparison, ends with 1 if any differs.
"""

import sys

from megatron.pretrain.config import PretrainConfig
from megatron.pretrain.data.tokenizers import build_tokenizer, padded_vocab_size
from overlap_recompute.plan.counted import CountedModel
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.plan.policy_text import parse_policy
from overlap_recompute.plan.split import layers_of
from overlap_recompute.plan.storages import brought_back_bytes_of, kept_bytes_of
from overlap_recompute.runtime import StepReport
from tests.distributed.overlap_support import CPU, DROPOUT, GPT, LLAMA, batches, build, config_of, groups

from megatron.overlap.counting.model import count  # isort: skip
from megatron.pretrain.training.overlap import open_overlap  # isort: skip
from megatron.pretrain.training.pipeline import open_pipeline  # isort: skip
from megatron.pretrain.training.step import TrainStep  # isort: skip

POLICIES = ("all", "none", "all:core_attention+activation", "all:input_layernorm+pre_mlp_layernorm+activation")
BY_STAGE = (*POLICIES, "0:all,1:none", "0:activation,1:all")
TP2 = "--tensor-model-parallel-size 2 --global-batch-size 4"
PP2 = "--pipeline-model-parallel-size 2 --global-batch-size 8"
LAYOUTS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "TP2": (
        (f"{GPT} {TP2}", POLICIES),
        (f"{LLAMA} {TP2}", POLICIES),
        (f"{DROPOUT} {TP2} --sequence-parallel", POLICIES),
        (f"{LLAMA} {TP2} --sequence-parallel --bf16", POLICIES),
    ),
    "VPP2": tuple(
        (f"{model} --num-layers 5 {PP2} --pipeline-model-parallel-layout Et|t*2|t|tL", BY_STAGE)
        for model in (GPT, LLAMA)
    ),
}


def reports_of_a_step(config: PretrainConfig) -> StepReport:
    state, found = build(config), []
    with open_overlap(config, state.model, CPU) as overlap:
        runtime = overlap.runtime  # type: ignore[union-attr]
        end = runtime.step_end
        runtime.step_end = lambda: found.append(end()) or found[-1]
        with open_pipeline(config, CPU, overlap.pipeline_waits) as schedule:  # type: ignore[union-attr]
            step = TrainStep(config, overlap=overlap, forward_backward=schedule)
            step(state, [batches(config) for _ in state.model])
    return found[-1]


def differences(config: PretrainConfig, counted: CountedModel, policy: str) -> list[str]:
    stages = config.parallel.pipeline_model_parallel_size
    stage = config.world.rank * stages // config.world.world_size
    units = parse_policy(policy, stages, flag="policy").stages[stage].units
    mine = {layer for chunk in layers_of(counted.layout.split)[stage] for layer in chunk}
    found = [entry for entry in reports_of_a_step(config).layers if entry.layer >= 0]
    wrong = [] if {entry.layer for entry in found} == mine else [f"layers {sorted(mine)}"]
    for entry in found:
        kind = counted.kind_of(entry.layer)
        dropped = {unit.name for unit in kind.units if unit.name in units and unit.refusal is None}
        expected = kept_bytes_of(kind.storages, dropped), brought_back_bytes_of(kind.storages, dropped)
        if (entry.kept_bytes, entry.dropped_bytes) != expected:
            wrong.append(f"layer {entry.layer}: {entry.kept_bytes, entry.dropped_bytes}, counted {expected}")
    return wrong


def main(layout: str) -> int:
    cases = LAYOUTS[layout]
    counted = []
    for flags, _ in cases:
        config = config_of(flags)
        counted.append(count(config, padded_vocab_size(config, build_tokenizer(config))))
        assert {unit.name for kind in counted[-1].kinds for unit in kind.units} <= set(LAYER_UNITS)
    failures = 0
    with groups(cases[0][0]):
        for (flags, policies), model in zip(cases, counted, strict=True):
            for policy in policies:
                arm = f"--overlap-recompute --overlap-recompute-policy {policy}"
                wrong = differences(config_of(flags, arm), model, policy)
                failures += bool(wrong)
                print("differs" if wrong else "equal", "|", flags, "|", policy, "|", "; ".join(wrong[:3]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
