"""What a run without recompute does not do, cut out of the marks of an iteration.

```
on demand | GRAD_UNIT activation | ASIDE replays .. ASIDE_END | the unit's backward pass | GRAD_UNIT linear_fc1 | ..
cut       | GRAD_UNIT activation | the unit's backward pass | GRAD_UNIT linear_fc1 | ..
```

NOTE [ replays beside a communication ]
Backward reads what is saved before it launches a collective, so that a replay hardly ever runs between launch and wait.
Where one does, it has taken from the wait what it lasted, unless the communication was over when the wait began: then
the wait is longer by that much without it.
"""

from collections.abc import Sequence

from megatron.overlap.measuring.marks import At, Mark


def without_asides(marks: Sequence[Mark], times_us: Sequence[float]) -> tuple[list[Mark], list[float]]:
    """The other marks, and when they would have been.

    Args:
        marks: of one iteration; each ASIDE has its ASIDE_END.
        times_us: when they were.
    """
    kept: list[Mark] = []
    kept_us: list[float] = []
    depth, begin_us, cut_us, in_flight_us = 0, 0.0, 0.0, 0.0
    is_launched = False
    for mark, time_us in zip(marks, times_us, strict=True):
        if mark.at is At.ASIDE:
            begin_us = begin_us if depth else time_us
            depth += 1
        elif mark.at is At.ASIDE_END:
            depth -= 1
            if not depth:
                cut_us += time_us - begin_us
                in_flight_us += time_us - begin_us if is_launched else 0.0
        else:
            if mark.at is At.LAUNCH:
                is_launched, in_flight_us = True, 0.0
            elif mark.at is At.WAIT_END:
                was_over = mark.communication is not None and mark.communication.was_over
                cut_us -= 0.0 if was_over else in_flight_us  # NOTE [ replays beside a communication ]
                is_launched, in_flight_us = False, 0.0
            kept.append(mark)
            kept_us.append((begin_us if depth else time_us) - cut_us)
    return kept, kept_us
