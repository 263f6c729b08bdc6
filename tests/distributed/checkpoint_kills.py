"""Kill a run for real at chosen points of a save: `python -m tests.distributed.checkpoint_kills OUT`, one process.

The imports are paid once: every run is a forked child, and this process, which has no process group of its own, kills
it when it says that it has come to the point. Outcomes ("" or a traceback) go to OUT/results-0.json.
"""

import functools
import json
import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist

from tests.distributed.checkpoint_model import Setup, build, digest, train  # isort: skip
from megatron.pretrain.checkpoint import directory, shard_writer
from overlap_recompute.plan.errors import CheckpointError
from tests.distributed.checkpoint_support import manager

SMALL = Setup(layers=1)
LIMIT_S, HALT_S = 60.0, 600.0
CLEAN = ["iter_0000001", "iter_0000002", directory.TRACKER_NAME]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A call in which a save is stopped."""

    target: Any
    name: str
    after: bool = False
    mentions: str = ""
    """Text in the arguments that tells the call from others of the same function."""


POINTS = {
    "shards half written": Point(target=shard_writer, name="checksum"),
    "before the index": Point(target=shard_writer._Writer, name="finish"),
    "before the rename": Point(target=directory.CheckpointDirectory, name="publish"),
    "between the renames": Point(target=pathlib.Path, name="rename", after=True, mentions=".replaced-"),
    "before the tracker": Point(target=os, name="replace", mentions=directory.TRACKER_NAME),
}


@contextmanager
def stopping_at(point: Point, marker: pathlib.Path) -> Iterator[None]:
    """Come to rest at a point and say so in `marker`."""
    stock = getattr(point.target, point.name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs) if point.after else None
        if point.mentions in str(args):
            marker.write_text(str(os.getpid()))
            time.sleep(HALT_S)
        return result if point.after else stock(*args, **kwargs)

    with mock.patch.object(point.target, point.name, wrapped):
        yield


def forked(action: Callable[[], None]) -> int:
    """Run `action` as a one-rank job in a child of its own session; it exits with 0 if the action returned."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def finish(pid: int) -> None:
    assert os.waitpid(pid, 0)[1] == 0, "see the output of the child"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "nothing happened in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def save_then_stop(folder: pathlib.Path, point: Point, **flags: object) -> None:
    """Save iteration 1, then come to rest in the save of iteration 2 (or of iteration 1 again)."""
    state = build(SMALL)
    train(state, 1)
    manager(folder).save(state)
    (folder.parent / "digest").write_text(digest(state))
    if point.mentions != ".replaced-":
        train(state, 1)
    with stopping_at(point, folder.parent / "marker"):
        writer = manager(folder, **flags)
        writer.save(state)
        writer.finalize(blocking=True)


def resume_and_save(folder: pathlib.Path) -> None:
    """Iteration 1 must be there, exactly; the next save tidies up."""
    state = build(SMALL.but(seed=99))
    progress = manager(folder).load(state)
    assert progress is not None
    state.progress = progress
    assert digest(state) == (folder.parent / "digest").read_text()
    train(state, 1)
    manager(folder).save(state)
    assert sorted(path.name for path in folder.iterdir()) == CLEAN


def killed(point: Point, folder: pathlib.Path) -> None:
    marker = folder.parent / "marker"
    run = forked(lambda: save_then_stop(folder, point))
    wait_for(marker.exists)
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    assert sorted(path.name for path in folder.iterdir()) != [CLEAN[0], CLEAN[2]], "nothing was under way"
    finish(forked(lambda: resume_and_save(folder)))


def killed_with_writer_in_background(folder: pathlib.Path) -> None:
    """The writer ends by itself when its run is killed; what was complete is still there."""
    marker = folder.parent / "marker"
    run = forked(lambda: save_then_stop(folder, POINTS["shards half written"], async_save=True))
    wait_for(marker.exists)
    writer = int(marker.read_text())
    assert writer != run
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    wait_for(lambda: not is_running(writer))
    finish(forked(lambda: resume_and_save(folder)))


def background_writer_killed(folder: pathlib.Path) -> None:
    """A run learns that its writer was killed, and goes on with what was complete."""

    def run() -> None:
        with pytest.raises(CheckpointError, match="background writer"):
            save_then_stop(folder, POINTS["shards half written"], async_save=True)
        resume_and_save(folder)

    marker = folder.parent / "marker"
    pid = forked(run)
    wait_for(marker.exists)
    os.kill(int(marker.read_text()), signal.SIGKILL)
    finish(pid)


SCENARIOS: dict[str, Callable[[pathlib.Path], None]] = {
    **{name: functools.partial(killed, point) for name, point in POINTS.items()},
    "run killed while its background writer works": killed_with_writer_in_background,
    "background writer killed": background_writer_killed,
}


def main(out: pathlib.Path) -> None:
    results = {}
    for name, scenario in SCENARIOS.items():
        folder = out / name.replace(" ", "-") / "save"
        folder.mkdir(parents=True)
        started_s = time.monotonic()
        try:
            scenario(folder)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
        print(f"{name} took {time.monotonic() - started_s:.2f} s", results[name], flush=True)
        (out / "results-0.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
