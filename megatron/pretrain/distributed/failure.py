"""The outermost frame of a run: every way to end becomes one clear message and an exit status (docs/faults.md)."""

import contextlib
import faulthandler
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping

from megatron.pretrain.distributed.last_words import leave, say
from megatron.pretrain.distributed.liveness import exit_code_of
from megatron.pretrain.distributed.settle import one_line
from megatron.pretrain.distributed.verdict import ExitCode, OwnFailure, PeerFailure
from overlap_recompute.plan.errors import ClusterError, UserError

__all__ = ["ExitCode", "leave", "run_guarded"]

RANK_VARIABLES = ("RANK", "SLURM_PROCID")
LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "SLURM_LOCALID")
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"


def run_guarded(main: Callable[[], int], environ: Mapping[str, str] | None = None) -> int:
    """Run `main` and turn whatever comes out of it into an exit status, with one message where it belongs.

    A `UserError` becomes one line. Before the ranks have met, only the first rank of each host writes it, since all
    find the same; but a `ClusterError` is a rank's own.
    An unexpected exception prints its traceback on the rank where it happened; a rank that stops because of another one
    names that one. `SystemExit` (from --help) passes. End the process with `leave(code)` after a failure.

    Args:
        main: returns the exit status of a run that ended by itself.
        environ: the launcher's environment; the process's own by default.

    Returns:
        The exit status: see `ExitCode`.
    """
    environ = os.environ if environ is None else environ
    rank = _number(environ, RANK_VARIABLES)
    with contextlib.suppress(RuntimeError, ValueError, OSError):  # standard error may be no file
        faulthandler.enable()  # a crash in native code then says where
    try:
        return main()
    except PeerFailure as failure:
        found_here_too = (
            isinstance(failure.__cause__, UserError) and one_line(failure.__cause__) == failure.verdict.detail
        )
        return ExitCode.USER_ERROR if found_here_too else exit_code_of(failure.verdict)
    except OwnFailure as failure:
        return _own_error(rank, failure.__cause__ or failure, environ, tell=True)
    except KeyboardInterrupt:
        say(rank, "interrupted")
        return ExitCode.INTERRUPTED
    except Exception as error:
        first_here = _number(environ, LOCAL_RANK_VARIABLES) == 0
        return _own_error(rank, error, environ, tell=first_here or isinstance(error, ClusterError))


def _own_error(rank: int, error: BaseException, environ: Mapping[str, str], *, tell: bool) -> int:
    _record(error, environ)
    if isinstance(error, UserError):
        if tell:
            say(rank, f"error: {error}")
        return ExitCode.USER_ERROR
    traceback.print_exception(error)
    say(rank, f"failed: {type(error).__name__}: {error}")
    return ExitCode.CRASH


def _record(error: BaseException, environ: Mapping[str, str]) -> None:
    """Leave the error where torchrun's agent looks for it (torch/distributed/elastic/multiprocessing/errors).

    The agent prints what it finds as the call stack, in its summary; a fault of the user needs none.
    """
    path = environ.get(ERROR_FILE_VARIABLE)
    if not path:
        return
    is_users = isinstance(error, UserError)
    message = {
        "message": f"{type(error).__name__}: {error}",
        "extraInfo": {
            "py_callstack": f"none; {error}" if is_users else "".join(traceback.format_exception(error)),
            "timestamp": str(int(time.time())),
        },
    }
    with contextlib.suppress(OSError):
        descriptor, unfinished = tempfile.mkstemp(dir=os.path.dirname(path) or ".")
        with os.fdopen(descriptor, "w") as stream:
            json.dump({"message": message}, stream)
        os.replace(unfinished, path)


def _number(environ: Mapping[str, str], names: tuple[str, ...]) -> int:
    text = next((environ[name] for name in names if name in environ), "0")
    return int(text) if text.isdecimal() else 0
