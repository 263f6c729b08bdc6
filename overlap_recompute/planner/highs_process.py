"""`python -m overlap_recompute.planner.highs_process`: HiGHS in a process of its own, see `SolverProcess`."""

import os
import pickle
import sys

from overlap_recompute.planner.highs import Answer, SolverError, solve_here


def serve() -> None:
    """Answer calls from standard input until it ends; HiGHS's own lines go to nobody."""
    answers = os.fdopen(os.dup(1), "wb")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    while True:
        try:
            call = pickle.load(sys.stdin.buffer)  # noqa: S301
        except EOFError:
            return
        try:
            answer: Answer | SolverError = solve_here(call)
        except SolverError as error:
            answer = error
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    serve()
