"""When an alarm is raised, and when not."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from overlap_recompute.cli.watching.alarms import ALARM_NAMES, Rules, find_alarms
from tests.unit.cli.watch_support import EXTRA, glance_of, run_line, sample_line

RULES = Rules(threshold=0.2, window=3)
CALM: Mapping[str, Any] = {
    name: None for name in EXTRA if name.startswith("overlap/predicted")
}  # null: the run has no prediction


def names(lines: Iterable[bytes], rules: Rules = RULES, age_s: float = 1.0) -> list[str]:
    found = [alarm.name for alarm in find_alarms(glance_of(lines, age_s=age_s), rules)]
    assert set(found) <= set(ALARM_NAMES)
    return found


def course(figure: str, values: Iterable[float], **extra: Any) -> list[bytes]:
    """A run whose figure takes these values, one iteration each."""
    lines = [run_line()]
    for iteration, value in enumerate(values, start=1):
        if figure == "elapsed_ms":
            lines.append(sample_line(iteration, elapsed_ms=value, extra={**CALM, **extra}))
        else:
            lines.append(sample_line(iteration, extra={**CALM, **extra, figure: value}))
    return lines


EXPOSED, WINDOW = "overlap/exposed_recompute_ms", "overlap/window_ms/pp_wait"


@pytest.mark.parametrize(
    ("figure", "late", "expected"),
    [
        (EXPOSED, 10.0, []),
        (EXPOSED, 15.0, ["exposed_drift"]),  # 50 %, and 5 ms of 400
        (EXPOSED, 13.9, []),  # 39 %, but less than one hundredth of an iteration
        (EXPOSED, 1.0, []),  # better
        (WINDOW, 11.0, []),
        (WINDOW, 20.0, ["window_drift"]),
        (WINDOW, 4.0, ["window_drift"]),  # shorter windows hide less
        ("elapsed_ms", 470.0, []),
        ("elapsed_ms", 490.0, ["iteration_drift"]),
        ("elapsed_ms", 200.0, []),
    ],
)
def test_drift_from_the_runs_own_earlier_median(figure: str, late: float, expected: list[str]) -> None:
    early = 400.0 if figure == "elapsed_ms" else 10.0
    assert names(course(figure, [999.0, early, early, early, early, late, late, late])) == expected


def test_one_slow_iteration_is_no_alarm_and_two_of_three_are() -> None:
    calm = [999.0, 10.0, 10.0, 10.0]
    assert names(course(EXPOSED, [*calm, 90.0, 10.0, 10.0])) == []
    assert names(course(EXPOSED, [*calm, 90.0, 10.0, 90.0])) == ["exposed_drift"]


def test_too_few_samples_say_nothing() -> None:
    assert names(course(EXPOSED, [10.0, 10.0, 10.0, 90.0, 90.0, 90.0])) == []
    assert names(course(EXPOSED, [10.0, 10.0, 10.0, 10.0, 90.0, 90.0, 90.0])) == ["exposed_drift"]


def test_a_resume_starts_the_comparison_anew() -> None:
    before = course(EXPOSED, [10.0] * 8)
    after = [sample_line(n, extra={**CALM, EXPOSED: 90.0}) for n in range(9, 20)]
    assert names([*before, *after[:4]]) == ["exposed_drift"]
    assert names([*before, run_line(8), *after]) == []


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ({"overlap/predicted_iteration_ms": 390.0}, []),
        ({"overlap/predicted_iteration_ms": 300.0}, ["prediction_drift"]),
        ({"overlap/predicted_iteration_ms": 600.0}, ["prediction_drift"]),
        ({"overlap/predicted_iteration_ms": "nan"}, []),
        ({"overlap/predicted_exposed_ms": 5.0}, ["prediction_drift"]),
        ({"overlap/predicted_exposed_ms": 0.0}, ["prediction_drift"]),
        ({"overlap/predicted_exposed_ms": 8.0}, []),
        ({"overlap/predicted_window_ms/pp_wait": 30.0}, ["prediction_drift"]),
    ],
)
def test_drift_from_the_prediction(prediction: Mapping[str, Any], expected: list[str]) -> None:
    assert names(course(EXPOSED, [10.0] * 4, **prediction)) == expected
    assert names(course(EXPOSED, [10.0] * 3, **prediction)) == []  # the first sample holds warm-up


def test_the_threshold_is_the_users() -> None:
    lines = course(EXPOSED, [10.0, 10.0, 10.0, 10.0, 15.0, 15.0, 15.0])
    assert names(lines, Rules(threshold=0.4, window=3)) == ["exposed_drift"]
    assert names(lines, Rules(threshold=0.6, window=3)) == []


@pytest.mark.parametrize(
    ("last", "expected"),
    [({"loss": "nan"}, True), ({"loss": "inf"}, True), ({"nan_iterations": 1}, True), ({"loss": None}, False)],
)
def test_a_loss_that_is_not_finite(last: Mapping[str, Any], expected: bool) -> None:
    lines = [run_line(), sample_line(1, extra=CALM), sample_line(2, extra=CALM, **last)]
    assert names(lines) == ["loss_not_finite"] * expected
    later = [sample_line(n, extra=CALM) for n in range(3, 6)]
    assert names([*lines, *later[:2]]) == ["loss_not_finite"] * expected  # still among the last three
    assert names([*lines, *later]) == []


def test_a_stalled_run_and_its_message() -> None:
    lines = course(EXPOSED, [10.0, 10.0])
    assert names(lines, age_s=4.0) == []
    (alarm,) = find_alarms(glance_of(lines, age_s=60.0), RULES)
    assert (alarm.name, alarm.message) == ("stalled", "stalled: nothing for 60 s, was due every 0.4 s")


def test_a_drift_message_has_both_figures() -> None:
    lines = course(EXPOSED, [10.0, 10.0, 10.0, 10.0, 15.0, 15.0, 15.0])
    (alarm,) = find_alarms(glance_of(lines), RULES)
    assert alarm.message == "exposed recompute 15.0 ms, 50 % above its earlier 10.0 ms"
