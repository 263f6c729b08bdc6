"""Records go through a line unchanged, and what is not a record is refused with its fault."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron.pretrain.logs.records import IterationRecord, RunFacts, perplexity_of
from megatron.pretrain.logs.wire import LineError, decode, encode, parse, to_json_value
from tests.unit.logs.samples import EVALUATION, EVENT, FACTS, ITERATION


@pytest.mark.parametrize("record", [FACTS, ITERATION, EVALUATION, EVENT], ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was(record: Any) -> None:
    line = encode(record, 1.5)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(parse(line)) == record


@settings(max_examples=50)
@given(
    loss=st.none() | st.floats(),
    timers=st.dictionaries(st.text(), st.floats(allow_nan=False)),
    zeros=st.none() | st.integers(),
)
def test_any_figure_survives_strict_json(loss: float | None, timers: dict[str, float], zeros: int | None) -> None:
    by_rank = {name: (time, 0.0) for name, time in timers.items()}
    record = replace(ITERATION, loss=loss, timers_ms=timers, timers_by_rank_ms=by_rank, num_zeros=zeros)
    line = encode(record, 0.0)
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    back = decode(parse(line))
    assert isinstance(back, IterationRecord)
    both_nan = loss is not None and math.isnan(loss) and back.loss is not None and math.isnan(back.loss)
    assert both_nan or back.loss == loss
    assert (back.timers_ms, back.timers_by_rank_ms, back.num_zeros) == (timers, by_rank, zeros)


def test_a_run_line_names_the_schema_first() -> None:
    assert encode(FACTS, 0.0).startswith(b'{"kind":"run","schema":"pretrain-metrics/1",')


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"loss": "low"}, "\"loss\" is 'low'"),
        ({"loss": True}, '"loss" is True'),
        ({"iteration": 1.5}, '"iteration" is 1.5'),
        ({"iteration": None}, '"iteration" is None'),
        ({"timers_ms": [1]}, '"timers_ms"'),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, object], fault: str) -> None:
    with pytest.raises(LineError, match=fault):
        decode({**parse(encode(ITERATION, 0.0)), **change})


def test_a_missing_field_is_named_and_an_optional_one_may_be_missing() -> None:
    value = dict(parse(encode(replace(ITERATION, num_zeros=7), 0.0)))
    del value["num_zeros"]
    assert decode(value) == ITERATION
    del value["elapsed_ms"]
    with pytest.raises(LineError, match='no "elapsed_ms"'):
        decode(value)


def test_fields_and_kinds_of_later_versions_are_left_out() -> None:
    assert decode({**parse(encode(EVENT, 0.0)), "later": 1}) == EVENT
    assert decode({"kind": "later"}) is None


def test_another_schema_is_refused() -> None:
    with pytest.raises(LineError, match="schema 'pretrain-metrics/2' instead of"):
        decode({**parse(encode(FACTS, 0.0)), "schema": "pretrain-metrics/2"})


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b"null", b"\xff", b'{"iteration":1}', b'{"kind":1}', b"\0\0\0"])
def test_what_is_not_an_object_with_a_kind_is_refused(line: bytes) -> None:
    with pytest.raises(LineError, match="not "):
        parse(line)


def test_values_of_options_become_json() -> None:
    options = {"path": Path("a/b"), "blend": (0.5, "x"), "facts": FACTS, "third": Fraction(1, 2), "nan": math.nan}
    value = to_json_value(options)
    assert isinstance(value, dict)
    assert value["path"] == "a/b"
    assert (value["blend"], value["third"], value["nan"]) == ([0.5, "x"], 0.5, "nan")
    assert value["facts"]["world_size"] == 4
    with pytest.raises(TypeError, match="cannot write a object"):
        to_json_value({"unknown": object()})


def test_run_facts_say_nothing_about_the_host() -> None:
    host_words = ("host", "user", "addr", "port", "cwd", "pid")
    assert not [name for name in RunFacts.__dataclass_fields__ if any(word in name for word in host_words)]


def test_perplexity_is_capped_and_keeps_nan() -> None:
    assert perplexity_of(0.0) == 1.0
    assert perplexity_of(50.0) == perplexity_of(20.0) == math.exp(20.0)
    assert math.isnan(perplexity_of(math.nan))
