"""What is expected of a window, and what the figures of a step are made of."""

import pytest
import torch

from megatron.overlap.figures import Figures, StepFigures
from megatron.overlap.window_lengths import WindowLengths
from megatron.overlap.window_log import WindowSums
from overlap_recompute.plan.windows import WindowKind
from overlap_recompute.runtime import StepReport

MS = 1_000_000


def test_the_same_window_of_earlier_steps_is_expected() -> None:
    lengths = WindowLengths()
    for first, second in [(10, 40), (12, 44), (90, 42), (14, 46)]:
        lengths.begin_step()
        for length in (first, second):
            lengths.learn(lengths.next_place(WindowKind.EP), length)
        assert lengths.expected_ns(lengths.next_place(WindowKind.TP_BACKWARD)) is None
    lengths.begin_step()
    places = [lengths.next_place(WindowKind.EP) for _ in range(3)]
    assert [lengths.expected_ns(place) for place in places] == [14, 44, None], "medians of the last three steps"


def test_nothing_is_expected_of_a_wait_for_a_stage() -> None:
    lengths = WindowLengths()
    for length in (90, 10, 14, 12):
        lengths.begin_step()
        lengths.learn(lengths.next_place(WindowKind.PP_WAIT), length)
    lengths.begin_step()
    assert lengths.expected_ns(lengths.next_place(WindowKind.PP_WAIT)) is None


def test_the_bubble_is_what_a_stage_waits_and_does_not_fill(rank: None) -> None:
    figures = Figures(torch.device("cpu"))
    report = StepReport(
        layers=(), hidden_replays=3, exposed_replays=1, hidden_us=2000, exposed_us=500, kept_peak_bytes=0,
        held_peak_bytes=0, prefetched_peak_bytes=0,
    )  # fmt: skip
    for _ in range(2):
        windows = {kind: WindowSums() for kind in WindowKind}
        windows[WindowKind.PP_WAIT] = WindowSums(windows=4, units=3, length_ns=30 * MS, filled_ns=10 * MS)
        gradients = WindowSums(windows=2, units=3, length_ns=16 * MS, filled_ns=10 * MS)
        step = StepFigures(
            report=report, windows=windows, before_backward=gradients, length_ns=100 * MS, delayed_ns=7 * MS
        )
        figures.add(step)
    found = figures.take()
    assert found["overlap/bubble_fraction"] == pytest.approx(0.2)
    assert found["overlap/delayed_wgrad_ms"] == pytest.approx(7)
    assert found["overlap/gradient_wait_ms"] == pytest.approx(16)
    assert found["overlap/gradient_wait_filled_ms"] == pytest.approx(10)
    assert found["overlap/window_ms/pp_wait"] == pytest.approx(30)
    nothing = figures.take()
    assert "overlap/bubble_fraction" not in nothing, "only where a stage has waited"
    assert "overlap/delayed_wgrad_ms" not in nothing, "only where weight gradients have waited"
