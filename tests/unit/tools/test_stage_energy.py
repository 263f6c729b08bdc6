"""Joules of the stage bench: what is made of NVML's counter, and what is said where there is none. NVML is a fake."""

from typing import Any

import pytest
import torch

from tools.stage_bench_lib import energy
from tools.stage_bench_lib.energy import Energy, Meter, as_data, metered, open_meter
from tools.stage_bench_lib.page import _energy

GPU = torch.device("cuda", 0)


class NVMLError(Exception):
    """As pynvml has one."""


class FakeNvml:
    """A board whose counter goes up by the given millijoules at every reading."""

    NVMLError = NVMLError

    def __init__(self, *, steps_mj: tuple[int, ...] = (), starts: bool = True, counts: bool = True) -> None:
        self.steps_mj, self.starts, self.counts = list(steps_mj), starts, counts
        self.total_mj, self.open, self.asked_for = 5_000_000, 0, ""

    def nvmlInit(self) -> None:
        if not self.starts:
            raise NVMLError("Driver Not Loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked_for = uuid
        return "the board"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "the board"
        if not self.counts:
            raise NVMLError("Not Supported")
        self.total_mj += self.steps_mj.pop(0) if self.steps_mj else 0
        return self.total_mj


def opened(nvml: FakeNvml) -> tuple[Meter | None, str]:
    return open_meter(GPU, load=lambda name: nvml, uuid_of=lambda device: "GPU-1")


def test_without_a_gpu_nothing_is_imported_and_the_reason_is_said() -> None:
    def load(name: str) -> Any:
        raise AssertionError("imported")

    meter, reason = open_meter(torch.device("cpu"), load=load)
    assert meter is None and "no GPU" in reason


def test_without_the_package_the_reason_says_what_to_install() -> None:
    def load(name: str) -> Any:
        raise ModuleNotFoundError(name)

    meter, reason = open_meter(GPU, load=load)
    assert meter is None and "pip install nvidia-ml-py" in reason


@pytest.mark.parametrize(
    ("nvml", "says"),
    [(FakeNvml(starts=False), "Driver Not Loaded"), (FakeNvml(counts=False), "Not Supported")],
)
def test_what_nvml_refuses_is_a_reason_and_nvml_is_left(nvml: FakeNvml, says: str) -> None:
    meter, reason = opened(nvml)
    assert meter is None and says in reason and nvml.open == 0


def test_the_counter_is_read_around_the_steps_and_summed_over_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []
    clock = iter((10.0, 12.0, 20.0, 21.0))
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(clock))
    # The reading that tries the counter, then begin and end of two turns; 7 J pass between the turns and are not ours.
    nvml = FakeNvml(steps_mj=(0, 0, 600_000, 7_000, 300_000))
    meter, reason = opened(nvml)
    assert meter is not None and reason == "" and nvml.asked_for == "GPU-1"
    drawn = Energy()
    for _ in range(2):
        with metered(meter, GPU, 10, drawn):
            pass
    assert drawn == Energy(joules=900.0, duration_s=3.0, steps=20)
    assert as_data(drawn) == {"joules_per_step": 45.0, "power_w": 300.0, "metered_s": 3.0}
    assert waits == [GPU] * 4
    meter.close()
    assert nvml.open == 0


def test_without_a_meter_nothing_is_measured() -> None:
    drawn = Energy()
    with metered(None, torch.device("cpu"), 10, drawn):
        pass
    assert drawn.joules_per_step is None and drawn.power_w is None


def test_the_page_tells_measured_from_not_measured() -> None:
    absent = {"measured": False, "source": None, "reason": "no GPU: a cpu has none", "arms": {}}
    assert _energy(absent) == ["", "Energy was not measured: no GPU: a cpu has none."]
    long = as_data(Energy(joules=900.0, duration_s=3.0, steps=20))
    present = {"measured": True, "source": "NVML", "reason": "", "arms": {"none": long}}
    assert _energy(present)[1] == "Energy, by NVML: none 45.0 J a step (300 W)."
    brief = as_data(Energy(joules=90.0, duration_s=0.3, steps=2))
    assert "raise --iterations" in _energy({**present, "arms": {"none": brief}})[1]
