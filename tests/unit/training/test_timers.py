"""Which timers a record shows, and that evaluations are not counted as iterations."""

import pytest
from megatron.core.timers import Timers

from megatron.pretrain.model import build_transformer_config
from megatron.pretrain.training.evaluate import untimed
from megatron.pretrain.training.report import timer_fields
from tests.unit.data.support import make_config

BY_RANK_MS = {"forward-compute": (3.0, 5.0, 4.0), "forward-send": (0.0, 2.0, 0.0)}
LARGEST = {"forward-compute": 5.0, "forward-send": 2.0}


@pytest.mark.parametrize(
    ("option", "more"),
    [
        ("max", {}),
        ("minmax", {"timers_min_ms": {"forward-compute": 3.0, "forward-send": 2.0}}),
        ("all", {"timers_by_rank_ms": BY_RANK_MS}),
    ],
)
def test_the_option_decides_which_ranks_are_shown(option: str, more: dict[str, object]) -> None:
    assert timer_fields(option, BY_RANK_MS) == {"timers_ms": LARGEST, **more}


def test_schedules_find_no_timers_while_a_model_is_evaluated() -> None:
    config = build_transformer_config(make_config("--mock-data --vocab-size 30"))
    config.timers = timers = Timers(2, "max")
    with untimed(config):
        assert config.timers is None
    assert config.timers is timers
