import logging
import pickle

import pytest
from torch.distributed.checkpoint import CheckpointException

from megatron.pretrain.checkpoint.layout import ParallelLayout
from megatron.pretrain.checkpoint.ranks import attempt
from overlap_recompute.plan.errors import CheckpointError, DataError


def raising(error: BaseException, cause: BaseException | None = None) -> None:
    try:
        if cause:
            raise cause
    except BaseException:
        raise error  # noqa: B904 (implicitly chained, as torch's native code does)
    raise error


def outcome(error: BaseException, cause: BaseException | None = None) -> str:
    failure, value = attempt("saving iteration 7", 3, lambda: raising(error, cause))
    assert value is None
    assert str(pickle.loads(pickle.dumps(failure))) == str(failure)  # noqa: S301 (made above)
    return str(failure)


def test_success_passes_through() -> None:
    assert attempt("s", 0, lambda: 5) == (None, 5)


def test_a_users_error_stays_as_it_is() -> None:
    error = DataError("a", "b", "c")
    assert outcome(error) == str(error)


def test_a_full_disk_is_named_with_rank_and_step() -> None:
    text = outcome(OSError(28, "No space left on device", "/x"))
    assert "OSError on rank 3 while saving iteration 7: [Errno 28] No space left on device: '/x'" in text
    assert "free space" in text


def test_a_full_disk_is_found_behind_torchs_own_error() -> None:
    text = outcome(RuntimeError("unexpected pos 704 vs 598"), OSError(28, "No space left on device"))
    assert "No space left" in text
    assert "unexpected pos" not in text


def test_the_lowest_failing_rank_of_torchs_collectives_is_named() -> None:
    failures = {5: (OSError(5, "Input/output error"), None), 2: (KeyError("decoder"), None)}
    assert "KeyError on rank 2" in outcome(CheckpointException("read", failures))
    inner = CheckpointError("__2_0.distcp", "x", "y")
    assert outcome(CheckpointException("read", {1: (inner, None)})) == str(inner)


def test_a_fault_of_ours_leaves_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outcome(OSError(28, "No space left on device"))
    assert not caplog.records
    assert "TypeError on rank 3" in outcome(TypeError("unexpected"))
    assert "Traceback" in caplog.text


def test_an_interrupt_is_not_caught() -> None:
    with pytest.raises(KeyboardInterrupt):
        attempt("s", 0, lambda: raising(KeyboardInterrupt()))


def test_layouts_are_compared_field_by_field() -> None:
    layout = ParallelLayout(
        world_size=4, tensor=2, pipeline=2, virtual_pipeline=1, context=1, expert=1, expert_tensor=1, device="cpu"
    )
    assert layout.differences(layout.to_json()) == []
    saved = {**layout.to_json(), "tensor": 4, "pipeline": 1}
    del saved["device"]
    assert layout.differences(saved) == ["tensor 4 (now 2)", "pipeline 1 (now 2)", "device None (now cpu)"]
