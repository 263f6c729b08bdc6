"""What is counted with fake tensors equals, to the byte, what the runtime keeps and drops on real ones."""

from collections.abc import Iterable

import pytest
import torch

from megatron.overlap.counting.model import count
from overlap_recompute.plan.counted import CountedModel
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.plan.storages import brought_back_bytes_of, kept_bytes_of
from overlap_recompute.runtime import Decision, Policy, UnitDecision
from tests.unit.model.support import EXPERTS, LLAMA, VOCAB, batch, config_of, one_rank
from tests.unit.overlap.support import model_of, reports_of, session_of

HEAD_AND_EMBEDDING = -1
DROPOUT = "--attention-dropout 0.1 --hidden-dropout 0.1"
MODELS = {
    "gpt": "",
    "gpt bf16": "--bf16",
    "gpt dropout": DROPOUT,
    "gpt unfused": f"{DROPOUT} --attention-backend unfused --no-bias-gelu-fusion",
    "llama": LLAMA,
    "llama bf16": f"{LLAMA} --bf16 --no-bias-swiglu-fusion",
}
BALANCED = f"{EXPERTS} --moe-router-topk 4 --moe-layer-freq [0,1]"
"""Every token goes to every expert."""


def parts_of_one() -> dict[str, torch.Tensor]:
    """A batch as the loader makes it: parts of one tensor."""
    names = ("input_ids", "labels", "loss_mask", "position_ids")
    found = batch()
    packed = torch.stack([found[name] if name in found else torch.ones_like(found["labels"]) for name in names])
    return dict(zip(names, packed, strict=True)) | {"attention_mask": None, "loss_mask": None}


def compare(flags: str, choices: Iterable[tuple[str, ...]]) -> CountedModel:
    counted = count(config_of(flags), VOCAB)
    with one_rank():
        chunks = model_of(flags)
        with session_of(chunks) as session:
            reports = reports_of(session)
            for units in choices:
                session.runtime.set_policy(policy_of(session.runtime.units, units))
                chunks[0].zero_grad_buffer()
                given = {name: value for name, value in parts_of_one().items() if name != "loss_mask"}
                step = session.forward_step(lambda iterator, model, given=given: (model(**given), None))
                with session.step():
                    output, _ = step(None, chunks[0])
                    output.float().mean().backward()
                    del output
                found = {layer.layer: (layer.kept_bytes, layer.dropped_bytes) for layer in reports.pop().layers}
                for layer, kind in enumerate(counted.layers):
                    rows, dropped = counted.kinds[kind].storages, set(units)
                    expected = kept_bytes_of(rows, dropped), brought_back_bytes_of(rows, dropped)
                    assert found[layer] == expected, f"layer {layer}, dropped: {units}"
                ends = counted.embedding.kept_bytes + counted.head.kept_bytes
                assert found[HEAD_AND_EMBEDDING] == (ends, 0)
    return counted


def policy_of(known: Iterable[tuple[str, int]], units: tuple[str, ...]) -> Policy:
    return Policy(
        rules=tuple(
            UnitDecision(unit=unit, layer=layer, decision=Decision.RECOMPUTE)
            for unit, layer in known
            if unit.rpartition(".")[2] in units
        )
    )


def some_choices(units: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(), units, *((unit,) for unit in units), *(tuple(u for u in units if u != unit) for unit in units)]


def few_choices(units: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(), units, units[::2], units[1::2]]


@pytest.mark.parametrize("name", MODELS)
def test_dense_layers(name: str) -> None:
    units = tuple(unit for unit in LAYER_UNITS if unit != "rotary" or "rope" in MODELS[name])
    counted = compare(MODELS[name], some_choices(units) if name in ("gpt", "llama") else few_choices(units))
    assert len(counted.kinds) == 1
    assert tuple(unit.name for unit in counted.kinds[0].units) == units


def test_layers_with_and_without_experts() -> None:
    units = tuple(unit for unit in LAYER_UNITS if unit != "rotary")
    counted = compare(BALANCED, few_choices(units))
    assert counted.layers == (0, 1)
    assert counted.kinds[1].expert_parameters > 0 == counted.kinds[0].expert_parameters
