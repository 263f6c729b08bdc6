"""Layers over stages and chunks, and the table of what a layer keeps."""

import pytest

from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.split import even_split, layer_count, layers_of, layout_text
from overlap_recompute.plan.storages import brought_back_bytes_of, kept_bytes_of
from tests.unit.plan.samples import KIND


def test_layers_are_numbered_through_virtual_stages() -> None:
    assert layers_of(((1, 3), (2, 1))) == ((range(0, 1), range(3, 6)), (range(1, 3), range(6, 7)))
    assert layer_count(((1, 3), (2, 1))) == 7


@pytest.mark.parametrize(
    ("split", "text"),
    [
        (((3,), (5,)), "Et*3|t*5L"),
        (((1,), (2,), (0,)), "Et|t*2|L"),
        (((0,), (2,)), "E|t*2L"),
        (((1, 2), (2, 1)), "Et|t*2|t*2|tL"),
        (((4,),), "Et*4L"),
    ],
)
def test_layout_text(split: tuple[tuple[int, ...], ...], text: str) -> None:
    assert layout_text(split) == text


def test_layers_that_cannot_be_shared_evenly_are_refused() -> None:
    assert even_split(8, 2, 2) == ((2, 2), (2, 2))
    with pytest.raises(ConfigError, match="multiple of 4"):
        even_split(6, 2, 2)


@pytest.mark.parametrize(
    ("dropped", "kept", "back"),
    [
        ((), 600, 0),  # input, what the norm and the activation put out
        (("act",), 600, 400),  # what fc put out is now needed to replay the activation
        (("fc", "act"), 200, 800),
        (("norm", "fc", "act"), 100, 900),
        (("fc",), 600, 0),  # autograd does not hold what fc puts out: dropping it alone changes nothing
    ],
)
def test_what_is_kept_and_brought_back(dropped: tuple[str, ...], kept: int, back: int) -> None:
    assert kept_bytes_of(KIND.storages, set(dropped)) == kept
    assert brought_back_bytes_of(KIND.storages, set(dropped)) == back


def test_part_of_what_is_brought_back() -> None:
    assert brought_back_bytes_of(KIND.storages, {"fc", "act"}, {"act"}) == 400
