"""What is wrong with a run, by stated rules; see docs/operations.md.

NOTE [ drift ]
1. What is judged is the median of the last `window` samples: one slow iteration is no alarm.
2. It is compared with a prediction, where the run has one, and with the median of the earlier samples of the same
   start, without its first sample, which holds warm-up.
3. A difference counts when it passes the threshold, as a fraction of what it is compared with, AND one hundredth of an
   iteration: a tenth of a millisecond that doubles is not worth waking anybody.
4. Predictions are held to both sides, since a wrong one is wrong either way, and so are windows. Exposed recompute and
   iteration time that fall below the run's own median are good news.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from overlap_recompute.cli.watching.figures import EXPOSED, PREDICTED_EXPOSED, PREDICTED_ITERATION, WINDOW_MS
from overlap_recompute.cli.watching.history import Glance, Standing
from overlap_recompute.cli.watching.lines import Sample

LEAST_PART_OF_ITERATION = 0.01
_PREDICTED_WINDOW = "overlap/predicted_window_ms/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When to raise an alarm."""

    threshold: float
    """Difference that counts, as a fraction."""
    window: int
    """Samples whose median is judged, and how many earlier ones a comparison needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that a person should look at."""

    name: str
    """One of `ALARM_NAMES`."""
    message: str
    """One line."""


ALARM_NAMES = ("stalled", "loss_not_finite", "prediction_drift", "exposed_drift", "window_drift", "iteration_drift")


def find_alarms(glance: Glance, rules: Rules) -> tuple[Alarm, ...]:
    """Return what is wrong, the gravest first."""
    return (*_stalled(glance), *_not_finite(glance, rules), *_prediction(glance, rules), *_own(glance, rules))


def recent(samples: Sequence[Sample], window: int, figure: Callable[[Sample], float | None]) -> float | None:
    """The median of a figure over the last samples that have it; None when none has."""
    found = [figure(sample) for sample in samples[-window:]]
    values = [value for value in found if value is not None and math.isfinite(value)]
    return median(values) if values else None


def iteration_ms(sample: Sample) -> float | None:
    """Time of an iteration, as a figure."""
    return sample.elapsed_ms


def extra(name: str) -> Callable[[Sample], float | None]:
    """A figure of an optional part."""
    return lambda sample: sample.extra.get(name)


def _stalled(glance: Glance) -> Iterator[Alarm]:
    if glance.standing is Standing.STALLED:
        due = f"{glance.due_s:.1f} s" if glance.due_s is not None else "a known time"
        yield Alarm(name="stalled", message=f"stalled: nothing for {glance.age_s:.0f} s, was due every {due}")


def _not_finite(glance: Glance, rules: Rules) -> Iterator[Alarm]:
    for sample in reversed(glance.current[-rules.window :]):
        broken = sample.loss is not None and not math.isfinite(sample.loss)
        if broken or sample.nan_iterations:
            yield Alarm(name="loss_not_finite", message=f"loss was not finite at iteration {sample.iteration}")
            return


def _prediction(glance: Glance, rules: Rules) -> Iterator[Alarm]:
    if not glance.current:
        return
    pairs = [("iteration", PREDICTED_ITERATION, iteration_ms), ("exposed recompute", PREDICTED_EXPOSED, extra(EXPOSED))]
    for kind in _kinds(glance.current[-1]):
        pairs.append((f"{kind} windows", _PREDICTED_WINDOW + kind, extra(WINDOW_MS + kind)))
    for what, name, measured in pairs:
        predicted = recent(glance.current, rules.window, extra(name))
        found = _settled(glance, rules, measured)
        yield from _drift("prediction_drift", what, found, predicted, "the predicted", glance, rules)


def _own(glance: Glance, rules: Rules) -> Iterator[Alarm]:
    if not glance.current:
        return
    judged = [("exposed_drift", "exposed recompute", extra(EXPOSED), True)]
    judged += [
        ("window_drift", f"{kind} windows", extra(WINDOW_MS + kind), False) for kind in _kinds(glance.current[-1])
    ]
    judged.append(("iteration_drift", "iteration", iteration_ms, True))
    for name, what, figure, only_up in judged:
        earlier = _earlier(glance, rules, figure)
        found = _settled(glance, rules, figure)
        if only_up and found is not None and earlier is not None and found <= earlier:
            continue
        yield from _drift(name, what, found, earlier, "its earlier", glance, rules)


def _kinds(sample: Sample) -> list[str]:
    return [name.removeprefix(WINDOW_MS) for name in sample.extra if name.startswith(WINDOW_MS)]


def _settled(glance: Glance, rules: Rules, figure: Callable[[Sample], float | None]) -> float | None:
    """The recent median, once there are enough samples without the first."""
    return recent(glance.current, rules.window, figure) if len(glance.current) > rules.window else None


def _earlier(glance: Glance, rules: Rules, figure: Callable[[Sample], float | None]) -> float | None:
    before = glance.current[1 : -rules.window]
    return recent(before, len(before), figure) if len(before) >= rules.window else None


def _drift(
    name: str, what: str, found: float | None, reference: float | None, of: str, glance: Glance, rules: Rules
) -> Iterator[Alarm]:
    iteration = recent(glance.current, rules.window, iteration_ms)
    if found is None or reference is None or not math.isfinite(reference):
        return
    difference = found - reference
    least = max(rules.threshold * abs(reference), LEAST_PART_OF_ITERATION * (iteration or 0.0))
    if abs(difference) <= least:
        return
    part = f"{100 * abs(difference) / reference:.0f} % " if reference > 0 else ""
    side = "above" if difference > 0 else "below"
    yield Alarm(name=name, message=f"{what} {found:.1f} ms, {part}{side} {of} {reference:.1f} ms")
