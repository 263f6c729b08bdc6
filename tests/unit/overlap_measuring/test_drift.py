"""Windows that are no longer what they were when measured are reported, once."""

from megatron.overlap.measuring.drift import Drift
from tests.unit.plan.samples import sample_profile


def figures(us: float, windows: float = 8.0) -> dict[str, float]:
    return {"overlap/windows/tp_backward": windows, "overlap/window_ms/tp_backward": windows * us / 1e3}


def test_windows_that_take_another_time_are_reported_once() -> None:
    drift = Drift(sample_profile())
    assert drift.planned_us == {"tp_forward": 40.0, "tp_backward": 60.0}
    assert (
        drift.look({}) == drift.look(figures(60.0, 0.0)) == drift.look(figures(71.0)) == drift.look(figures(49.0)) == []
    )
    (message,) = drift.look(figures(73.0))
    assert message.startswith("windows of kind tp_backward take 73 us, 60 us when they were measured")
    assert drift.look(figures(200.0)) == []
