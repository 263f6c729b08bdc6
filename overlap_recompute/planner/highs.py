"""Runs HiGHS (through SciPy) on a mixed-integer linear program: in this process, or in one that can be ended.

HiGHS cannot be interrupted from Python, and now and then prints lines of its own. `SolverProcess` runs it beside the
caller: Ctrl-C ends it at once, and standard output stays the caller's. The two speak pickle over pipes that nobody else
has.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from overlap_recompute.plan.errors import UserError
from overlap_recompute.planner.policies import Floats

OPTIMAL, OUT_OF_TIME = 0, 1
"""Statuses of `scipy.optimize.milp`; with others there is no solution."""


class SolverError(UserError):
    """The solver is missing, or found nothing in time."""


def missing_scipy() -> SolverError:
    """What to say where SciPy cannot be imported."""
    return SolverError(
        "no SciPy, which this planner needs",
        "an installed scipy >= 1.9",
        "install it (pip install scipy), or use --planner mix",
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """minimize objective x, rows x <= sides, equal_rows x = equal_sides, 0 <= x <= upper."""

    objective: Floats
    rows: Any
    """Sparse matrix."""
    sides: Floats
    equal_rows: Any
    equal_sides: Floats
    upper: Floats
    integral: Floats
    """1 where a variable must be whole."""
    limit_s: float
    gap: float
    """Relative one at which the search may stop."""
    nodes: int | None = None
    """Most nodes of the search tree; None: as many as time allows."""


class Answer(NamedTuple):
    """What came of it."""

    status: int
    values: Floats | None
    bound: float | None


Solver = Callable[[Call], Answer]


def solve_here(call: Call) -> Answer:
    """In this process: Ctrl-C takes effect when the search is over.

    Raises:
        SolverError: SciPy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415
    except ImportError as error:
        raise missing_scipy() from error
    result = milp(
        call.objective,
        integrality=call.integral,
        bounds=Bounds(0, call.upper),
        constraints=[
            LinearConstraint(call.rows, -float("inf"), call.sides),
            LinearConstraint(call.equal_rows, call.equal_sides, call.equal_sides),
        ],
        options={"time_limit": call.limit_s, "mip_rel_gap": call.gap, "node_limit": call.nodes},
    )
    return Answer(int(result.status), result.x, getattr(result, "mip_dual_bound", None))


class SolverProcess:
    """Solves in another process, which is started when it is first needed and ended with the `with` block."""

    __slots__ = ("_process",)

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, call: Call) -> Answer:
        """One search; if it is interrupted the process is ended, and the next call starts another one.

        Raises:
            SolverError: SciPy is not installed, or the process has died.
        """
        try:
            process = self._process = self._process or _start()
            assert process.stdin is not None and process.stdout is not None
            pickle.dump(call, process.stdin)
            process.stdin.flush()
            answer = pickle.load(process.stdout)  # noqa: S301
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.close()
            raise SolverError(
                f"a solver process that ended by itself ({type(error).__name__})",
                "an answer from it",
                "give the machine more memory, or use --planner mix",
            ) from error
        except BaseException:
            self.close()
            raise
        if isinstance(answer, SolverError):
            raise answer
        assert isinstance(answer, Answer)
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what a process that died has not read cannot be written any more
                    if pipe is not None:
                        pipe.close()
            process.wait()

    def __enter__(self) -> "SolverProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start() -> "subprocess.Popen[bytes]":
    """In a session of its own, so that Ctrl-C on a terminal reaches the caller alone."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "overlap_recompute.planner.highs_process"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
    )
