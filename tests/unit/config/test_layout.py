"""The text of a pipeline layout and of an expert pattern."""

import ast
import enum
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import megatron
from megatron.pretrain.config.layout import parse_layout
from megatron.pretrain.config.moe_pattern import moe_layer_pattern
from megatron.pretrain.config.stages import layers_per_chunk
from overlap_recompute.plan.errors import ConfigError
from tests.unit.config.conftest import Parse

PP = "--pipeline-model-parallel-size"
FIRST, LAST = "--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers"


class LayerType(enum.Enum):
    """The kinds of layers that Megatron-Core's parser names."""

    embedding = "E"
    loss = "L"
    decoder = "t"
    mtp = "m"


@functools.cache
def stock_parser() -> Callable[[str], list[list[LayerType]]]:
    """Megatron-Core's own parser, taken out of its source so that this test imports no torch."""
    places = [pathlib.Path(place) for place in megatron.__path__]
    paths = [place / "core/transformer/pipeline_parallel_layer_layout.py" for place in places]
    tree = ast.parse(next(path for path in paths if path.exists()).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    (function,) = [node for node in functions if node.name == "parse_str_to_list"]
    function.decorator_list.clear()
    names: dict[str, Any] = {"re": re, "LayerType": LayerType}
    exec(compile(ast.Module(body=[function], type_ignores=[]), "stock", "exec"), names)
    return names["parse_str_to_list"]


stage_text = st.text(alphabet="t|", min_size=1, max_size=4)
piece = st.one_of(
    stage_text,
    st.tuples(stage_text, st.integers(0, 4)).map(lambda pair: f"({pair[0]})*{pair[1]}"),
    st.integers(0, 12).map(lambda count: f"t*{count}"),
    st.just(","),
)


@given(st.lists(piece, max_size=6).map("".join))
def test_layouts_mean_what_megatron_core_reads(middle: str) -> None:
    text = f"E{middle}L"
    stock = ["".join(layer.value for layer in stage) for stage in stock_parser()(text)]
    assert list(parse_layout(text)) == stock


def test_examples() -> None:
    assert parse_layout("Et*3|(tt|)*2tL") == ("Ettt", "tt", "tt", "tL")
    assert parse_layout("Et,|tt|,L") == ("Et", "tt", "L")
    assert parse_layout("E|t*007L") == ("E", "tttttttL")


@pytest.mark.parametrize("text", ["Et*3|x|L", "Et|(t", "Et*|L", "(t", "et|L", "E t L", "((t|)*2)*2", "Et|m|L", "E1|L"])
def test_a_strange_layout(text: str) -> None:
    with pytest.raises(ConfigError, match="pipeline-model-parallel-layout"):
        parse_layout(text)


@pytest.mark.parametrize("text", ["Et*999999999|L", "E(t*99999|)*99999L", "Et*" + "9" * 5000])
def test_a_huge_layout_is_not_unrolled(text: str) -> None:
    with pytest.raises(ConfigError, match="at most 100000 layers"):
        parse_layout(text)


CHUNKS: dict[str, tuple[tuple[int, ...], ...]] = {
    "": ((8,),),
    f"{PP} 2": ((4,), (4,)),
    f"{PP} 2 --num-layers-per-virtual-pipeline-stage 2": ((2, 2), (2, 2)),
    f"{PP} 2 --num-virtual-stages-per-pipeline-rank 4": ((1,) * 4, (1,) * 4),
    f"{PP} 4 {FIRST} 1 {LAST} 3": ((1,), (2,), (2,), (3,)),
    f"{PP} 2 {LAST} 3": ((5,), (3,)),
    f"{PP} 2 --pipeline-model-parallel-layout Et*5|t*3L": ((5,), (3,)),
    f"{PP} 2 --pipeline-model-parallel-layout Et|t*4|t|t*2L": ((1, 1), (4, 2)),
}


@pytest.mark.parametrize("flags", CHUNKS)
def test_layers_of_every_chunk(parse: Parse, flags: str) -> None:
    expected = CHUNKS[flags]
    config = parse(f"--num-layers 8 {flags}", world_size=4)
    assert layers_per_chunk(config) == expected
    assert config.virtual_pipeline_size == (len(expected[0]) if len(expected[0]) > 1 else None)


PATTERNS = {
    "1": (1, 1, 1, 1),
    "2": (1, 0, 1, 0),
    "9": (1, 0, 0, 0),
    "[0]*1+[1]*3": (0, 1, 1, 1),
    "([0,1])*2": (0, 1, 0, 1),
    "2*[1,0]": (1, 0, 1, 0),
}


@pytest.mark.parametrize("text", PATTERNS)
def test_expert_patterns(text: str) -> None:
    assert moe_layer_pattern(text, 4) == PATTERNS[text]


STRANGE_PATTERNS = [
    *("0", "-1", "", "True", "[1]*3", "[2]*4", "[[1]]*4", "[True]*4", "[1]*[4]", "[1]+1", "(" * 500),
    *("[1]*10**9", "[1]*(9**9)", "[1]*99999999999", "99999999999*[1]", "9*9*9*9*9*9*9*9*9*9*9*9*[1]"),
    *("__import__('os')", "[1 for i in range(4)]"),
]


@pytest.mark.parametrize("text", STRANGE_PATTERNS)
def test_a_strange_expert_pattern(text: str) -> None:
    with pytest.raises(ConfigError, match="--moe-layer-freq"):
        moe_layer_pattern(text, 4)
