"""One pass of a chunk, step by step: windows are filled by need as the runtime does, what is left runs on demand.

comp: | layer 8 backward | launch all_reduce  R(L7.linear_fc1) R(L7.activation) | R(L7.linear_qkv) layer 7 backward
comm: |                  |        all_reduce .......................|
                                             hidden ................ exposed .......................

NOTE [ how a window is filled ]
1. Order: the microbatch whose backward pass runs, then those whose forward pass has ended, in the order of the rank's
   backward passes. In a microbatch the latest layer first; a unit's sources before it.
2. A unit is begun while the window is open, and is not split. What it takes beyond the window's end is exposed.
3. A unit that would bring the bytes that are there ahead of need above the cap ends the fill. Bytes count from the
   replay until a backward step, or a replay on demand, reads them; those that only replays read until these are done.
4. Before a step that needs units which nobody has replayed, these run on demand, with what they read.

What a pass does depends on the chunk and on what has been replayed for which microbatch, and on nothing else, so each
such state is walked through once. In a steady state it comes again and again.
"""

from dataclasses import dataclass
from typing import NamedTuple

from overlap_recompute.plan.profile import COMPUTE
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.simulator.ahead import ChunkReplays, bits_of
from overlap_recompute.simulator.stage_model import Stage, Step
from overlap_recompute.simulator.timeline import Lane

PP_WAIT = WindowKind.PP_WAIT.value


class Pending(NamedTuple):
    """A microbatch between forward and backward pass."""

    chunk: int
    done: int
    """Mask of the chunk's replays that have run."""


Progress = tuple[Pending, ...]
"""All microbatches of a stage between forward and backward pass, in the order of their backward passes."""


class Piece(NamedTuple):
    """A span, counted from the begin of the pass or wait."""

    lane: Lane
    name: str
    """Of a replay or a collective; empty for the pass itself."""
    begin_fs: int
    end_fs: int
    hidden: bool
    pending: int
    """Of a replay: for which microbatch, counted in the progress at the begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a pass or of a wait."""

    length_fs: int
    """Of a wait: of the replays in it."""
    compute_fs: int
    hidden_fs: int
    exposed_fs: int
    windows: tuple[tuple[str, int, int, int], ...]
    """(kind, number, length, filled) of the windows in a pass."""
    progress: Progress
    """Afterwards; without the microbatch whose pass it was."""
    ahead_bytes: int
    """Ahead of need, afterwards."""
    ahead_peak_bytes: int
    """Most of it at any time, with the microbatch whose backward pass it was."""
    pieces: tuple[Piece, ...]
    """Empty unless they were asked for."""


class Passes:
    """The passes of one stage.

    Args:
        stage: whose.
        draws: whether outcomes have pieces.
    """

    __slots__ = ("stage", "draws", "replays", "_known", "_bytes")

    def __init__(self, stage: Stage, *, draws: bool = False) -> None:
        self.stage, self.draws = stage, draws
        self.replays = tuple(ChunkReplays(chunk.replays) for chunk in stage.chunks)
        self._known: dict[tuple[str, int, Progress], Outcome] = {}
        self._bytes: dict[Pending, int] = {}

    def forward(self, chunk: int, progress: Progress) -> Outcome:
        """The forward pass of a chunk while `progress` waits for backward passes."""
        key = ("F", chunk, progress)
        found = self._known.get(key)
        if found is None:
            walk = _Walk(self, progress)
            walk.run(self.stage.chunks[chunk].forward)
            found = self._known[key] = walk.outcome(progress_from=0)
        return found

    def backward(self, progress: Progress) -> Outcome:
        """The backward pass of the first microbatch of `progress`."""
        key = ("B", 0, progress)
        found = self._known.get(key)
        if found is None:
            walk = _Walk(self, progress)
            walk.run(self.stage.chunks[progress[0].chunk].backward)
            found = self._known[key] = walk.outcome(progress_from=1)
        return found

    def wait(self, progress: Progress, room_fs: int) -> Outcome:
        """Replays in a wait of `room_fs` for another stage."""
        key = (PP_WAIT, room_fs, progress)
        found = self._known.get(key)
        if found is None:
            walk = _Walk(self, progress)
            walk.fill(PP_WAIT, room_fs)
            found = self._known[key] = walk.outcome(progress_from=0)
        return found

    def ahead_bytes(self, entry: Pending) -> int:
        """Bytes of a microbatch that are there ahead of need at the begin of a pass: what ran in windows before."""
        found = self._bytes.get(entry)
        if found is None:
            found = self._bytes[entry] = self.replays[entry.chunk].held_bytes(entry.done, entry.done)
        return found


