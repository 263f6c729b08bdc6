"""Tokenize all shards of a job, in this process or in several, going on where a killed run stopped."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing.connection import wait as wait_for

from megatron.pretrain.data.preprocess.job import Job
from megatron.pretrain.data.preprocess.progress import Progress
from megatron.pretrain.data.preprocess.shards import Shard, ShardResult, tokenize_shard
from megatron.pretrain.data.preprocess.workdir import WorkDir
from overlap_recompute.plan.errors import DataError

AHEAD = 2
"""Shards handed out per worker, so that none waits for the parent."""


def tokenize_shards(
    job: Job, workdir: WorkDir, *, workers: int, progress: Progress, strict: bool = False
) -> tuple[tuple[ShardResult, ...], int]:
    """Tokenize what is not finished yet. The caller holds the lock of `workdir` and has `start`ed or kept it.

    Args:
        job: what to make.
        workdir: where its shards are.
        workers: processes; 1 works in this one.
        progress: told of each shard that was not finished before.
        strict: refuse malformed input.

    Returns:
        The results of all shards in order, and how many of them were found finished.

    Raises:
        DataError: malformed input under `strict`, a full disk, or a worker that died.
    """
    results = workdir.finished()
    kept = len(results)
    for result in results.values():
        _refuse_malformed(result, job, strict=strict)
    todo = [shard for shard in job.shards if shard.number not in results]
    run = _in_this_process if workers == 1 or len(todo) <= 1 else _in_processes
    with closing(run(job, workdir, todo, workers)) as finished:
        for result in finished:
            workdir.record(result)
            results[result.number] = result
            progress.add(result)
            _refuse_malformed(result, job, strict=strict)
    return tuple(results[shard.number] for shard in job.shards), kept


def _in_this_process(
    job: Job, workdir: WorkDir, todo: Sequence[Shard], workers: int
) -> Generator[ShardResult, None, None]:
    del workers
    for shard in todo:
        yield tokenize_shard(job.recipe, job.tokenizer, shard, workdir.folder)


def _in_processes(
    job: Job, workdir: WorkDir, todo: Sequence[Shard], workers: int
) -> Generator[ShardResult, None, None]:
    """Results in the order in which they are finished."""
    pool = ProcessPoolExecutor(
        max_workers=min(workers, len(todo)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_prepare_worker,
    )
    waiting = iter(todo)
    running: set[Future[ShardResult]] = set()
    try:
        while True:
            for shard in waiting:
                running.add(pool.submit(tokenize_shard, job.recipe, job.tokenizer, shard, workdir.folder))
                if len(running) >= AHEAD * workers:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process that died",
            f"{workers} workers to live until the end",
            "look for a lack of memory, use fewer --workers, and run the same command again: finished shards are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
    """Let this process use one core, and end with its parent: a killed parent cannot tell its workers to stop."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent alone answers it
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)


def _refuse_malformed(result: ShardResult, job: Job, *, strict: bool) -> None:
    if strict and result.malformed:
        raise DataError(
            f"malformed input at {result.examples[0]}",
            f"UTF-8 text, in JSON lines as a string under {job.recipe.json_key!r}",
            "mend it, or leave out --strict to pass over such input and count it",
        )
