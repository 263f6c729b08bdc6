"""Every way to end a run: message, traceback, exit status."""

import json
import pathlib

import pytest

from megatron.pretrain.distributed.failure import run_guarded
from megatron.pretrain.distributed.settle import may_be_echo, one_line, settle
from megatron.pretrain.distributed.verdict import Cause, ExitCode, OwnFailure, PeerFailure, Verdict
from overlap_recompute.plan.errors import CheckpointError, ClusterError, ConfigError

ENV = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
CONFIG_ERROR = ConfigError(found="6 heads", expected="a multiple of 4", next_step="choose 8")
CHECKPOINT_ERROR = CheckpointError(found="a hole", expected="none", next_step="look")
CLUSTER_ERROR = ClusterError(found="1 rank", expected="2", next_step="look")
VERDICT = Verdict(rank=2, place="host n1", cause=Cause.FAILED, detail=one_line(CHECKPOINT_ERROR))
SILENT = Verdict(rank=2, place="host n1", cause=Cause.SILENT, detail="nothing")
INTERRUPTED = Verdict(rank=2, place="host n1", cause=Cause.INTERRUPTED, detail="Ctrl-C")


def caused(error: BaseException, cause: BaseException | None) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "environ", "code", "lines"),
    [
        (CONFIG_ERROR, {}, ExitCode.USER_ERROR, ["rank 0: error: found 6 heads; expected a multiple of 4; choose 8."]),
        (CONFIG_ERROR, ENV, ExitCode.USER_ERROR, []),
        (CLUSTER_ERROR, ENV, ExitCode.USER_ERROR, ["rank 3: error: found 1 rank"]),
        (caused(OwnFailure("x"), CHECKPOINT_ERROR), ENV, ExitCode.USER_ERROR, ["rank 3: error: found a hole"]),
        (caused(OwnFailure("x"), ValueError("boom")), ENV, ExitCode.CRASH, ["rank 3: failed: ValueError: boom"]),
        (ValueError("boom"), ENV, ExitCode.CRASH, ["Traceback", "rank 3: failed: ValueError: boom"]),
        (PeerFailure(SILENT), ENV, ExitCode.PEER_LOST, []),
        (PeerFailure(INTERRUPTED), ENV, ExitCode.INTERRUPTED, []),
        (caused(PeerFailure(VERDICT), CHECKPOINT_ERROR), ENV, ExitCode.USER_ERROR, []),
        (caused(PeerFailure(SILENT), CHECKPOINT_ERROR), ENV, ExitCode.PEER_LOST, []),
        (KeyboardInterrupt(), ENV, ExitCode.INTERRUPTED, ["rank 3: interrupted"]),
    ],
)
def test_status_and_message(
    error: BaseException, environ: dict[str, str], code: int, lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert run_guarded(main, environ) == code
    printed = capfd.readouterr().err
    assert all(line in printed for line in lines)
    assert bool(printed) == bool(lines)


def test_a_good_end_and_help_pass_through() -> None:
    assert run_guarded(lambda: 0, {}) == 0
    with pytest.raises(SystemExit) as caught:
        run_guarded(lambda: exit(0), {})
    assert caught.value.code == 0


def test_torchruns_agent_finds_the_error(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "error.json"

    def main() -> int:
        raise ValueError("boom")

    run_guarded(main, {"TORCHELASTIC_ERROR_FILE": str(path)})
    message = json.loads(path.read_text())["message"]
    assert message["message"] == "ValueError: boom"
    assert "in main" in message["extraInfo"]["py_callstack"]
    assert message["extraInfo"]["timestamp"].isdecimal()
    assert list(tmp_path.iterdir()) == [path]


def test_torchruns_agent_shows_a_fault_of_the_user_without_a_call_stack(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "error.json"

    def main() -> int:
        raise CONFIG_ERROR

    run_guarded(main, {"TORCHELASTIC_ERROR_FILE": str(path)})
    message = json.loads(path.read_text())["message"]
    assert message["extraInfo"]["py_callstack"] == "none; found 6 heads; expected a multiple of 4; choose 8."


class BackendError(RuntimeError):
    pass


BackendError.__name__ = "DistBackendError"


@pytest.mark.parametrize(
    ("error", "is_echo"),
    [
        (RuntimeError("[pair.cc:553] Connection closed by peer [10.0.0.1]:1"), True),
        (BackendError("unhandled system error"), True),
        (ConnectionResetError(104, "reset"), True),
        (caused(CHECKPOINT_ERROR, RuntimeError("Timed out waiting 1800000ms for recv")), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("gloo is a word"), False),
        (CONFIG_ERROR, False),
    ],
)
def test_only_communication_errors_may_be_echoes(error: BaseException, is_echo: bool) -> None:
    assert may_be_echo(error) is is_echo


def test_one_line_drops_native_frames() -> None:
    assert one_line(RuntimeError("\nfirst\nException raised from x at y.cpp:1\n")) == "RuntimeError: first"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_without_a_watch_an_error_is_this_ranks_own() -> None:
    assert isinstance(settle(ValueError("x"), None), OwnFailure)
    interrupt = KeyboardInterrupt()
    assert settle(interrupt, None) is interrupt
