"""Data-parallel communication starts at the very moments at which Megatron-Core's own schedules start it."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from tests.unit.schedules.stock import Group, SilentCommunicator, TransformerConfig, schedules

from .support import Passes, interpreter_of, program_of

PLAIN = [(pp, 1, microbatches) for pp in (2, 3, 4) for microbatches in (1, 2, 3, 6)]
INTERLEAVED = [(2, 2, 2), (2, 2, 4), (2, 3, 4), (3, 2, 3), (4, 2, 8), (4, 3, 4)]


class Chunk(torch.nn.Module):
    """A model chunk of which only the configuration is asked."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, self.model_type = config, None


class Held:
    """What `no_sync` returns."""

    def __init__(self, record: list[str], name: str) -> None:
        self.record, self.name = record, name

    def __enter__(self) -> None:
        self.record.append(f"hold {self.name}")

    def __exit__(self, *error: object) -> None:
        self.record.append(f"release {self.name}")


def config_of(record: list[str], pp: int, vpp: int, *, grad_sync: bool, param_sync: bool) -> Any:
    def each(make: Any) -> Any:
        functions = [make(str(chunk)) for chunk in range(vpp)]
        return functions if vpp > 1 else functions[0]

    config = schedules_config(pp, vpp)
    config.no_sync_func = each(lambda chunk: lambda: Held(record, chunk))
    config.grad_sync_func = each(lambda chunk: lambda _: record.append(f"reduce {chunk}")) if grad_sync else None
    config.param_sync_func = (
        each(lambda chunk: lambda _: record.append(f"gather {chunk}")) if param_sync and vpp > 1 else None
    )
    return config


def schedules_config(pp: int, vpp: int) -> Any:
    return TransformerConfig(
        num_layers=pp * vpp,
        hidden_size=1,
        num_attention_heads=1,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
        pipeline_dtype=torch.float32,
    )


def stock_events(sizes: tuple[int, int, int], rank: int, forward_only: bool, **functions: bool) -> list[str]:
    pp, vpp, microbatches = sizes
    record: list[str] = []
    config = config_of(record, pp, vpp, **functions)
    group, single = Group(pp, rank), Group(1, 0)

    def forward_step(*_: Any, current_microbatch: int, vp_stage: int | None = None, **__: Any) -> tuple[list[Any], int]:
        record.append(f"{vp_stage or 0}F{current_microbatch}")
        return [None], 0

    run = schedules.get_forward_backward_func(pp, vpp if vpp > 1 else None)
    backward_step = lambda *_: record.append("B")  # noqa: E731
    with mock.patch.multiple(schedules, forward_step=forward_step, backward_step=backward_step):
        run(
            forward_step_func=None,
            data_iterator=[None] * vpp,
            model=[Chunk(config) for _ in range(vpp)],
            num_microbatches=microbatches,
            seq_length=1,
            micro_batch_size=1,
            forward_only=forward_only,
            p2p_communicator=SilentCommunicator(config, group),
            pg_collection=SimpleNamespace(tp=single, cp=single, embd=None, pos_embd=None, pp=group, dp_cp=single),
        )
    return record


def our_events(sizes: tuple[int, int, int], rank: int, forward_only: bool, **functions: bool) -> list[str]:
    pp, vpp, microbatches = sizes
    record: list[str] = []
    config = config_of(record, pp, vpp, **functions)
    chunks = [Chunk(config) for _ in range(vpp)]
    program = program_of(pp, rank, microbatches, chunks=vpp, forward_only=forward_only)
    interpreter_of(program, record, passes=Passes(record), config=config, stage=rank, chunks=chunks).run()
    return [event for event in record if not event.startswith(("post ", "send ", "sent "))]


@pytest.mark.parametrize("sizes", PLAIN + INTERLEAVED, ids=str)
@pytest.mark.parametrize("grad_sync", [False, True])
@pytest.mark.parametrize("param_sync", [False, True])
def test_reductions_start_when_stocks_do(sizes: tuple[int, int, int], grad_sync: bool, param_sync: bool) -> None:
    for rank in range(sizes[0]):
        functions = {"grad_sync": grad_sync, "param_sync": param_sync}
        ours = our_events(sizes, rank, False, **functions)
        assert ours == stock_events(sizes, rank, False, **functions), rank
        assert sum(event.startswith("reduce") for event in ours) <= sizes[1]


def test_an_evaluation_starts_no_reduction() -> None:
    for sizes in ((2, 1, 3), (2, 2, 4)):
        for rank in range(sizes[0]):
            ours = our_events(sizes, rank, True, grad_sync=True, param_sync=True)
            stock = stock_events(sizes, rank, True, grad_sync=True, param_sync=True)
            # Stock code does not leave `no_sync` after an evaluation; the next step's would be the one inside.
            held = [f"release {chunk}" for chunk in reversed(range(sizes[1]))]
            assert ours == stock + held


def test_functions_may_be_missing_or_one_for_all_chunks() -> None:
    program = program_of(2, 0, 2, chunks=2)
    config = schedules_config(2, 2)
    record: list[str] = []
    config.grad_sync_func = lambda parameters: record.append("reduce")
    interpreter_of(program, record, config=config, chunks=[Chunk(config)] * 2).run()
    assert record.count("reduce") == 2
