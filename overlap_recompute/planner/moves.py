"""Small random changes of a solution (`replay_state.py`): a replay goes elsewhere, policies change, two change places.

Each function returns changes that keep deadlines and precedence, or none if the dice showed what cannot be. Half of the
targets are the latest window with time left: late replays hold memory for a short time. The others are random.
"""

from collections.abc import Callable

from overlap_recompute.planner.replay_state import Change, Row, State

Random = Callable[[], float]
"""A number from 0 up to 1."""
_TO_DEMAND, _ANYWHERE = 0.12, 0.55
_HALF_FITS = 0.9
"""Beyond it a share of the replay has to fit into the window that is taken."""
_SHARE = 0.4
_ONE_UNIT = 0.6
_NEW_TO_DEMAND, _NEW_LATE = 0.2, 0.6
_MISPLACED_TO_DEMAND = 0.5


def move_replay(state: State, random: Random) -> list[Change]:
    """Another window for a unit; what it reads comes along if it is later, what reads it if it is earlier."""
    layer = int(random() * len(state.policies))
    kind, policy, old = state.kinds[layer], state.policies[layer], state.windows[layer]
    row, own, first = state.rows[layer], state.own[layer], state.first[layer]
    if not row.units:
        return []
    unit = row.units[int(random() * len(row.units))]
    due, draw = own + row.due[unit], random()
    if due <= first:
        return []
    if draw < _TO_DEMAND:
        window = state.outside
    elif draw < _ANYWHERE:
        window = first + int(random() * (due - first))
    else:
        least_us = kind.times_us[unit] * (1.0 if draw < _HALF_FITS else _SHARE)
        window = _latest(state, first, due, least_us, old[unit])
    if window == old[unit]:
        return []
    windows = old[:]
    windows[unit] = window
    if window < state.outside and not _pull(row, windows, unit, own, first):
        return []
    _push(row, windows, unit, own, state.outside)
    return [(layer, policy, windows)]


def _latest(state: State, first: int, due: int, least_us: float, other: int) -> int:
    """The latest window but `other` with so much time left, or outside."""
    lengths, load = state.lengths, state.load
    for window in range(due - 1, first - 1, -1):
        if window != other and lengths[window] - load[window] >= least_us:
            return window
    return state.outside


def _pull(row: Row, windows: list[int], unit: int, own: int, first: int) -> bool:
    """Whatever a unit reads is no later; whether there is a window for it."""
    left = [unit]
    while left:
        reader = left.pop()
        for source in row.sources[reader]:
            window = windows[reader]
            if windows[source] > window:
                window = min(window, own + row.due[source] - 1)
                if window < first:
                    return False
                windows[source] = window
                left.append(source)
    return True


def _push(row: Row, windows: list[int], unit: int, own: int, outside: int) -> None:
    """Whatever reads a unit is no earlier; on demand where that is too late."""
    left = [unit]
    while left:
        source = left.pop()
        window = windows[source]
        for reader in row.readers[source]:
            if windows[reader] < window:
                windows[reader] = window if window < own + row.due[reader] else outside
                left.append(reader)


def change_policies(state: State, random: Random, count: int) -> list[Change]:
    """Other policies for so many layers, each of which drops a unit or two more or less."""
    layers, changes = len(state.policies), []
    first = int(random() * layers)
    second = (first + 1 + int(random() * (layers - 1))) % layers if count == 2 and layers > 1 else first
    for layer in (first, second) if second != first else (first,):
        row = state.rows[layer]
        choices = row.near if random() < _ONE_UNIT else row.further
        if choices:
            policy = choices[int(random() * len(choices))]
            changes.append((layer, policy, _windows_under(state, random, layer, policy)))
    return changes


def _windows_under(state: State, random: Random, layer: int, policy: int) -> list[int]:
    """Windows of a layer under another policy: old ones stay if they may; new replays late, anywhere or nowhere."""
    kind, old, outside = state.kinds[layer], state.windows[layer], state.outside
    row, before, first = kind.row(policy), state.rows[layer].units, state.first[layer]
    windows, draw = [outside] * kind.count, random()
    for unit in reversed(row.units):
        due = state.own[layer] + row.due[unit]
        for reader in row.readers[unit]:
            if windows[reader] < due:
                due = windows[reader] + 1
        if unit in before:
            window = old[unit]
            if window >= due:
                window = outside if draw < _MISPLACED_TO_DEMAND or due <= first else due - 1
        elif draw < _NEW_TO_DEMAND or due <= first:
            window = outside
        elif draw < _NEW_LATE:
            window = _latest(state, first, due, kind.times_us[unit], outside)
        else:
            window = first + int(random() * (due - first))
        windows[unit] = window
    for unit in row.units:
        for source in row.sources[unit]:
            if windows[source] > windows[unit]:
                windows[unit] = outside
    return windows


def exchange_replays(state: State, random: Random) -> list[Change]:
    """Two units, of one layer or two, each in the other's window; on demand where that is too late."""
    layers = len(state.policies)
    one, two = int(random() * layers), int(random() * layers)
    row, other = state.rows[one], state.rows[two]
    if state.chunks[one] != state.chunks[two] or not row.units or not other.units:
        return []
    unit, partner = row.units[int(random() * len(row.units))], other.units[int(random() * len(other.units))]
    here, there = state.windows[one][unit], state.windows[two][partner]
    if here == there:
        return []
    windows = state.windows[one][:]
    seconds = windows if one == two else state.windows[two][:]
    windows[unit] = there if there < state.own[one] + row.due[unit] else state.outside
    seconds[partner] = here if here < state.own[two] + other.due[partner] else state.outside
    if not (_ordered(row, windows, unit) and _ordered(other, seconds, partner)):
        return []
    changes = [(one, state.policies[one], windows)]
    return changes if one == two else [*changes, (two, state.policies[two], seconds)]


def _ordered(row: Row, windows: list[int], unit: int) -> bool:
    """Whether a unit is no earlier than what it reads, and no later than what reads it."""
    window = windows[unit]
    for source in row.sources[unit]:
        if windows[source] > window:
            return False
    return all(windows[reader] >= window for reader in row.readers[unit])
