"""Faults: one error that names unit, layer, microbatch and stage, and nothing left behind."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron.overlap.errors import BackwardError
from megatron.overlap.pipeline.errors import PipelineError
from megatron.overlap.session import OverlapSession
from megatron.pretrain.distributed.verdict import ExitCode
from megatron.pretrain.main import main
from overlap_recompute.plan.codec import write_record
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import ReplayError
from tests.unit.model.support import SHAPE, batch
from tests.unit.overlap.support import SETTINGS, Chunks, forward_backward, model_of, session_of
from tests.unit.overlap.test_units import everything_in, fails_in_replay, layers_of
from tests.unit.overlap.test_windows import FakeWork
from tests.unit.plan.samples import sample_plan, sample_profile

HERE = "microbatch 0, chunk 0, pipeline stage 0"


def assert_clean(session: OverlapSession, chunks: Chunks, before: dict[tuple[str, str], Any]) -> None:
    """No hook, window, replay or byte is left; the next step works, and closing takes everything back."""
    assert not session.windows.active and not session.runtime.replaying
    assert session.runtime.last_read is None and not session.runtime.queue.microbatches()
    assert saved_as_it_is()
    forward_backward(session, chunks[0])
    # Only now: autograd keeps the rest of a graph that failed until its next backward pass.
    ledger = session.runtime.ledger
    assert (ledger.kept_bytes, ledger.dropped_bytes, ledger.recomputed_bytes, ledger.prefetched_bytes) == (0, 0, 0, 0)
    session.close()
    after = everything_in(chunks)
    assert after.keys() == before.keys() and all(after[key] is before[key] for key in before)


def saved_as_it_is() -> bool:
    """Whether autograd saves a tensor itself, under nobody's hooks."""
    x = torch.ones(2, requires_grad=True)
    y = x.exp()
    return y.grad_fn._saved_result.data_ptr() == y.data_ptr()


def forward(session: OverlapSession, chunks: Chunks) -> torch.Tensor:
    output, _ = session.forward_step(lambda iterator, model: (model(**batch()), None))(None, chunks[0])
    return output


def boom(gradient: torch.Tensor) -> None:
    raise ArithmeticError("boom")


def test_an_error_in_backward_names_the_unit_that_it_had_read(rank: None) -> None:
    chunks = model_of()
    before = everything_in(chunks)
    with session_of(chunks) as session:
        # The gradient of this weight takes the output of core attention.
        hook = layers_of(chunks)[1].self_attention.linear_proj.weight.register_hook(boom)
        with pytest.raises(BackwardError) as error:
            forward_backward(session, chunks[0])
        assert str(error.value) == (
            f"backward failed after it had read a tensor of unit 'core_attention' of layer 1, {HERE}: "
            "ArithmeticError: boom"
        )
        assert isinstance(error.value.__cause__, ArithmeticError)
        hook.remove()
        del error
        assert_clean(session, chunks, before)


def test_an_error_in_backward_of_a_pipeline_says_the_action_as_well(rank: None) -> None:
    chunks = model_of()

    def fail(session: OverlapSession) -> None:
        with session.step():
            forward(session, chunks).sum().backward()
            raise PipelineError("rank 0 failed at 0B0", ValueError("boom")) from None

    told = f"of layer 0, {HERE}: rank 0 failed at 0B0: ValueError: boom"
    with session_of(chunks) as session, pytest.raises(BackwardError, match=told):
        fail(session)


@pytest.mark.parametrize("place", ["forward", "before"])
def test_an_error_that_is_not_of_backward_is_left_as_it_is(rank: None, place: str) -> None:
    chunks = model_of()
    before = everything_in(chunks)

    def failing(iterator: Any, model: torch.nn.Module) -> Any:
        raise ArithmeticError(place)

    def fail(session: OverlapSession) -> None:
        with session.step():
            if place == "before":
                raise ArithmeticError(place)
            session.forward_step(failing)(None, chunks[0])

    with session_of(chunks) as session:
        with pytest.raises(ArithmeticError, match=place):
            fail(session)
        assert_clean(session, chunks, before)


