"""What the probe sees kept equals the tables, to the byte, for every choice of units."""

import itertools

import pytest

from overlap_recompute.plan.kept_bytes import LayerShape, storage_rows
from overlap_recompute.plan.layer_units import LAYER_UNITS
from overlap_recompute.plan.storages import brought_back_bytes_of, kept_bytes_of
from tests.unit.model.support import EXPERTS
from tests.unit.overlap.test_kept_bytes import EVERY_CHOICE, SOME_CHOICES, units_of
from tests.unit.overlap_measuring.support import measured

SHAPES = {**EVERY_CHOICE, **SOME_CHOICES}


@pytest.mark.parametrize(("flags", "shape"), SHAPES.values(), ids=SHAPES)
def test_storages_are_those_of_the_table(flags: str, shape: LayerShape) -> None:
    seen = measured(flags, iterations=0).probe.storages
    table = storage_rows(shape)
    units = units_of(shape)
    for count in range(len(units) + 1):
        for dropped in map(frozenset, itertools.combinations(units, count)):
            for rows in (seen[0], seen[1]):
                assert kept_bytes_of(rows, dropped) == kept_bytes_of(table, dropped), f"dropped: {set(dropped)}"
                assert brought_back_bytes_of(rows, dropped) == brought_back_bytes_of(table, dropped)


def test_experts_are_seen_together() -> None:
    probe = measured(EXPERTS, iterations=0).probe
    makers = {row.maker for row in probe.storages[0]}
    assert {None, *LAYER_UNITS} - makers == {"rotary"}
    assert probe.found[0]["linear_fc1"].reads == set(), "what experts take is permuted, and kept"
    assert probe.found[0]["activation"].reads == {"linear_fc1"}


def test_dependencies_and_randomness() -> None:
    rope = "--position-embedding-type rope --attention-dropout 0.1"
    found = measured(rope, iterations=0).probe.found[1]
    assert {name: (sorted(seen.reads), seen.is_random) for name, seen in found.items()} == {
        "input_layernorm": ([], False),
        "linear_qkv": (["input_layernorm"], False),
        "rotary": (["linear_qkv"], False),
        "core_attention": (["linear_qkv", "rotary"], True),
        "pre_mlp_layernorm": ([], False),
        "linear_fc1": (["pre_mlp_layernorm"], False),
        "activation": (["linear_fc1"], False),
    }
