"""The metrics file: one line per record, appended and handed to the operating system at once.

NOTE [ one file per run, whatever happened to the run ]
1. A start at iteration 0 begins a new file; a resume at iteration k goes on with the old one.
2. What an earlier process wrote about iterations after k will be done again, so those lines leave the file: every
   program that reads it, not only ours, plots each iteration once. They are not lost: they move to
   `<name>.superseded.jsonl` beside it.
3. A process that is killed while it writes leaves a last line without an end. It is dropped on resume, and readers
   leave it out.
4. A line that could not be written whole (disk full) is cut off again, so the next one starts on a line of its own.
5. One run at a time, which holds a lock on `.<name>.lock` beside the file: 2 would take out the lines of a run that
   still goes on.
6. A device or a pipe (/dev/null, /dev/stdout) has no old lines: it is written to, and neither read nor locked.
"""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron.pretrain.logs.records import Record, RunFacts
from megatron.pretrain.logs.wire import SCHEMA, LineError, encode, parse
from overlap_recompute.plan.errors import ConfigError
from overlap_recompute.plan.file_lock import WAIT_S, locked
from overlap_recompute.plan.files import replace_file

METRICS_FILE_NAME = "metrics.jsonl"
"""Name of the metrics file in a run's folder."""


class MetricsFileSink:
    """Appends records to a metrics file. Create it with `open_metrics_file`.

    Args:
        path: the file, a device or a pipe.
        clock: seconds, for "time_s".
        lock: closed behind the file; empty for a device or a pipe.
    """

    name = "metrics file"

    def __init__(self, path: Path, clock: Callable[[], float], lock: contextlib.ExitStack) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self._end_bytes = os.fstat(self._descriptor).st_size
        self._clock, self._opened_s = clock, clock()
        self._lock = lock
        self.path = path

    def write(self, record: Record | RunFacts) -> None:
        """Append one line.

        Raises:
            OSError: it could not be written; the file ends after the last whole line.
        """
        line = encode(record, self._clock() - self._opened_s)
        if os.fstat(self._descriptor).st_size > self._end_bytes:
            os.ftruncate(self._descriptor, self._end_bytes)  # half a line that a failed write has left
        if os.write(self._descriptor, line) != len(line):
            os.ftruncate(self._descriptor, self._end_bytes)
            raise OSError(errno.ENOSPC, f"no room for a line of {len(line)} bytes", str(self.path))
        self._end_bytes += len(line)

    def advance(self, iteration: int) -> None:
        """Nothing to do between records."""

    def close(self) -> None:
        """Force the file to disk and close it."""
        with self._lock:
            try:
                if self.path.is_file():
                    os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)


def open_metrics_file(
    path: Path, facts: RunFacts, clock: Callable[[], float] = time.monotonic, *, wait_s: float = WAIT_S
) -> MetricsFileSink:
    """Open the metrics file of a run that starts or resumes at `facts.start_iteration`; see the NOTE above.

    Args:
        path: the file; its folder is created.
        facts: what the run line says.
        clock: seconds, for "time_s".
        wait_s: how long to wait for a run that is about to end.

    Raises:
        ConfigError: the file cannot be written, is there and is not a metrics file of this version, or another run
            writes to it.
    """
    try:
        with contextlib.ExitStack() as lock:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() or not path.exists():
                lock.enter_context(_claimed(path, wait_s))
                if path.exists():
                    _drop_superseded(path, facts.start_iteration)
            sink = MetricsFileSink(path, clock, lock.pop_all())
        sink.write(facts)
    except OSError as error:
        raise ConfigError(
            f"the metrics file {path} cannot be written ({error.strerror or error})",
            "a folder that the last rank may write to, with room on the disk",
            "choose another folder or make room",
        ) from error
    return sink


def lock_path(path: Path) -> Path:
    """What a run locks that writes to a metrics file: the same under every name of the file."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name}.lock")


def _claimed(path: Path, wait_s: float) -> contextlib.AbstractContextManager[None]:
    lock = lock_path(path)
    refusal = ConfigError(
        f"another run that writes to the metrics file {path} (it holds {lock.name} beside it)",
        "a metrics file that no other run writes to",
        "end the other run, or choose another --metrics-file",
    )
    return locked(lock, refusal=refusal, wait_s=wait_s)


def superseded_path(path: Path) -> Path:
    """Where lines go that a resume has made obsolete."""
    return path.with_name(f"{path.stem}.superseded{path.suffix}")


def _drop_superseded(path: Path, start_iteration: int) -> None:
    content = path.read_bytes()
    whole, _, _cut_off = content.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    _check_ours(path, lines)
    kept = [line for line in lines if start_iteration > 0 and _stays(line, start_iteration)]
    dropped = [line for line in lines if start_iteration == 0 or not _stays(line, start_iteration)]
    if dropped:
        with superseded_path(path).open("ab") as stream:
            stream.write(_joined(dropped))
            stream.flush()
            os.fsync(stream.fileno())
    if _joined(kept) != content:
        replace_file(path, lambda stream: stream.write(_joined(kept)))


def _joined(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _check_ours(path: Path, lines: Sequence[bytes]) -> None:
    """Refuse to touch a file that something else has written."""
    try:
        first: Mapping[str, Any] = parse(lines[0]) if lines else {"kind": "run", "schema": SCHEMA}
    except LineError:
        first = {}
    if first.get("schema") != SCHEMA:
        raise ConfigError(
            f"the file {path}, whose first line is not that of a metrics file of schema {SCHEMA!r}",
            "no file of that name, or the metrics file of the run that goes on",
            "move the file away or choose another folder",
        )


def _stays(line: bytes, start_iteration: int) -> bool:
    """Whether a line is about what happened up to the checkpoint; a damaged line does not stay."""
    try:
        value = parse(line)
    except LineError:
        return False
    iteration = value.get("iteration", value.get("start_iteration"))
    return isinstance(iteration, int) and iteration <= start_iteration