@pytest.mark.parametrize("pollable", [True, False])
def test_a_replay_that_fails_in_a_window(rank: None, pollable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window ends with the error; the communication goes on, and so does the thread that waits for it."""
    chunks, released = model_of(), threading.Event()
    before, threads = everything_in(chunks), set(threading.enumerate())
    work = FakeWork(polls=1000)
    work.wait = lambda: released.wait(30)  # type: ignore[method-assign,return-value,assignment]

    def fail(session: OverlapSession) -> None:
        with session.step():
            output = forward(session, chunks)
            session.windows.finish(WindowKind.PP_WAIT, work, pollable=pollable)
            output.sum().backward()

    with session_of(chunks) as session:
        fails_in_replay(session, layers_of(chunks)[1].mlp.linear_fc1, monkeypatch)
        with pytest.raises(ReplayError, match="a bad day") as error:
            fail(session)
        assert f"unit 'linear_fc1' of layer 1, {HERE}" in str(error.value)
        assert str(error.value).count("a bad day") == 1
        monkeypatch.undo()
        released.set()
        del error
        assert_clean(session, chunks, before)
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
    assert not set(threading.enumerate()) - threads


def test_the_stage_that_is_named_is_that_of_the_rank(rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = model_of()
    with session_of(chunks, replace(SETTINGS, stage=2, stages=3)) as session:
        hook = layers_of(chunks)[0].self_attention.linear_proj.weight.register_hook(boom)
        with pytest.raises(
            BackwardError, match="'core_attention' of layer 0, microbatch 0, chunk 0, pipeline stage 2:"
        ):
            forward_backward(session, chunks[0])
        hook.remove()
        fails_in_replay(session, layers_of(chunks)[1].mlp.linear_fc1, monkeypatch)
        with pytest.raises(ReplayError, match="'linear_fc1' of layer 1, microbatch 0, chunk 0, pipeline stage 2:"):
            forward_backward(session, chunks[0])


@pytest.mark.parametrize("pollable", [True, False])
def test_a_communication_that_fails_in_a_window(rank: None, pollable: bool) -> None:
    """In the middle of a backward pass, as when a peer is lost: its own error is the cause, and read in the message."""
    chunks = model_of()
    before = everything_in(chunks)
    with session_of(chunks) as session:
        lost = FakeWork(polls=2, error=RuntimeError("Connection closed by peer"))

        def window(gradient: torch.Tensor) -> None:
            session.windows.finish(WindowKind.TP_BACKWARD, lost, pollable=pollable)

        hook = layers_of(chunks)[1].self_attention.linear_proj.weight.register_hook(window)
        with pytest.raises(BackwardError, match=rf"of layer 1, {HERE}: RuntimeError: Connection closed") as error:
            forward_backward(session, chunks[0])
        hook.remove()
        assert error.value.__cause__ is lost.error
        lost.error = None  # its traceback holds the graph
        del error
        assert_clean(session, chunks, before)


def told(capfd: pytest.CaptureFixture[str]) -> str:
    """The only line on standard error."""
    (line,) = capfd.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("policy", "place"),
    [
        ("all:linear_fc3", "--overlap-recompute-policy all:linear_fc3, whose 'linear_fc3' is no unit"),
        ("0:activation,7:all", "--overlap-recompute-policy 0:activation,7:all, whose stage 7 does not exist"),
        ("all:rotary", "whose rotary is not part of a model without --position-embedding-type rope"),
    ],
)
def test_a_name_that_does_not_exist_ends_the_run_before_it_begins(
    policy: str, place: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*SHAPE.split(), "--overlap-recompute", "--overlap-recompute-policy", policy]) == ExitCode.USER_ERROR
    line = told(capfd)
    assert place in line and "expected" in line


def test_a_plan_of_another_model_ends_the_run_before_it_begins(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    write_record(path, sample_plan(sample_profile()))
    flags = ["--overlap-recompute", "--overlap-recompute-plan", str(path)]
    assert main([*SHAPE.split(), *flags]) == ExitCode.USER_ERROR
    line = told(capfd)
    assert f"--overlap-recompute-plan {path}, whose plan." in line and "expected" in line


@pytest.mark.parametrize(("layer", "unit"), [(1, "linear_fc3"), (0, "rotary"), (7, "activation")])
def test_a_plan_that_names_what_the_model_has_not(rank: None, layer: int, unit: str) -> None:
    chunks = model_of()
    before = everything_in(chunks)
    planned = {0: (), 1: ("activation",), layer: (unit,)}
    opening: Callable[[], OverlapSession] = lambda: OverlapSession(replace(SETTINGS, planned=planned), chunks)  # noqa: E731
    with pytest.raises(ConfigError, match=f"a plan that drops {unit} of layer {layer}: it has no such unit"):
        opening()
    assert everything_in(chunks).keys() == before.keys()
