"""Windows that are no longer what they were when measured are reported, once."""

from dataclasses import replace

from megatron.overlap.measuring.drift import Drift, drifts
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


def test_windows_of_two_profiles_are_compared_by_kind() -> None:
    then = sample_profile()
    (kind,) = then.kinds
    *computed, window = kind.backward
    near, far = (
        replace(then, kinds=(replace(kind, backward=(*computed, replace(window, duration_us=us))),))
        for us in (71.0, 47.0)
    )
    assert drifts(then, then) == drifts(then, near) == []
    assert drifts(then, far) == ["tp_backward 60 -> 47 us"]
    none = replace(then, kinds=(replace(kind, backward=tuple(computed)),))
    assert drifts(then, none) == ["tp_backward 60 -> 0 us"]
