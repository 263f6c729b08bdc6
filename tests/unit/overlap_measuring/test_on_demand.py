"""A run that is measured while everything is dropped: the same numbers, less memory, the same record."""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch import Tensor

from megatron.overlap.measuring.finish import record_of
from megatron.overlap.measuring.lean import lean_session, shared_counted
from megatron.overlap.measuring.passes import BEFORE, BEHIND
from megatron.overlap.measuring.records import EndRecord, KindRecord, RankRecord
from megatron.overlap.measuring.session import MeasuringSession
from overlap_recompute.plan.counted import CountedModel
from overlap_recompute.plan.profile import Pass
from overlap_recompute.plan.storages import brought_back_bytes_of, kept_bytes_of
from tests.unit.model.support import CPU, batch
from tests.unit.overlap.support import Chunks, model_of
from tests.unit.overlap_measuring.support import COUNTED, measured

Counted = Mapping[str, CountedModel]
NOTHING: frozenset[str] = frozenset()


def seed(number: int) -> None:
    torch.manual_seed(number)
    model_parallel_cuda_manual_seed(number)


def trained(chunks: Chunks, session: MeasuringSession | None) -> list[Tensor]:
    """Losses of two iterations of two microbatches that are in flight together, and all gradients of the last one."""
    seed(2)
    (chunk,) = chunks
    found: list[Tensor] = []

    def forward(iterator: Any, model: Any) -> tuple[Tensor, Any]:
        return model(**batch(len(found))), torch.sum

    step = forward if session is None else session.forward_step(forward)
    for number in range(2):
        chunk.zero_grad_buffer()
        losses = []
        if session is None:
            losses = [torch.sum(step(None, chunk)[0]) for _ in range(2)]
            for loss in losses:
                loss.backward()
        else:
            with session.iteration(number > 0), session.step():
                for _ in range(2):
                    output, end = step(None, chunk)
                    losses.append(end(output))
                for loss in losses:
                    loss.backward()
                del output
            session.sort()
        found += [loss.detach() for loss in losses]
        losses.clear()
    return [*found, *(parameter.main_grad.clone() for parameter in chunk.parameters())]


@pytest.mark.parametrize("flags", COUNTED)
def test_no_number_changes_and_all_is_taken_back(flags: str, counted: Counted) -> None:
    seed(1)
    plain = trained(model_of(flags), None)
    seed(1)
    chunks = model_of(flags)
    before = {path: set(module.__dict__) for path, module in chunks[0].named_modules()}
    session = MeasuringSession(chunks, CPU, counted=counted[flags])
    lean = trained(chunks, session)
    session.close()
    session.close()
    assert len(plain) > 20
    assert all(torch.equal(one, other) for one, other in zip(plain, lean, strict=True))
    after = {path: set(module.__dict__) for path, module in chunks[0].named_modules()}
    assert before == after
    assert not any("forward" in attributes for attributes in after.values())


@pytest.mark.parametrize("flags", COUNTED)
def test_it_keeps_what_a_run_on_demand_keeps(flags: str, counted: Counted) -> None:
    session = measured(flags, iterations=1, counted=counted[flags])
    rows, found = session.probe.storages, session.probe.found
    ends_bytes = kept_bytes_of((*rows[BEFORE], *rows[BEHIND]), NOTHING)
    on_demand_bytes = ends_bytes + sum(kept_bytes_of(rows[layer], set(found[layer])) for layer in (0, 1))
    plain_bytes = ends_bytes + sum(kept_bytes_of(rows[layer], NOTHING) for layer in (0, 1))
    assert session.kept_peak_bytes is not None
    assert session.kept_peak_bytes < 0.6 * plain_bytes
    assert session.kept_peak_bytes == pytest.approx(on_demand_bytes, rel=0.05)
    assert measured(flags, iterations=0).kept_peak_bytes is None


def record(flags: str, counted: CountedModel | None) -> RankRecord:
    chunks = model_of(flags)
    session = measured(flags, iterations=1, counted=counted)
    return record_of(session, chunks, stage=0, stages=1, links=(), base_bytes=0, device=CPU)


def shape_of(steps: Pass) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(step.kind, step.name, step.needs) for step in steps]


@pytest.mark.parametrize("flags", COUNTED)
def test_the_record_is_that_of_plain_training_but_for_times(flags: str, counted: Counted) -> None:
    plain, lean = record(flags, None), record(flags, counted[flags])
    for kind, same in zip(plain.kinds, lean.kinds, strict=True):
        assert (kind.fingerprint, kind.layers, kind.samples) == (same.fingerprint, same.layers, same.samples)
        named = [[(u.name, u.reads, u.is_random, u.refusal) for u in each.units] for each in (kind, same)]
        assert named[0] == named[1]
        assert all(unit.forward_us > 0 for unit in same.units)
        same_storages(kind, same)
        assert shape_of(kind.forward) == shape_of(same.forward)
        assert shape_of(kind.backward) == shape_of(same.backward)
    for one, other in ((plain.embedding, lean.embedding), (plain.head, lean.head)):
        assert one is not None and other is not None
        assert shape_of(one.forward) == shape_of(other.forward)
        assert shape_of(one.backward) == shape_of(other.backward)
    assert kept_by(lean.head) == kept_by(plain.head)
    # The embedding keeps tokens and positions: here a few bytes, of a loader parts of one tensor of four such rows.
    assert 0 <= kept_by(lean.embedding) - kept_by(plain.embedding) < 4 * 2 * 16 * 8
    assert lean.word_parameters == plain.word_parameters


def same_storages(one: KindRecord, other: KindRecord) -> None:
    """To the byte, whatever is dropped."""
    names = [unit.name for unit in one.units if unit.refusal is None]
    for size in range(len(names) + 1):
        for dropped in map(frozenset, itertools.combinations(names, size)):
            for bytes_of in (kept_bytes_of, brought_back_bytes_of):
                assert bytes_of(one.storages, dropped) == bytes_of(other.storages, dropped), set(dropped)


def kept_by(end: EndRecord | None) -> int:
    assert end is not None
    return kept_bytes_of(end.storages, NOTHING)


def test_what_was_counted_reaches_every_rank(counted: Counted) -> None:
    model = counted[COUNTED[0]]
    assert shared_counted(model, CPU) == model
    assert shared_counted(None, CPU) is None


def test_without_the_right_model_it_measures_plain_training(counted: Counted, caplog: pytest.LogCaptureFixture) -> None:
    flags, *_ = COUNTED
    chunks, model = model_of(flags), counted[flags]
    other = replace(model, kinds=tuple(replace(kind, fingerprint="another") for kind in model.kinds))
    for wrong, why in ((None, "could not be counted"), (other, "has other layers")):
        session = lean_session(chunks, CPU, wrong)
        assert session.kept_peak_bytes is None
        session.close()
        assert why in caplog.text
    caplog.clear()
    caplog.set_level(logging.WARNING)
    session = lean_session(chunks, CPU, model)
    assert session.kept_peak_bytes == 0
    session.close()
    assert not caplog.text
    assert not any("forward" in module.__dict__ for module in chunks[0].modules())