class _Walk:
    """The way through one pass."""

    __slots__ = (
        "passes", "draws", "filled_kinds", "chunks", "replays", "done", "ahead", "bytes", "total_bytes", "peak_bytes",
        "now_fs", "compute_fs", "hidden_fs", "exposed_fs", "windows", "pieces", "tp_free_fs", "first_open",
    )  # fmt: skip

    def __init__(self, passes: Passes, progress: Progress) -> None:
        self.passes, self.draws, self.filled_kinds = passes, passes.draws, passes.stage.filled_kinds
        self.chunks = [entry.chunk for entry in progress]
        self.replays = [passes.replays[chunk] for chunk in self.chunks]
        self.done = [entry.done for entry in progress]
        self.ahead = list(self.done)
        """What ran in a window and nothing has read."""
        self.bytes = [passes.ahead_bytes(entry) for entry in progress]
        self.now_fs = self.compute_fs = self.hidden_fs = self.exposed_fs = self.tp_free_fs = 0
        self.peak_bytes = self.total_bytes = sum(self.bytes)
        self.windows: dict[str, list[int]] = {}
        self.pieces: list[Piece] = []
        self.first_open = 0
        """Microbatches before this one have no replay left."""

    def run(self, steps: tuple[Step, ...]) -> None:
        for step in steps:
            if step.needs:
                self._demand(step.needs)
            if step.kind == COMPUTE:
                if self.draws:
                    self._piece("compute", "", step.duration_fs)
                self.compute_fs += step.duration_fs
                self.now_fs += step.duration_fs
            elif step.duration_fs:
                self._window(step)

    def _window(self, step: Step) -> None:
        begin_fs, end_fs = self.now_fs, self.now_fs + step.duration_fs
        if self.draws:
            link_fs = max(self.tp_free_fs, begin_fs - step.hidden_fs)
            self.pieces.append(Piece("tp", step.name, link_fs, end_fs, False, 0))
            self.tp_free_fs = end_fs
        filled_fs = self.fill(step.kind, step.duration_fs) if step.kind in self.filled_kinds else 0
        if self.now_fs < end_fs:
            if self.draws:
                self._piece("wait", step.name, end_fs - self.now_fs)
            self.now_fs = end_fs
        sums = self.windows.setdefault(step.kind, [0, 0, 0])
        sums[0] += 1
        sums[1] += step.duration_fs
        sums[2] += filled_fs

    def fill(self, kind: str, room_fs: int) -> int:
        """Replay while the window is open; returns how much of the window was used. Rules 1 to 3 of the NOTE."""
        end_fs, before_fs = self.now_fs + room_fs, self.hidden_fs
        assert kind in self.filled_kinds
        while self.now_fs < end_fs and (found := self._upcoming()) is not None:
            number, place = found
            replay = self.replays[number].replays[place]
            needed_bytes = self.total_bytes + replay.nbytes
            if needed_bytes > self.passes.stage.cap_bytes:
                break
            self.peak_bytes = max(self.peak_bytes, needed_bytes)
            self.ahead[number] |= 1 << place
            self._replay(number, place, min(replay.duration_fs, end_fs - self.now_fs))
        return self.hidden_fs - before_fs

    def _upcoming(self) -> tuple[int, int] | None:
        """Microbatch and place of the next replay."""
        for number in range(self.first_open, len(self.chunks)):
            left = self.replays[number].all_done & ~self.done[number]
            if left:
                return number, (left & -left).bit_length() - 1
            if number == self.first_open:
                self.first_open += 1
        return None

    def _demand(self, needs: int) -> None:
        """Rule 4. Whatever is read is no longer ahead of need."""
        replays = self.replays[0].replays
        missing = 0
        for place in bits_of(needs & ~self.done[0]):
            missing |= replays[place].closure
        for place in bits_of(missing & ~self.done[0]):
            self._read(replays[place].closure)
            self._replay(0, place, 0)
        self._read(needs)

    def _read(self, mask: int) -> None:
        """The microbatch whose backward pass runs has read these."""
        read = mask & self.ahead[0]
        if read:
            self.ahead[0] ^= read
            self._add_bytes(0, -self.replays[0].held_bytes(self.done[0], read))

    def _replay(self, number: int, place: int, hidden_fs: int) -> None:
        replay = self.replays[number].replays[place]
        exposed_fs = replay.duration_fs - hidden_fs
        for length_fs, hidden in ((hidden_fs, True), (exposed_fs, False)):
            if length_fs:
                if self.draws:
                    self._piece("recompute", replay.label, length_fs, hidden, number)
                self.now_fs += length_fs
        self.hidden_fs += hidden_fs
        self.exposed_fs += exposed_fs
        self._add_bytes(number, self.replays[number].change_bytes(place, self.done[number], self.ahead[number]))
        self.done[number] |= 1 << place

    def _add_bytes(self, number: int, nbytes: int) -> None:
        self.bytes[number] += nbytes
        self.total_bytes += nbytes

    def _piece(self, lane: Lane, name: str, length_fs: int, hidden: bool = False, pending: int = 0) -> None:
        if not length_fs:
            return
        last = self.pieces[-1] if self.pieces else None
        begin_fs = self.now_fs
        if last is not None and lane == "compute" == last.lane and last.end_fs == begin_fs:
            begin_fs = self.pieces.pop().begin_fs
        self.pieces.append(Piece(lane, name, begin_fs, self.now_fs + length_fs, hidden, pending))

    def outcome(self, *, progress_from: int) -> Outcome:
        entries = tuple(map(Pending, self.chunks, self.done))[progress_from:]
        return Outcome(
            length_fs=self.now_fs,
            compute_fs=self.compute_fs,
            hidden_fs=self.hidden_fs,
            exposed_fs=self.exposed_fs,
            windows=tuple((kind, *sums) for kind, sums in self.windows.items()),  # type: ignore[misc]
            progress=entries,
            ahead_bytes=sum(self.bytes[progress_from:]),
            ahead_peak_bytes=self.peak_bytes,
            pieces=tuple(self.pieces),
        )
