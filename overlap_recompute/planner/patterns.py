"""How replays fill the windows of a bank: whole numbers of patterns, which say more than one long window.

A pattern is a set of replays, by their times, that a window of some length takes: one that fits, or one that fills the
window and would not without its shortest replay. The program says how many windows of each length take which pattern:

    q[l,k]      windows of length l that take pattern k (whole)      behind all other columns

    [Windows]   sum over k of q[l,k]                            <=  windows of length l
    [Supply]    sum over l, k of (replays of time t in k) q[l,k] <=  sum of y[i,u,bank] of units with time t
    [Filled]    sum of min(t[u], h) y[i,u,bank]  -  sum of min(l, time of k) q[l,k]  -  o[bank]  <=  0

Windows of one length are not told apart, so a packing is looked at once. Any solution with windows is one with
patterns: what is in a window holds a pattern that hides as much. So the bound holds as that of the banks does; only
which replay reads which is still left out inside a bank.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from overlap_recompute.planner.banks import Banks
from overlap_recompute.planner.milp import Program
from overlap_recompute.planner.milp_columns import Row

MOST = 400
"""Patterns of a bank; one that has more stays a long window."""
_EPSILON_US = 1e-9

Pattern = tuple[tuple[int, ...], float]
"""How many replays of each time, and what they hide."""


def patterns_of(length_us: float, times_us: Sequence[float], supply: Sequence[int], most: int) -> list[Pattern] | None:
    """All patterns of a window; None if there are more than `most`.

    Args:
        length_us: of the window.
        times_us: of replays, falling.
        supply: how many there are of each time.
        most: how many patterns are too many.
    """
    found: list[Pattern] = []
    open_ones: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    rest = len(times_us)
    for time_us, count in zip(times_us, supply, strict=True):
        rest -= 1
        following = []
        for chosen, filled_us in open_ones:
            for number in range(count + 1):
                total_us = filled_us + number * time_us
                if total_us >= length_us - _EPSILON_US:
                    found.append(((*chosen, number, *(0,) * rest), length_us))
                    break
                following.append(((*chosen, number), total_us))
        open_ones = following
        if len(open_ones) + len(found) > most:
            return None
    return [*found, *((chosen, filled_us) for chosen, filled_us in open_ones if filled_us > 0)]


def with_patterns(program: Program, banks: Banks, lengths: Sequence[float]) -> Program:
    """The program of the relaxation, with patterns in banks where they are not too many.

    Args:
        program: of the problem with banks.
        banks: where windows went.
        lengths: of the windows.
    """
    rows, upper = list(program.rows), list(program.upper)
    for bank, size in Counter(banks.bank_of).items():
        if size == 1:
            continue
        windows = Counter(lengths[w] for w, other in enumerate(banks.bank_of) if other == bank)
        found = _rows(program, banks, bank, windows, upper)
        if found is not None:
            overrun = program.columns.overrun[bank]
            rows = [row for row in rows if overrun not in row[0]] + found
    more = len(upper) - len(program.upper)
    return replace(
        program,
        rows=rows,
        upper=np.array(upper),
        objective=np.concatenate([program.objective, np.zeros(more)]),
        integral=np.concatenate([program.integral, np.ones(more)]),
    )


def _rows(program: Program, banks: Banks, bank: int, windows: Counter[float], upper: list[float]) -> list[Row] | None:
    """Rows of a bank, whose columns are added to the limits; None if there are too many patterns."""
    tables, columns = banks.workspace, program.columns
    members = {(i, u): column for (i, u, w), column in columns.placed.items() if w == bank}
    time_of = {(i, u): float(tables.table(i).unit_us[u]) for i, u in members}
    times_us = sorted({time_us for time_us in time_of.values() if time_us > 0}, reverse=True)
    supply = Counter(time_of.values())
    filled = {column: min(time_of[unit], banks.most_us[bank]) for unit, column in members.items()}
    filled[columns.overrun[bank]] = -1.0
    supplied: list[dict[int, float]] = [
        {column: -1.0 for unit, column in members.items() if time_of[unit] == time_us} for time_us in times_us
    ]
    rows: list[Row] = []
    limits: list[float] = []
    for length_us, count in windows.items():
        found = patterns_of(length_us, times_us, [supply[time_us] for time_us in times_us], MOST - len(limits))
        if found is None:
            return None
        taken: dict[int, float] = {}
        for numbers, hidden_us in found:
            column = len(upper) + len(limits)
            limits.append(float(count))
            taken[column], filled[column] = 1.0, -hidden_us
            for row, number in zip(supplied, numbers, strict=True):
                if number:
                    row[column] = float(number)
        rows.append((taken, float(count)))
    upper += limits
    return [*rows, (filled, 0.0), *((row, 0.0) for row in supplied)]
