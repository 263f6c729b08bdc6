"""Evaluation, forward passes without gradients, export and state dictionaries of a real model see nothing of it."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch import Tensor, nn

from megatron.overlap.session import OverlapSession
from overlap_recompute.runtime import Journal
from overlap_recompute.runtime.units import UnitForward
from tests.unit.model.support import EXPERTS, LLAMA, batch
from tests.unit.overlap.support import Chunks, forward_backward, model_of, session_of

DROPOUT = "--attention-dropout 0.1 --hidden-dropout 0.1"
MODELS = {"gpt": DROPOUT, "llama": LLAMA, "experts": f"{EXPERTS} {DROPOUT}"}
MASK = torch.zeros(1, 1, 16, 16, dtype=torch.bool)


def inputs() -> tuple[Tensor, Tensor]:
    given = batch()
    return given["input_ids"], given["position_ids"]


def logits_in_evaluation(chunks: Chunks) -> Tensor:
    chunks[0].eval()
    with torch.no_grad():
        found = chunks[0](*inputs(), None)
    chunks[0].train()
    return found


def logits_without_gradients(chunks: Chunks) -> Tensor:
    model_parallel_cuda_manual_seed(1)  # dropout is on
    with torch.no_grad():
        return chunks[0](*inputs(), None)


def logits_outside_of_a_step(chunks: Chunks) -> Tensor:
    chunks[0].eval()
    found: Tensor = chunks[0](*inputs(), None)
    chunks[0].train()
    return found.detach()


EVALUATIONS: tuple[Callable[[Chunks], Tensor], ...] = (
    logits_in_evaluation,
    logits_without_gradients,
    logits_outside_of_a_step,
)


def assert_untouched(session: OverlapSession, journal: Journal) -> None:
    """No unit recorded, no handle, no byte counted, no microbatch to prepare, no window."""
    ledger = session.runtime.ledger
    assert not journal.events
    assert (ledger.kept_bytes, ledger.dropped_bytes, ledger.recomputed_bytes, ledger.prefetched_bytes) == (0, 0, 0, 0)
    assert not session.runtime.queue.microbatches() and session.runtime.queue.upcoming() is None
    assert not session.windows.active
    assert not any(sums.windows for sums in session.windows.log.take().values())


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_between_steps_computes_what_the_plain_model_does(rank: None, name: str) -> None:
    chunks, journal = model_of(MODELS[name]), Journal()
    expected = [run(chunks) for run in EVALUATIONS]
    with session_of(chunks, journal=journal) as session:
        for _ in range(2):
            for run, logits in zip(EVALUATIONS, expected, strict=True):
                assert torch.equal(run(chunks), logits)
                assert_untouched(session, journal)
            # The next evaluation comes after a step that dropped and recomputed; nothing of it may be left.
            forward_backward(session, chunks[0])
            assert journal.events
            journal.clear()
            session.windows.log.take()


def test_a_step_without_gradients_drops_nothing(rank: None) -> None:
    """As when a trainer runs its forward step under no_grad, inside of a step."""
    chunks, journal = model_of(LLAMA), Journal()
    expected = logits_without_gradients(chunks)
    with session_of(chunks, journal=journal) as session:
        step = session.forward_step(lambda iterator, model: (model(*inputs(), None), None))
        with session.step(), torch.no_grad():
            output, _ = step(None, chunks[0])
        assert torch.equal(output, expected)
        assert_untouched(session, journal)


def state_of(chunks: Chunks) -> dict[str, Any]:
    model = chunks[0].module
    return {**model.state_dict(), **{f"sharded {key}": value for key, value in model.sharded_state_dict().items()}}


@pytest.mark.parametrize("name", MODELS)
def test_state_dictionaries_have_the_same_keys_and_the_same_tensors(rank: None, name: str) -> None:
    chunks = model_of(MODELS[name])
    plain = state_of(chunks)
    with session_of(chunks) as session:
        forward_backward(session, chunks[0])
        ours = state_of(chunks)
    assert list(ours) == list(plain)
    tensors = {key: value for key, value in plain.items() if isinstance(value, Tensor)}
    assert len(tensors) > 10
    assert all(ours[key].data_ptr() == tensor.data_ptr() for key, tensor in tensors.items())


def exported(model: nn.Module) -> list[str]:
    program = torch.export.export(model, (*inputs(), None), strict=False)
    return [f"{node.op} {node.target} {node.args}" for node in program.graph.nodes]


def traced(model: nn.Module) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants in the trace, and that tracing is deprecated
        graph = torch.jit.trace(model, (*inputs(), MASK), check_trace=False).inlined_graph
    return [node.kind() for node in graph.nodes()]


@pytest.mark.parametrize("export", [exported, traced])
@pytest.mark.parametrize("flags", ["", LLAMA], ids=["gpt", "llama"])
def test_export_sees_the_plain_model(rank: None, flags: str, export: Callable[[nn.Module], list[str]]) -> None:
    # Two models: rotary embedding caches its frequencies, and an export leaves fake ones there.
    plain = export(model_of(flags)[0].module.eval())
    assert len(plain) > 100
    chunks = model_of(flags)
    model = chunks[0].module.eval()
    with session_of(chunks):
        assert any(isinstance(vars(module).get("forward"), UnitForward) for module in model.modules())
        assert export(model) == plain
