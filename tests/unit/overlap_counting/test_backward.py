"""The working set of a layer is the peak of what lives in its real backward pass, to the byte."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron.overlap.counting.model import count
from overlap_recompute.plan.actions import Actions, Kind
from overlap_recompute.plan.codec import from_data, to_text
from overlap_recompute.plan.counted import COUNTED_VERSION, CountedModel, memory_profile
from overlap_recompute.plan.memory import layer_kept_bytes, layer_working_set_bytes, stage_memory
from overlap_recompute.plan.profile import PROFILE_VERSION, Profile
from overlap_recompute.runtime.census import own_tensors
from overlap_recompute.runtime.live_bytes import LiveBytes
from overlap_recompute.schedules import pipeline_schedule, with_communication
from tests.unit.model.support import VOCAB, config_of, one_rank
from tests.unit.overlap.support import model_of, session_of
from tests.unit.overlap_counting.test_exact import BALANCED, MODELS, few_choices, policy_of, some_choices

SHAPE = (16, 2, 32)
COUNTS_BYTES = 4 * 8
"""Tokens of each expert, as a real router counts them."""


@contextmanager
def counting_of(chunk: nn.Module) -> Iterator[LiveBytes]:
    """Counts what operations make, and not what the model is made of."""
    with LiveBytes() as live:
        for tensor in own_tensors([chunk]):
            live.record(tensor.untyped_storage())
            if hasattr(tensor, "main_grad"):
                live.record(tensor.main_grad.untyped_storage())
        yield live


def peak_of(layer: nn.Module, chunk: nn.Module, rotary: nn.Module | None, session: Any, live: LiveBytes) -> int:
    """Most that lives, of what a layer and its loss make, while the layer runs backward."""
    dtype = next(layer.parameters()).dtype
    source = torch.randn(SHAPE, dtype=dtype, requires_grad=True)
    weights = torch.randn(SHAPE, dtype=dtype)
    for tensor in (source, weights):
        live.record(tensor.untyped_storage())
    peaks: list[int] = []

    def forward(_: Any, model: nn.Module) -> tuple[Tensor, None]:
        hidden = source * 1
        # The gradient of the input ends the layer's backward pass.
        hidden.register_hook(lambda _: peaks.append(live.peak_bytes))
        output, _ = layer(hidden, attention_mask=None, rotary_pos_emb=frequencies)
        output.register_hook(lambda _: live.start_span())
        return output, None

    before_bytes = live.live_bytes
    # Made anew, not taken from the cache: the angles live through the whole pass.
    frequencies = None if rotary is None else type(rotary).forward.__wrapped__(rotary, SHAPE[0])  # type: ignore[attr-defined]
    with session.step():
        output, _ = session.forward_step(forward)(None, chunk)
        loss = (output * weights).float().sum()
        del output
        loss.backward()
    return peaks.pop() - before_bytes


@pytest.mark.parametrize("name", MODELS)
def test_the_peak_of_a_layer(name: str) -> None:
    (kind,) = memory_profile(count(config_of(MODELS[name]), VOCAB)).kinds
    at_any_time = replace(kind, backward_memory=None)
    units = tuple(unit.name for unit in kind.units)
    with one_rank():
        chunks = model_of(MODELS[name])
        (model,) = chunks
        gpt = next(module for module in model.modules() if hasattr(module, "decoder"))
        with session_of(chunks) as session:
            for choice in some_choices(units):
                session.runtime.set_policy(policy_of(session.runtime.units, choice))
                with counting_of(model) as live:
                    rotary = getattr(gpt, "rotary_pos_emb", None)
                    peak_bytes = peak_of(gpt.decoder.layers[0], model, rotary, session, live)
                dropped = set(choice)
                kept_bytes = layer_kept_bytes(kind, dropped)
                assert kept_bytes + layer_working_set_bytes(kind, dropped) == peak_bytes, f"dropped: {choice}"
                assert kept_bytes + layer_working_set_bytes(at_any_time, dropped) >= peak_bytes, f"dropped: {choice}"


def test_experts_come_back_one_by_one_and_count_together() -> None:
    """No policy takes more than the expression says; a count of tokens for each expert aside."""
    counted = count(config_of(BALANCED), VOCAB)
    kind = memory_profile(counted).kinds[1]
    units = tuple(unit.name for unit in kind.units)
    with one_rank():
        (model,) = chunks = model_of(BALANCED)
        gpt = next(module for module in model.modules() if hasattr(module, "decoder"))
        with session_of(chunks) as session:
            for choice in few_choices(units):
                session.runtime.set_policy(policy_of(session.runtime.units, choice))
                with counting_of(model) as live:
                    peak_bytes = peak_of(gpt.decoder.layers[1], model, None, session, live)
                dropped = set(choice)
                expected_bytes = layer_kept_bytes(kind, dropped) + layer_working_set_bytes(kind, dropped)
                assert expected_bytes >= peak_bytes - COUNTS_BYTES, f"dropped: {choice}"


def test_files_without_steps_are_read() -> None:
    """Then the most that is held besides counts in every step."""
    counted = count(config_of(), VOCAB)
    again = from_data(json.loads(to_text(counted)), CountedModel, COUNTED_VERSION, "the file")
    assert again == counted and again.kinds[0].backward_memory is not None
    data = json.loads(to_text(counted))
    for kind in data["kinds"]:
        del kind["backward_memory"]
    older = from_data(data, CountedModel, COUNTED_VERSION, "an older file")
    assert older.kinds[0].backward_memory is None
    (kind,) = memory_profile(older).kinds
    # One step as the fullest of all: what is kept stays, and the most that lives besides comes on top.
    assert layer_working_set_bytes(kind, set()) == counted.kinds[0].transient_bytes
    profile = json.loads(to_text(memory_profile(counted)))
    del profile["kinds"][0]["backward_memory"]
    assert from_data(profile, Profile, PROFILE_VERSION, "an older file").kinds == (kind,)


def test_a_gradient_from_another_stage_counts_once() -> None:
    """It lives through the whole pass, as a transfer; the layer that it enters holds it as well, the others do not."""
    profile = memory_profile(count(config_of("--num-layers 4"), VOCAB))
    kind = profile.kinds[0]
    alone_bytes = layer_working_set_bytes(kind, set())
    # Where GPT takes most, in the activation's backward pass, the gradient still waits for its residual connection.
    assert layer_working_set_bytes(kind, set(), gradient_is_kept=True) == alone_bytes - profile.boundary_bytes
    first = stage_memory(profile, ((2,), (2,)), 0, {}, (2,))
    assert first.working_set_bytes == alone_bytes - profile.boundary_bytes
    assert first.communication_bytes == 3 * profile.boundary_bytes
    # A layer in front of one that keeps next to nothing has a gradient of its own beside the one that was sent.
    everything = {unit.name for unit in kind.units}
    found = stage_memory(profile, ((2,), (2,)), 0, {1: everything}, (1,))
    assert found.working_set_bytes >= alone_bytes - layer_kept_bytes(kind, everything)


def most_transfers(row: Actions, is_given: bool, has_last: bool, chunks: int) -> int:
    """Most tensors for other stages that a stage holds while a backward pass runs.

    Args:
        row: its actions.
        is_given: the input of its first chunk comes from another stage.
        has_last: the output of its last chunk is the loss.
        chunks: of a stage.
    """
    held = most = 0
    for action in row:
        held += action.kind in (Kind.SEND_F, Kind.SEND_B, Kind.RECV_F, Kind.RECV_B)
        held -= action.kind in (Kind.WAIT_SEND_F, Kind.WAIT_SEND_B)
        # An input counts as kept from its forward pass on; a gradient is held to the end of its backward pass.
        held -= action.kind is Kind.F and (is_given or action.chunk > 0)
        if action.kind is Kind.B:
            most = max(most, held)
            held -= not has_last or action.chunk < chunks - 1
    return most


@pytest.mark.parametrize(("stages", "chunks"), [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_transfers_are_those_of_the_schedule(stages: int, chunks: int) -> None:
    profile = memory_profile(count(config_of(f"--num-layers {stages * chunks}"), VOCAB))
    split = ((1,) * chunks,) * stages
    for microbatches in (stages, 4 * stages):
        found = []
        for stage, row in enumerate(with_communication(pipeline_schedule(stages, chunks, microbatches))):
            most = most_transfers(row, stage > 0, stage == stages - 1, chunks)
            found.append(stage_memory(profile, split, stage, {}, (1,) * chunks).communication_bytes)
            assert found[-1] >= most * profile.boundary_bytes, f"stage {stage}"
            assert microbatches == stages or found[-1] == most * profile.boundary_bytes, f"stage {stage}"
