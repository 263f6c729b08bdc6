"""The lists that stages run, by the size of the pipeline alone: made once and used for all plans of that size."""

import functools

from overlap_recompute.plan.actions import Grid
from overlap_recompute.schedules import in_flight_microbatches, pipeline_schedule, with_communication, with_recompute

MOST_KEPT = 1024
"""Microbatches; longer lists are made anew each time and not kept."""


def passes_of(stages: int, chunks: int, microbatches: int) -> Grid:
    """Forward and backward passes.

    Raises:
        ConfigError: there is no schedule for these sizes.
    """
    make = _kept_passes if microbatches <= MOST_KEPT else pipeline_schedule
    return make(stages, chunks, microbatches)


def lists_of(stages: int, chunks: int, microbatches: int) -> Grid:
    """The same with communication and recompute: what the trainer's interpreter runs."""
    make = _kept if microbatches <= MOST_KEPT else _made
    return make(stages, chunks, microbatches)


def in_flight_of(stages: int, chunks: int, microbatches: int) -> tuple[tuple[int, ...], ...]:
    """By stage and chunk, the most microbatches between forward and backward pass."""
    make = _kept_in_flight if microbatches <= MOST_KEPT else _in_flight
    return make(stages, chunks, microbatches)


def _made(stages: int, chunks: int, microbatches: int) -> Grid:
    passes = passes_of(stages, chunks, microbatches)
    return with_recompute(with_communication(passes) if stages > 1 else passes)


def _in_flight(stages: int, chunks: int, microbatches: int) -> tuple[tuple[int, ...], ...]:
    return tuple(in_flight_microbatches(row).peak_by_chunk for row in passes_of(stages, chunks, microbatches))


_kept_passes = functools.lru_cache(maxsize=32)(pipeline_schedule)
_kept = functools.lru_cache(maxsize=32)(_made)
_kept_in_flight = functools.lru_cache(maxsize=32)(_in_flight)
