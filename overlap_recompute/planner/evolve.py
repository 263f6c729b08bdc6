"""Search for larger stages: choices of policies and orders of jobs are packed together, and the best ones varied.

The first generation pairs the most promising choices with orders of several kinds (`orders`): what hides most for the
bytes that it brings back, what is needed first, what is long, and mixtures. Each further generation keeps the best
lanes and varies their orders, and in some of them the policy of one or two layers. The few best of each generation are
mended by moving single jobs (`overlap_recompute.planner.assignment`). Random numbers come from a generator of fixed
seed.
"""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from overlap_recompute.planner.assignment import Assignment
from overlap_recompute.planner.choice import memory_of_choices
from overlap_recompute.planner.lanes import Board, Lanes, pack_lanes
from overlap_recompute.planner.policies import Floats, Ints
from overlap_recompute.planner.problem import ON_DEMAND, Fill, StageSolution
from overlap_recompute.planner.workspace import Choice, Workspace, assemble, jobs_of

_LEAST_US = 1e-6
_SHARES = np.array([1.0, 0.6, 0.05, 0.3])
_FITS = np.array([0.0, 1.0, 3.0])
_PARENTS = 6
_CHANGED, _EXCHANGED = 0.35, 0.15
"""Share of lanes in which policies are changed, and exchanged."""
_MOST_PASSES = 4
_OFTEN = 4


