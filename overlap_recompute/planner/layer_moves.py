"""Moves of whole layers (`replay_state.py`): one layer does what another one does, its replays as far ahead of it.

Good solutions repeat themselves. Where memory is tight two or three patterns of a layer (what it drops, and how far
ahead of its own backward pass each replay stands) take turns; replays that hold memory for long then fit in between
each other. From one such pattern to another one everything in a layer changes at once, which moves of single replays
and units reach through worse states only.
"""

from overlap_recompute.planner.moves import Random
from overlap_recompute.planner.replay_state import Change, State

_COPY, _EXCHANGE, _BLOCK = 0.35, 0.65, 0.85
"""Share of moves that copy one layer, those and exchanges of two, those and copies of neighbours; the rest copy two."""
_ANY_EXCHANGE = 0.5
"""Below it only layers of different policies are exchanged."""
_PAIR = 0.65
"""Share of copies of neighbours that copy two of them; the others copy three."""


def repeat_layers(state: State, random: Random) -> list[Change]:
    """The policy and places of some layers for others of the same kind, or none if the dice showed what cannot be."""
    layers = len(state.policies)
    if layers < 2:
        return []
    draw, one = random(), int(random() * layers)
    two = (one + 1 + int(random() * (layers - 1))) % layers
    if draw < _COPY:
        pairs = [(one, two)]
    elif draw < _EXCHANGE:
        if draw < _ANY_EXCHANGE and state.policies[one] == state.policies[two]:
            return []
        pairs = [(one, two), (two, one)]
    elif draw < _BLOCK:
        count = min(2 if random() < _PAIR else 3, layers - max(one, two))
        pairs = [(one + place, two + place) for place in range(count)]
    else:
        three, four = int(random() * layers), int(random() * layers)
        pairs = [(one, two), (three, four)] if four not in (two, three) else [(one, two)]
    if any(state.kinds[source] is not state.kinds[target] for source, target in pairs):
        return []
    return [_moved(state, source, target) for source, target in pairs]


def _moved(state: State, source: int, target: int) -> Change:
    """`target` doing as `source` does: no replay before the first window; on demand where that is too late."""
    row, own, first, outside = state.rows[source], state.own[target], state.first[target], state.outside
    shift, old = own - state.own[source], state.windows[source]
    windows = [outside] * len(old)
    for unit in row.units:
        if old[unit] < outside:
            window = max(old[unit] + shift, first)
            if window < own + row.due[unit]:
                windows[unit] = window
        for other in row.sources[unit]:
            if windows[other] > windows[unit]:
                windows[unit] = outside
    return target, state.policies[source], windows