class Evolution:
    """The best solution so far, and the lanes that the next generation comes from."""

    __slots__ = ("best", "choice", "_board", "_random", "_lanes", "_order")

    def __init__(self, workspace: Workspace) -> None:
        self.best: StageSolution | None = None
        self.choice: Choice = ()
        self._board = Board(workspace)
        self._random = np.random.default_rng(1)
        self._lanes: Lanes | None = None
        self._order: Ints = np.zeros(0, dtype=np.int64)

    @property
    def is_done(self) -> bool:
        """Whether nothing is exposed."""
        return self.best is not None and self.best.exposed_us <= _LEAST_US

    def start(self, choices: Sequence[Choice], size: int, mended: int) -> None:
        """Pack a generation of `size` lanes from given choices; `mended` of them are mended."""
        if choices:
            self._run(self._fresh(choices, size), mended)

    def step(self, size: int, mended: int, choices: Sequence[Choice] = ()) -> None:
        """Pack a generation that comes from the one before, and from more choices."""
        lanes, random = self._lanes, self._random
        if lanes is None:
            return
        fresh = self._fresh(choices or [self.choice], size // 3 if choices else 0)
        parents = self._order[:_PARENTS]
        picked = parents[np.minimum(random.integers(0, len(parents), size), random.integers(0, len(parents), size))]
        picked[: len(parents)] = parents
        children = Lanes(
            choices=self._varied(lanes.choices[picked], len(parents)),
            keys=lanes.keys[picked],
            least=lanes.least[picked],
            fit=lanes.fit[picked],
        )
        shape = children.keys.shape
        change = random.normal(0.0, 1.0, shape) * random.choice([0.02, 0.06, 0.2], size)[:, None, None]
        change *= random.random(shape) < 0.4
        change[: len(parents)] = 0.0
        other = random.random(size) < 0.2
        other[: len(parents)] = False
        self._run(
            Lanes(
                choices=np.concatenate([children.choices, fresh.choices]),
                keys=np.concatenate([children.keys + change, fresh.keys]),
                least=np.concatenate([np.where(other, random.choice(_SHARES, size), children.least), fresh.least]),
                fit=np.concatenate([np.where(other, random.choice(_FITS, size), children.fit), fresh.fit]),
            ),
            mended,
        )

    def parents(self, most: int) -> list[Choice]:
        """Different choices of the best lanes."""
        assert self._lanes is not None
        rows = (tuple(self._lanes.choices[lane].tolist()) for lane in self._order.tolist())
        return [*islice(dict.fromkeys((self.choice, *rows)), most)]

    def explore(self, found: Sequence[Choice], again: Sequence[Choice], times: int, mended: int) -> None:
        """Pack other choices, and some of before once more; the best lanes stay.

        Args:
            found: choices, each with `times` orders of jobs: half of them that of one of the best lanes, half new ones.
            again: the same.
            times: how often.
            mended: choices whose best lane is mended.
        """
        lanes, random = self._lanes, self._random
        assert lanes is not None
        best = self._order[:_PARENTS]
        choices = [choice for choice in (*found, *again) for _ in range(times)]
        fresh = self._fresh(choices, len(choices))
        heirs = best[random.integers(0, len(best), len(choices))]
        inherits = np.arange(len(choices)) % 2 == 0
        noise = random.normal(0.0, 0.1, fresh.keys.shape) * (random.random(fresh.keys.shape) < 0.4)
        keys = np.where(inherits[:, None, None], lanes.keys[heirs] + noise, fresh.keys)
        self._run(
            Lanes(
                choices=np.concatenate([lanes.choices[best], fresh.choices]),
                keys=np.concatenate([lanes.keys[best], keys]),
                least=np.concatenate([lanes.least[best], np.where(inherits, lanes.least[heirs], fresh.least)]),
                fit=np.concatenate([lanes.fit[best], np.where(inherits, lanes.fit[heirs], fresh.fit)]),
            ),
            mended,
            again,
        )

    def offer(self, choice: Choice, found: StageSolution | None) -> None:
        """A solution; with equal exposed time the one that hides less is better."""
        if found is not None and (self.best is None or _value(found) < _value(self.best)):
            self.best, self.choice = found, choice

    def _fresh(self, choices: Sequence[Choice], size: int) -> Lanes:
        """Each choice in turn, with another way to fill every time."""
        turn, number = np.divmod(np.arange(size), len(choices))
        rows = np.array(choices, dtype=np.int64)[number]
        return Lanes(
            choices=rows,
            keys=orders(self._board, rows, self._random),
            least=_SHARES[(turn + number) % len(_SHARES)],
            fit=_FITS[(turn + number // len(_SHARES)) % len(_FITS)],
        )

    def _varied(self, choices: Ints, untouched: int) -> Ints:
        """Another policy for a layer or two, or those of two layers exchanged, in half of the lanes."""
        random, tables = self._random, [self._board.workspace.table(layer) for layer in range(choices.shape[1])]
        result = choices.copy()
        for lane in range(untouched, len(choices)):
            draw, (first, second) = random.random(), random.integers(0, len(tables), 2).tolist()
            if draw < _CHANGED:
                result[lane, first] = random.integers(len(tables[first].masks))
                if draw < _CHANGED / 2:
                    result[lane, second] = random.integers(len(tables[second].masks))
            elif draw < _CHANGED + _EXCHANGED and tables[first] is tables[second]:
                result[lane, [first, second]] = result[lane, [second, first]]
        return result

    def _run(self, lanes: Lanes, mended: int, often: Sequence[Choice] | None = None) -> None:
        """Pack; mend the best lanes of different exposed time, or of different choices, several of those in `often`."""
        workspace = self._board.workspace
        room = workspace.problem.budget_bytes - memory_of_choices(workspace, lanes.choices)
        packed = pack_lanes(self._board, lanes, np.maximum(room, 0))
        exposed = np.where(room >= 0, packed.exposed_us, np.inf)
        tables = [workspace.table(layer) for layer in range(lanes.choices.shape[1])]
        parts = [table.recompute_us[lanes.choices[:, layer]] for layer, table in enumerate(tables)]
        totals = np.sum(parts, axis=0)
        # Hidden replays are exposed in warm-up and cool-down: of two equal lanes the one with fewer is better.
        order = np.lexsort((totals, np.round(exposed, 3)))
        seen: dict[object, int] = {}
        polished, number = exposed.copy(), 0
        for lane in order:
            if number >= mended or not np.isfinite(exposed[lane]) or self.is_done:
                break
            choice = tuple(lanes.choices[lane].tolist())
            key = round(float(exposed[lane]), 3) if often is None else choice
            most = 1 if often is None or choice not in often else _OFTEN
            if seen.get(key, 0) >= most:
                continue
            seen[key], number = seen.get(key, 0) + 1, number + 1
            fills = mend(workspace, choice, packed.windows[lane], int(room[lane]))
            found = assemble(workspace, choice, fills)
            polished[lane] = found.exposed_us
            self.offer(choice, found)
        order = np.argsort(polished, kind="stable")
        self._lanes, self._order = lanes, order


def _value(found: StageSolution) -> tuple[float, float]:
    return round(found.exposed_us, 3), round(found.hidden_us, 3)


def mend(workspace: Workspace, choice: Choice, windows: Ints, room_bytes: int) -> list[Fill]:
    """Fill up what a lane left and move what overruns.

    Args:
        workspace: the problem.
        choice: policies.
        windows: (layers, units).
        room_bytes: most that may be prefetched at a time.
    """
    fills: list[Fill] = []
    for chunk in range(len(workspace.problem.chunks)):
        jobs = jobs_of(workspace, choice, chunk)
        first, stop = workspace.span(chunk)
        plan = Assignment(jobs, workspace.lengths, first, stop, room_bytes)
        for job, (layer, unit) in enumerate(jobs.places):
            if windows[layer, unit] != ON_DEMAND:
                plan.put(job, int(windows[layer, unit]))
        plan.mend(_MOST_PASSES)
        for (layer, unit), window in zip(jobs.places, plan.windows, strict=True):
            if window != ON_DEMAND:
                fills.append(Fill(layer=layer, unit=unit, window=window))
    return fills


def orders(board: Board, choices: Ints, random: np.random.Generator) -> Floats:
    """(N, layers, units) keys: a mixture of thrift, need, length and chance, another one for each lane."""
    jobs = board.gather(choices, list(range(choices.shape[1])))
    reach = jobs.sources[None] & jobs.work[:, :, None, :]
    nbytes = (reach * jobs.nbytes[:, :, None, :]).sum(axis=3)
    times = (reach * jobs.times[None, :, None, :]).sum(axis=3)
    longest_us = max(max(board.workspace.lengths, default=1.0), 1e-9)
    thrift = nbytes / np.maximum(np.minimum(times, longest_us), 1e-9)
    thrift /= max(float(thrift.max(initial=0.0)), 1e-9)
    need = 1.0 - jobs.needs / max(int(jobs.needs.max(initial=1)), 1)
    length = 1.0 - jobs.times / max(float(jobs.times.max(initial=0.0)), 1e-9)
    weights = random.random((len(choices), 4)) ** 2
    mixed = weights[:, 0, None, None] * thrift + weights[:, 1, None, None] * need + weights[:, 2, None, None] * length
    return np.asarray(mixed + 0.3 * weights[:, 3, None, None] * random.random(thrift.shape))
